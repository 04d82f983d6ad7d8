"""Floor 3: from a prompt to text.

loop    the sampling loop: pure functions, one program, usable inside other jitted programs
sample  Sampling settings, checks, and `generate` on lists of token ids
watch   one row's text as tokens arrive, and stop strings in it
text    prompts as text: completions and streams
"""
