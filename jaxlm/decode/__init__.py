"""Floor 3: from a prompt to text.

loop    the sampling loop: pure functions, one program, usable inside other jitted programs
sample  Sampling settings, checks, and `generate` on lists of token ids
watch   one row's text as tokens arrive, and stop strings in it
pairs   targets of sources: an encoder-decoder's keys and values computed once
fill    what an encoder puts where a text has masks
reply   what a model of any kind says to a prompt, as `jaxlm sample` shows it
text    prompts as text: completions and streams
"""
