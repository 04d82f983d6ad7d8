"""Floor 3: from a prompt to text.

sampling_loop      pure functions, one program, usable inside other jitted programs
sampling_settings  the fields of Sampling, their checks, and their arrays for the loop
token_sampling     `generate` on lists of token ids
stop_strings       one row's text as tokens arrive, up to the first stop string
constraints        texts that match a schema, a regular expression or a grammar
search             beams and contrastive search
serve              many requests at once, from Python and over HTTP
encoder_decoder    targets of sources: an encoder-decoder's keys and values computed once
fill_mask          the likeliest tokens at the masks of a text
prompt_tokens      a prompt as the model's data writes it
completions        prompts as text: completions and streams
reply              the reply of a model of any kind to a prompt, as `jaxlm sample` shows it
"""
