"""A scalar head: one number from x, as reward and value models have."""

import jax
import jax.numpy as jnp

from jaxlm.core import param, precision
from jaxlm.models.model import Model


def spec(model: Model) -> param.Param:
    """The weight of a scalar head, drawn from N(0, 1 / (D + 1)) (Stiennon et al. 2020, appendix
    B). It is stored along with the model's own weights: `model.spec | {"score": spec(model)}`."""
    embed = model.cfg.embed
    return param.shaper(embed=embed)("embed", init=param.normal((embed + 1) ** -0.5))


def read(w: jax.Array, x: jax.Array) -> jax.Array:
    """float32[...] from x [..., D] and the head's weight w [D]; summed in float32."""
    return jnp.einsum("...D,D->...", x.astype(precision.wide()), w.astype(precision.wide()))


def last(segments: jax.Array) -> jax.Array:
    """int32[...]: where the last token of each row is, of segments int32[..., T] with 0 for
    padding, on whichever side. 0 for a row of padding alone."""
    width = segments.shape[-1]
    places = jnp.arange(width, dtype=jnp.int32)
    return jnp.max(jnp.where(segments > 0, places, 0), axis=-1)


def at_end(w: jax.Array, x: jax.Array, segments: jax.Array) -> jax.Array:
    """float32[...]: the score of each row of x [..., T, D], read at its last token."""
    end = last(segments)[..., None, None]  # [..., 1, 1]
    return read(w, jnp.take_along_axis(x, end, axis=-2)[..., 0, :])
