"""Optimisers from optax, as one transformation."""

import optax
import jax, jax.numpy as jnp

Transform = optax.GradientTransformation


def loss_scale(opt):
    return jnp.ones(())


def report(opt):
    return {}
