"""Kernels for one platform or one shape each."""
