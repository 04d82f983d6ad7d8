"""GPT-1, GPT-2 and GPT-3: LayerNorm, learned positions, GELU, biases, dropout, tied embeddings.

Radford et al. 2018 (GPT-1: the norm comes after each sublayer), Radford et al. 2019 (GPT-2: before,
and once more at the end), Brown et al. 2020 (GPT-3: GPT-2's block; its alternating locally banded
attention has no published widths, so the presets attend densely).

Also OPT (Zhang et al. 2022: ReLU), BLOOM (Le Scao et al. 2022: ALiBi instead of positions, and a
LayerNorm on the embedding) and the GPT-2s of Stanford's Mistral project (Karamcheti et al. 2021:
scores divided by the number of the layer).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, mha, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Model
from jaxlm.ops import linear, norm, position_bias
from jaxlm.ops.attention import At
from jaxlm.ops.dropout import dropout, split
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a GPT-style model."""

    KIND = "gpt"

    vocab: int = 50257
    """Number of token ids."""
    embed: int = 768
    """Width of the residual stream; a multiple of `heads`."""
    layers: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads, each of size embed / heads."""
    context: int = 1024
    """Longest sequence the model can read; with ALiBi the one it is meant for, without a limit."""
    ffn: int | None = None
    """Width of the feed-forward layer; None is four times `embed`."""
    activation: Literal["gelu_tanh", "gelu", "relu", "silu", "relu2"] = "gelu_tanh"
    """Feed-forward nonlinearity."""
    positions: Literal["learned", "alibi"] = "learned"
    """A learned vector for each position, or a bias of the scores by distance (ALiBi)."""
    embed_norm: bool = False
    """Whether the embedding passes a LayerNorm before the first block."""
    bias: bool = True
    """Whether attention and feed-forward layers have biases."""
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
    query_scalar: float | None = None
    """Scores are divided by its square root; None is the size of a head."""
    scale_by_layer: bool = False
    """Whether scores are also divided by the number of their layer, counted from 1."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "context")
        check.divides(self, "heads", "embed")
        check.positive(self, "ffn", "query_scalar")
        check.within("model", self, "dropout", least=0, below=1)

    @property
    def head(self) -> int:
        """Size of one head."""
        return self.embed // self.heads

    @property
    def width(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.embed if self.ffn is None else self.ffn


def spec(cfg: Config) -> param.Tree:
    """The weights. Initialised as GPT-2: N(0, 0.02), residual outputs smaller by sqrt(2 layers)."""
    p = param.shaper(
        vocab=cfg.vocab,
        seq=cfg.context,
        embed=cfg.embed,
        heads=cfg.heads,
        kv=cfg.heads,
        head=cfg.head,
        ffn=cfg.width,
    )
    small, out = param.normal(0.02), param.normal(0.02 * (2 * cfg.layers) ** -0.5)

    def norm_weights() -> param.Tree:
        return {"scale": p("embed", init=param.ones), "bias": p("embed", init=param.zeros)}

    def weights(kind: str) -> param.Tree:
        return {
            "attn_norm": norm_weights(),
            "attn": mha.spec(p, out=out, init=small, bias=cfg.bias, out_bias=cfg.bias),
            "ffn_norm": norm_weights(),
            "ffn": ffn.spec(p, gated=False, bias=cfg.bias, out=out, init=small),
        }

    embed = {"table": p("vocab embed", init=small)}
    if cfg.positions == "learned":
        embed |= {"positions": p("seq embed", init=param.normal(0.01))}
    if cfg.embed_norm:
        embed |= {"norm": norm_weights()}
    tree = {"embed": embed, "stack": stack.spec(layers(cfg), weights)}
    if cfg.norm == "pre":
        tree |= {"norm": norm_weights()}
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab", init=small)}


def layers(cfg: Config) -> list[Layer]:
    """Every layer, in order."""
    return cfg.layers * [mha.layer(cfg.norm, cfg.heads, cfg.heads, cfg.head)]


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""
    act = ffn.ACTIVATIONS[cfg.activation]
    learned = cfg.positions == "learned"
    slope = None if learned else position_bias.alibi(position_bias.slopes(cfg.heads))
    scale = None if cfg.query_scalar is None else cfg.query_scalar**-0.5

    def embed(w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        x = embedding_lookup.look_up(plan, w["table"], tokens)  # [B, T, D]
        if "positions" in w:
            positions = plan.gather(w["positions"], "seq embed")
            x = x + jnp.take(positions, at.positions, axis=0)
        if "norm" in w:
            x = layer_norm(w["norm"], x)
        return dropout(x, cfg.dropout, None if key is None else jax.random.fold_in(key, 2**31 - 1))

    def layer_norm(w: param.Tree, x: jax.Array) -> jax.Array:
        return norm.layer_norm(x, w["scale"], w["bias"], cfg.eps)

    def block(
        layer: Layer,
        w: param.Tree,
        x: jax.Array,
        at: At,
        memory: mha.Memory,
        key: jax.Array | None,
    ) -> tuple[jax.Array, mha.Out]:
        keys = split(key, 2)
        if layer.kind == "pre":
            h, entries = attend(w["attn"], layer_norm(w["attn_norm"], x), at, memory)
            x = x + dropout(h, cfg.dropout, keys[0])
            h = ffn.apply(w["ffn"], layer_norm(w["ffn_norm"], x), act)
            return x + dropout(h, cfg.dropout, keys[1]), entries
        h, entries = attend(w["attn"], x, at, memory)
        x = layer_norm(w["attn_norm"], x + dropout(h, cfg.dropout, keys[0]))
        h = ffn.apply(w["ffn"], x, act)
        return layer_norm(w["ffn_norm"], x + dropout(h, cfg.dropout, keys[1])), entries

    def attend(w: param.Tree, h: jax.Array, at: At, memory: mha.Memory) -> tuple:
        q, k, v = mha.project(w, h, at)
        q = q * linear.spread(w["scale"], q) if "scale" in w else q
        y, entries = mha.attend(q, k, v, at, memory, plan, bias=slope, scale=scale)
        return mha.output(w, y), entries

    return decoder.build(
        cfg,
        spec(cfg),
        plan,
        layers=layers(cfg),
        embed=embed,
        block=block,
        norm=layer_norm,
        softcap=cfg.softcap,
        context=cfg.context if learned else None,
        constants=_numbered if cfg.scale_by_layer else None,
    )


def _numbered(layer: int) -> param.Tree:
    """The factor of a layer's scores, by its number from 0."""
    return {"attn": {"scale": np.float32(1 / (layer + 1))}}


def _opt(embed: int, layers: int, heads: int) -> Config:
    return Config(
        vocab=50272, embed=embed, layers=layers, heads=heads, context=2048, activation="relu"
    )


def _bloom(embed: int, layers: int, heads: int) -> Config:
    return Config(
        vocab=250880, embed=embed, layers=layers, heads=heads, context=2048, positions="alibi",
        embed_norm=True,
    )  # fmt: skip


# GPT-1: section 4.1 of Radford et al. 2018. GPT-2: table 2 of Radford et al. 2019 (whose 117M and
# 345M are miscounts of 124M and 355M). GPT-3: table 2.1 of Brown et al. 2020. OPT: table 1 of Zhang
# et al. 2022, without its 350M, whose narrow embedding table is projected. BLOOM: table 3 of Le
# Scao et al. 2022.
PRESETS: dict[str, Config] = {
    "gpt1": Config(vocab=40478, context=512, norm="post", dropout=0.1),
    "gpt2": Config(),
    "gpt2-medium": Config(embed=1024, layers=24, heads=16),
    "gpt2-large": Config(embed=1280, layers=36, heads=20),
    "gpt2-xl": Config(embed=1600, layers=48, heads=25),
    "gpt3-175b": Config(embed=12288, layers=96, heads=96, context=2048),
    "opt-125m": _opt(768, 12, 12),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "opt-30b": _opt(7168, 48, 56),
    "opt-66b": _opt(9216, 64, 72),
    "opt-175b": _opt(12288, 96, 96),
    "bloom-560m": _bloom(1024, 24, 16),
    "bloom-1b1": _bloom(1536, 24, 16),
    "bloom-1b7": _bloom(2048, 24, 16),
    "bloom-3b": _bloom(2560, 30, 32),
    "bloom-7b1": _bloom(4096, 30, 32),
    "bloom-176b": _bloom(14336, 70, 112),
}
