"""Transformers of Flax's own layers, as strangers to jaxlm would write them."""

import functools

import jax
import jax.numpy as jnp
from flax import linen, nnx


class NnxBlock(nnx.Module):
    def __init__(self, width, rate, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        draw = nnx.initializers.lecun_normal()
        # without it Flax wants a mesh before it makes a variable with axis names
        partitioned = functools.partial(nnx.with_partitioning, draw, eager_sharding=False)
        self.attend = nnx.MultiHeadAttention(
            2, width, decode=False, dropout_rate=rate, rngs=rngs,
            kernel_init=partitioned(("embed", "heads", "head")),
            out_kernel_init=partitioned(("heads", "head", "embed")),
        )  # fmt: skip
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attend(self.norm(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(x)))


class NnxTransformer(nnx.Module):
    """Reads tokens, mask and positions."""

    def __init__(self, vocab=16, width=8, layers=2, context=32, rate=0.0, *, rngs):
        self.tokens = nnx.Embed(vocab, width, rngs=rngs)
        self.places = nnx.Embed(context, width, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(width, rate, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens, mask=None, positions=None):
        if mask is None:
            mask = nnx.make_causal_mask(tokens)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        x = self.tokens(tokens) + self.places(positions)
        for block in self.blocks:
            x = block(x, mask)
        return self.tokens.attend(self.norm(x))


class LinenTransformer(linen.Module):
    """Reads tokens alone; one kernel with logical axis names."""

    vocab: int = 16
    width: int = 8
    dropout: float = 0.0

    @linen.compact
    def __call__(self, tokens, deterministic=True):
        x = linen.Embed(self.vocab, self.width)(tokens)
        x = (
            x
            + self.param("places", linen.initializers.normal(0.1), (32, self.width))[
                jnp.arange(tokens.shape[1])
            ]
        )
        mask = linen.make_causal_mask(tokens)
        attend = linen.MultiHeadDotProductAttention(2, dropout_rate=self.dropout)
        x = x + attend(linen.LayerNorm()(x), mask=mask, deterministic=deterministic)
        init = linen.with_logical_partitioning(linen.initializers.lecun_normal(), ("embed", "mlp"))
        h = linen.Dense(2 * self.width, kernel_init=init)(linen.LayerNorm()(x))
        x = x + linen.Dense(self.width)(jax.nn.gelu(h))
        return linen.Dense(self.vocab)(linen.LayerNorm()(x))


class Batched(nnx.Module):
    """Keeps batch statistics, which training does not carry."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
