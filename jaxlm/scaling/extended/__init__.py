"""Analyses beyond the laws of loss: `jaxlm fit` runs those that its options request.

options, pipeline   what is requested, and how it is run and reported; setting: what is shared
accuracy            downstream accuracy from loss in two steps, or from compute in one
recipes             the compute that one recipe saves against another
losses              every loss of a table at once, and laws from loss to loss
groups              one law for several groups, exponents pooled as far as the data ask
surfaces            learning rate and batch size: the loss as a surface, laws of its minimum
architectures       laws of experts, sparsity, upcycled tokens and vocabulary; files: their columns
observations        benchmarks of public models: components, families, a target
schedules           loss curves over learning-rate schedules: every step is a point
countings           the same runs with N counted in several ways
"""
