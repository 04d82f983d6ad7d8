"""Floor 4: evaluation of a model, given its weights.

perplexity  nats per token and bits per byte on held-out text
"""
