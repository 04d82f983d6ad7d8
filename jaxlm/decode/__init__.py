"""Floor 3: from a prompt to text.

sampling_loop    pure functions, one program, usable inside other jitted programs
token_sampling   Sampling settings, their checks, and `generate` on lists of token ids
stop_strings     one row's text as tokens arrive, up to the first stop string
encoder_decoder  targets of sources: an encoder-decoder's keys and values computed once
fill_mask        the likeliest tokens at the masks of a text
branches         several continuations of a prompt over one copy of its keys
beam_search      Beams, and the likeliest texts that a bounded search finds, with diverse groups
contrastive_search  Contrastive, and texts that do not repeat themselves
hypotheses       both searches from prompts to texts with scores
prompt_tokens    a prompt as the model's data writes it
completions      prompts as text: completions and streams
reply            the reply of a model of any kind to a prompt, as `jaxlm sample` shows it
"""
