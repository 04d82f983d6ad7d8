"""Floor 4: what a trained model is worth.

perplexity  nats per token and bits per byte on held-out text
"""
