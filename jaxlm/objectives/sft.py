"""Supervised fine-tuning: predict the assistant's tokens of conversations, with optional noise."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.models.model import Hidden, Model
from jaxlm.objectives import clm
from jaxlm.objectives.objective import Objective, check_kind
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """Next-token prediction where a batch's weight is not 0: for data.chat, on what the assistant
    writes. The mean is over those tokens, all alike, whatever conversation they are of."""

    KIND = "sft"

    token: clm.Config = clm.Config()
    """The loss of a token, as in pretraining."""
    neftune: float = 0.0
    """Noise on the embeddings while training: uniform in -1 .. 1, times this over sqrt(L D) for a
    conversation of L tokens (Jain et al. 2023, algorithm 1, who used 5 to 15). 0 adds none."""

    def __post_init__(self) -> None:
        check.within("objective", self, "neftune", least=0)


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """`clm`'s objective, of embeddings with noise where a key is given. Sums as there.

    Raises: ValueError for a model that does not predict the next token; as `clm.build`.
    """
    check_kind(model, "decoder", "sft")
    return clm.build(cfg.token, noisy(model, cfg.neftune) if cfg.neftune else model, plan)


def noisy(model: Model, alpha: float) -> Model:
    """The model, with noise on its embeddings wherever a key is given."""

    def hidden(
        params: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None = None
    ) -> Hidden:
        if key is None:
            return model.hidden(params, tokens, at)
        dropout, drawn = jax.random.split(key)

        def perturb(x: jax.Array) -> jax.Array:
            return x + noise(drawn, at.segments, x.shape[-1], alpha).astype(x.dtype)

        return model.hidden(params, tokens, at, key=dropout, perturb=perturb)

    return model._replace(hidden=hidden)


def noise(key: jax.Array, segments: jax.Array, embed: int, alpha: float) -> jax.Array:
    """float32[B, T, D]: uniform in -1 .. 1 times alpha / sqrt(L D), L being the number of tokens of
    each token's own segment; 0 on padding. Jain et al. 2023, algorithm 1."""
    row = jnp.arange(segments.shape[0])[:, None]  # [B, 1]
    counts = jnp.zeros((segments.shape[0], segments.shape[1] + 1)).at[row, segments].add(1.0)
    length = jnp.take_along_axis(counts, segments, axis=1)  # [B, T]
    size = jnp.where(segments > 0, alpha * jax.lax.rsqrt(length * embed), 0.0)
    drawn = jax.random.uniform(key, (*segments.shape, embed), minval=-1.0, maxval=1.0)
    return size[..., None] * drawn
