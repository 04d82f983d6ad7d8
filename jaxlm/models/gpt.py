"""GPT-1, GPT-2 and GPT-3: LayerNorm, learned positions, GELU, biases, dropout, tied embeddings.

Radford et al. 2018 (GPT-1: the norm comes after each sublayer), Radford et al. 2019 (GPT-2: before,
and once more at the end), Brown et al. 2020 (GPT-3: GPT-2's block; its alternating locally banded
attention has no published widths, so the presets attend densely).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models import attention, check, decoder, stack
from jaxlm.models.model import Model
from jaxlm.ops import linear, norm
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a GPT-style model."""

    vocab: int = 50257
    """Token ids the model knows."""
    embed: int = 768
    """Width of the residual stream; a multiple of `heads`."""
    layers: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads, each of size embed / heads."""
    context: int = 1024
    """Learned positions: the longest sequence the model can read."""
    norm: Literal["pre", "post"] = "pre"
    """LayerNorm before each sublayer (GPT-2, GPT-3) or after it (GPT-1)."""
    eps: float = 1e-5
    """Added to the variance in LayerNorm."""
    dropout: float = 0.0
    """Rate of dropout on embeddings and sublayer outputs while training."""
    tied: bool = True
    """Whether the output matrix is the embedding table."""
    softcap: float | None = None
    """Logits are capped to +-softcap by tanh; None leaves them as they are."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "context")
        check.divides(self, "heads", "embed")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout: {self.dropout} given; it must be in [0, 1)")

    @property
    def head(self) -> int:
        """Size of one head."""
        return self.embed // self.heads


def spec(cfg: Config) -> param.Tree:
    """The weights. Initialised as GPT-2: N(0, 0.02), residual outputs smaller by sqrt(2 layers)."""
    p = param.shaper(
        vocab=cfg.vocab,
        seq=cfg.context,
        embed=cfg.embed,
        heads=cfg.heads,
        head=cfg.head,
        ffn=4 * cfg.embed,
    )
    small, out = param.normal(0.02), param.normal(0.02 * (2 * cfg.layers) ** -0.5)

    def norm_weights() -> param.Tree:
        return {"scale": p("embed", init=param.ones), "bias": p("embed", init=param.zeros)}

    def layer(kind: str) -> param.Tree:
        qkv = {n: p("embed -> heads head", init=small) for n in "qkv"}
        biases = {f"{n}_bias": p("heads head", init=param.zeros) for n in "qkv"}
        o = {
            "o": p("heads head -> embed", init=out),
            "o_bias": p("embed", init=param.zeros),
        }
        return {
            "attn_norm": norm_weights(),
            "attn": qkv | biases | o,
            "ffn_norm": norm_weights(),
            "ffn": {
                "up": p("embed -> ffn", init=small),
                "up_bias": p("ffn", init=param.zeros),
                "down": p("ffn -> embed", init=out),
                "down_bias": p("embed", init=param.zeros),
            },
        }

    tree = {
        "embed": {
            "table": p("vocab embed", init=small),
            "positions": p("seq embed", init=param.normal(0.01)),
        },
        "stack": stack.spec([(cfg.layers, (cfg.norm,))], layer),
    }
    if cfg.norm == "pre":
        tree |= {"norm": norm_weights()}
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab", init=small)}


def reaches(cfg: Config) -> list[attention.Reach]:
    """What each layer's attention costs."""
    return [attention.reach(None, cfg.heads, cfg.head)] * cfg.layers


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""

    def embed(w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        table = plan.gather(w["table"], "vocab embed")
        positions = plan.gather(w["positions"], "seq embed")
        x = jnp.take(table, tokens, axis=0) + jnp.take(positions, at.positions, axis=0)
        return _dropout(x, cfg.dropout, None if key is None else jax.random.fold_in(key, 2**31 - 1))

    def layer_norm(w: param.Tree, x: jax.Array) -> jax.Array:
        return norm.layer_norm(x, w["scale"], w["bias"], cfg.eps)

    def block(
        kind: str,
        w: param.Tree,
        x: jax.Array,
        at: At,
        memory: attention.Memory,
        key: jax.Array | None,
    ) -> tuple[jax.Array, attention.Out]:
        keys = (None, None) if key is None else jax.random.split(key)
        if kind == "pre":
            h, entries = attend(w["attn"], layer_norm(w["attn_norm"], x), at, memory)
            x = x + _dropout(h, cfg.dropout, keys[0])
            h = feed(w["ffn"], layer_norm(w["ffn_norm"], x))
            return x + _dropout(h, cfg.dropout, keys[1]), entries
        h, entries = attend(w["attn"], x, at, memory)
        x = layer_norm(w["attn_norm"], x + _dropout(h, cfg.dropout, keys[0]))
        h = feed(w["ffn"], x)
        return layer_norm(w["ffn_norm"], x + _dropout(h, cfg.dropout, keys[1])), entries

    def attend(w: param.Tree, h: jax.Array, at: At, memory: attention.Memory) -> tuple:
        q, k, v = (
            linear.einsum("BTD,DNH->BTNH", h, w[n]) + w[f"{n}_bias"].astype(h.dtype) for n in "qkv"
        )
        y, entries = attention.attend(q, k, v, at, memory, plan)
        y = linear.einsum("BTNH,NHD->BTD", y, w["o"]) + w["o_bias"].astype(h.dtype)
        return y, entries

    def feed(w: param.Tree, h: jax.Array) -> jax.Array:
        up = linear.einsum("BTD,DF->BTF", h, w["up"]) + w["up_bias"].astype(h.dtype)
        up = jax.nn.gelu(up, approximate=True)
        return linear.einsum("BTF,FD->BTD", up, w["down"]) + w["down_bias"].astype(h.dtype)

    return decoder.build(
        cfg,
        spec(cfg),
        plan,
        embed=embed,
        block=block,
        norm=layer_norm,
        memory=lambda kind, batch, slots: attention.cache(batch, slots, cfg.heads, cfg.head),
        softcap=cfg.softcap,
        context=cfg.context,
    )


def _dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    if rate == 0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


# GPT-1: section 4.1 of Radford et al. 2018. GPT-2: table 2 of Radford et al. 2019 (whose 117M and
# 345M are miscounts of 124M and 355M). GPT-3: table 2.1 of Brown et al. 2020.
PRESETS: dict[str, Config] = {
    "gpt1": Config(vocab=40478, context=512, norm="post", dropout=0.1),
    "gpt2": Config(),
    "gpt2-medium": Config(embed=1024, layers=24, heads=16),
    "gpt2-large": Config(embed=1280, layers=36, heads=20),
    "gpt2-xl": Config(embed=1600, layers=48, heads=25),
    "gpt3-175b": Config(embed=12288, layers=96, heads=96, context=2048),
}
