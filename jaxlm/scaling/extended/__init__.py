"""Analyses beyond the laws of loss: `jaxlm fit` runs those that its options request.

accuracy        downstream accuracy from loss in two steps, or from compute in one
"""
