"""The dtype that sums, softmaxes and weights are kept in."""

from typing import Any

import jax.numpy as jnp


def wide() -> Any:
    """float32; where JAX has 64-bit types enabled (JAX_ENABLE_X64), float64, in which two plans are
    compared to the last places. Read when a program is traced."""
    return jnp.result_type(float)
