"""The Gemma family's text models: RMSNorm of 1 + w, scaled embeddings, GeGLU, grouped queries.

Gemma Team 2024a (Gemma 1), 2024b (Gemma 2: a norm after each sublayer too, scores and logits bent
by soft-caps, every other layer local), 2025 (Gemma 3: five local layers to one global, each with
its own rotary base, queries and keys normalised, no soft-caps).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, mha, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Model
from jaxlm.ops import norm, rope
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan

Reach = Literal["local", "global"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a Gemma model."""

    KIND = "gemma"

    vocab: int = 256000
    """Number of token ids."""
    embed: int = 2048
    """Width of the residual stream; embeddings are multiplied by its root."""
    layers: int = 18
    """Transformer blocks."""
    heads: int = 8
    """Query heads."""
    kv: int = 1
    """Key and value heads; fewer than `heads` is grouped-query attention, 1 is multi-query."""
    head: int = 256
    """Size of one head."""
    ffn: int = 16384
    """Width of the feed-forward layer."""
    pattern: tuple[Reach, ...] = ("global",)
    """Kinds of layers, repeated: "local" sees the last `window` keys, "global" all of them."""
    window: int | None = None
    """Keys a query of a local layer sees, itself included."""
    theta: float = 10000.0
    """Base of the rotary frequencies."""
    local_theta: float | None = None
    """Base in local layers, without `scaling`; None: rotation as in global layers."""
    scaling: rope.Scaling | None = None
    """Rule that stretches the rotary frequencies to a longer context; None leaves them."""
    eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    context: int = 8192
    """Sequence length the model is meant for; RoPE itself has no limit."""
    query_scalar: int | None = None
    """Scores are divided by the root of it; None: of `head`."""
    score_softcap: float | None = None
    """Attention scores are capped to +-score_softcap by tanh; None leaves them as they are."""
    softcap: float | None = None
    """Logits are capped to +-softcap by tanh; None leaves them as they are."""
    sandwich: bool = False
    """Whether sublayers end in a norm too, before they are added to the residual stream."""
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised per head."""
    tied: bool = True
    """Whether the output matrix is the embedding table."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "kv", "head", "ffn", "context")
        check.divides(self, "kv", "heads")
        check.even(self, "head")
        check.pattern(self)

    @property
    def kinds(self) -> tuple[Reach, ...]:
        """The kind of each layer: "local" or "global"."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.layers))


def spec(cfg: Config) -> param.Tree:
    """The weights. Norms hold what their scale differs from 1 by, so they start at 0."""
    p = param.shaper(
        vocab=cfg.vocab, embed=cfg.embed, heads=cfg.heads, kv=cfg.kv, head=cfg.head, ffn=cfg.ffn
    )
    # as in llama: the residual stream's variance does not grow with depth
    out = param.fan_in((2 * cfg.layers) ** -0.5)
    scale = p("embed", init=param.zeros)

    def weights(kind: str) -> param.Tree:
        qk_norm = "head" if cfg.qk_norm else None
        attn = mha.spec(p, out=out, qk_norm=qk_norm, scale=param.zeros)
        feed = ffn.spec(p, gated=True, bias=False, out=out)
        tree = {"attn_norm": scale, "attn": attn, "ffn_norm": scale, "ffn": feed}
        return tree | {"attn_post_norm": scale, "ffn_post_norm": scale} if cfg.sandwich else tree

    tree = {
        # unit variance once it is multiplied by sqrt(embed)
        "embed": {"table": p("vocab embed", init=param.normal(cfg.embed**-0.5))},
        "stack": stack.spec(layers(cfg), weights),
        "norm": scale,
    }
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab")}


def layers(cfg: Config) -> list[Layer]:
    """Every layer, in order."""
    windows = {"local": cfg.window, "global": None}
    return [mha.layer(kind, cfg.heads, cfg.kv, cfg.head, windows[kind]) for kind in cfg.kinds]


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""
    rotary = {"global": rope.frequencies(cfg.head, cfg.theta, cfg.scaling, cfg.context)}
    rotary["local"] = rotary["global"]
    if cfg.local_theta is not None:
        rotary["local"] = rope.frequencies(cfg.head, cfg.local_theta)
    scale = None if cfg.query_scalar is None else cfg.query_scalar**-0.5

    def embed(w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        x = embedding_lookup.look_up(plan, w["table"], tokens)  # [B, T, D]
        # the root is rounded to the computing dtype, as it was when Gemma was trained: in bfloat16
        # sqrt(3072) = 55.43 is 55.5
        return x.astype(plan.dtype) * jnp.asarray(cfg.embed**0.5, plan.dtype)

    def rms(w: jax.Array, x: jax.Array) -> jax.Array:
        return norm.rms_norm(x, w, cfg.eps, offset=1.0)

    def block(
        layer: Layer,
        w: param.Tree,
        x: jax.Array,
        at: At,
        memory: mha.Memory,
        key: jax.Array | None,
    ) -> tuple[jax.Array, mha.Out]:
        h = rms(w["attn_norm"], x)
        q, k, v = mha.project(w["attn"], h, at, norm=rms, rotary=rotary[layer.kind])
        y, entries = mha.attend(
            q, k, v, at, memory, plan,
            window=layer.window, softcap=cfg.score_softcap, scale=scale,
        )  # fmt: skip
        h = mha.output(w["attn"], y)
        x = x + (rms(w["attn_post_norm"], h) if "attn_post_norm" in w else h)
        h = ffn.apply(w["ffn"], rms(w["ffn_norm"], x), ffn.ACTIVATIONS["gelu_tanh"])
        x = x + (rms(w["ffn_post_norm"], h) if "ffn_post_norm" in w else h)
        return x, entries

    return decoder.build(
        cfg,
        spec(cfg),
        plan,
        layers=layers(cfg),
        embed=embed,
        block=block,
        norm=rms,
        softcap=cfg.softcap,
        context=rope.limit(cfg.scaling, cfg.context),
    )


def _gemma2(embed: int, layers: int, heads: int, ffn: int, scalar: int | None = None) -> Config:
    return Config(
        embed=embed, layers=layers, heads=heads, kv=heads // 2, ffn=ffn,
        pattern=("local", "global"), window=4096, query_scalar=scalar, score_softcap=50.0,
        softcap=30.0, sandwich=True,
    )  # fmt: skip


def _gemma3(embed: int, layers: int, heads: int, kv: int, ffn: int, window: int = 1024) -> Config:
    return Config(
        vocab=262144, embed=embed, layers=layers, heads=heads, kv=kv, ffn=ffn,
        pattern=5 * ("local",) + ("global",), window=window, theta=1e6, local_theta=1e4,
        context=32768, sandwich=True, qk_norm=True,
    )  # fmt: skip


def _gemma3_long(embed: int, layers: int, heads: int, kv: int, ffn: int) -> Config:
    """The sizes that read images too: 64 more token ids, and stretched to 128K."""
    return dataclasses.replace(
        _gemma3(embed, layers, heads, kv, ffn),
        vocab=262208,
        context=131072,
        scaling=rope.Linear(8.0),
    )


# Table 1 of Gemma Team 2024a, table 1 of 2024b, and the configs released with each and with
# Gemma 3 (whose 27B has heads of 128; both 27B divide scores by sqrt(embed / heads)).
PRESETS: dict[str, Config] = {
    "gemma-2b": Config(),
    "gemma-7b": Config(embed=3072, layers=28, heads=16, kv=16, ffn=24576),
    "gemma2-2b": _gemma2(2304, 26, 8, 9216),
    "gemma2-9b": _gemma2(3584, 42, 16, 14336),
    "gemma2-27b": dataclasses.replace(_gemma2(4608, 46, 32, 36864, 144), head=128),
    "gemma3-270m": _gemma3(640, 18, 4, 1, 2048, window=512),
    "gemma3-1b": _gemma3(1152, 26, 4, 1, 6912, window=512),
    "gemma3-4b": _gemma3_long(2560, 34, 8, 4, 10240),
    "gemma3-12b": _gemma3_long(3840, 48, 16, 8, 15360),
    "gemma3-27b": dataclasses.replace(
        _gemma3_long(5376, 62, 32, 16, 21504), head=128, query_scalar=168
    ),
}
