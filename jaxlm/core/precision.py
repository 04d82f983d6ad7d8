"""The dtype that sums, softmaxes and weights are kept in, and that gradients are summed in."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

_WIDE: contextvars.ContextVar[bool] = contextvars.ContextVar("wide_gradients", default=False)


def wide() -> Any:
    """float32; where JAX has 64-bit types enabled (JAX_ENABLE_X64), float64, in which two plans are
    compared to the last places. Read when a program is traced."""
    return jnp.result_type(float)


@contextlib.contextmanager
def summing_gradients(dtype: str) -> Iterator[None]:
    """Within a `with`, gradients of weights that are cast for a product are traced so that they are
    rounded to "compute", the product's dtype, before they are summed over devices, or kept in
    "float32" (`Plan.reduce`)."""
    token = _WIDE.set(dtype == "float32")
    try:
        yield
    finally:
        _WIDE.reset(token)


def wide_gradients() -> bool:
    """Whether gradients are summed over devices in float32. Read when a program is traced."""
    return _WIDE.get()
