"""Products whose weights' gradients are summed over devices in the weights' own dtype."""

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import precision


def specs(spec: str, axes: int) -> tuple[str, str, str]:
    """The einsums of x, of `axes` axes, and w to y, of y's gradient and w to x's, and of x and y's
    gradient to w's, without "..."."""
    inputs, _, out = spec.partition("->")
    xs, _, ws = inputs.partition(",")
    unused = "".join(letter for letter in string.ascii_letters if letter not in spec)
    xs, out = (side.replace("...", unused[: axes - len(xs) + 3]) for side in (xs, out))
    return f"{xs},{ws}->{out}", f"{out},{ws}->{xs}", f"{xs},{out}->{ws}"


def product(specs: tuple[str, str, str], dtype: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    """x times w, cast to x.dtype, by the first of `specs`."""
    if precision.wide_gradients() and w.dtype != x.dtype:
        return _summed_wide(specs, dtype, x, w)
    return jnp.einsum(specs[0], x, w.astype(x.dtype), preferred_element_type=dtype)


# The gradient of w leaves its product in w.dtype. The transpose of the cast would round it to
# x.dtype first, and the partitioner sums over devices what leaves the product.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed_wide(specs, dtype, x, w):
    return jnp.einsum(specs[0], x, w.astype(x.dtype), preferred_element_type=dtype)


def _summed_wide_forward(specs, dtype, x, w):
    # not _summed_wide: a remat policy that keeps matrix products must see them
    y = jnp.einsum(specs[0], x, w.astype(x.dtype), preferred_element_type=dtype)
    return y, (x, w)


def _summed_wide_backward(specs, dtype, saved, g):
    x, w = saved
    dx = jnp.einsum(specs[1], g, w.astype(x.dtype), preferred_element_type=dtype)
    return dx.astype(x.dtype), jnp.einsum(specs[2], x, g, preferred_element_type=w.dtype)


_summed_wide.defvjp(_summed_wide_forward, _summed_wide_backward)
