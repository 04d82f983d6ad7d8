"""Speculative decoding: tokens are drafted cheaply, and one pass of the model verifies them all.

drafts                the interface of what drafts tokens, and what several kinds of it share
draft_model           a smaller model with the same vocabulary
prompt_lookup         what followed the latest n-gram when it occurred before
multi_token_heads     the model's own multi-token prediction
verification          which drafts stay, and the token after them: those of plain decoding
draft_length          how many tokens to draft for the next pass
speculative_loop      one compiled loop, as `sampling_loop` is
speculative_sampling  Speculate, its checks and its report, on lists of token ids
"""
