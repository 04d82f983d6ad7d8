"""Texts that are searched for in place of being drawn: beams and contrastive search.

branches            several continuations of a prompt over one copy of its keys
beam_search         Beams, and the likeliest texts that a bounded search finds, with diverse groups
contrastive_search  Contrastive, and texts that do not repeat themselves
hypotheses          both searches from prompts to texts with scores
"""
