"""The Mistral family: LLaMA's block with a sliding window or experts. Jiang et al. 2023 (Mistral
7B), Jiang et al. 2024 (Mixtral), OpenAI 2025 (GPT-OSS).

    x = x + attend(norm(x))      x = x + feed(norm'(x))

feed is a SwiGLU layer or a mixture of them. GPT-OSS adds biases everywhere, an attention sink for
each head, windows in every other layer, and bounds in the gated nonlinearity.
"""

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, mha, moe, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Model
from jaxlm.ops import norm, rope, routing
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a Mistral-style model."""

    KIND = "mistral"

    vocab: int = 32000
    """Number of token ids."""
    embed: int = 4096
    """Width of the residual stream."""
    layers: int = 32
    """Transformer blocks."""
    heads: int = 32
    """Query heads."""
    kv: int = 8
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    head: int = 128
    """Size of one head."""
    ffn: int = 14336
    """Width of the feed-forward layer, or of one expert."""
    experts: int | None = None
    """Experts of a layer, all routed; None is one feed-forward layer."""
    active: int = 2
    """Experts a token goes to, where there are experts."""
    capacity: float | None = None
    """Places of an expert in a row, in multiples of its even share; None drops no token."""
    limit: float | None = None
    """Experts' gates are kept below it and the other factor within +-limit, in
    gate * sigmoid(alpha * gate) * (up + 1) (GPT-OSS); None is SwiGLU."""
    alpha: float = 1.702
    """Steepness of that sigmoid; without a limit nothing reads it."""
    theta: float = 10000.0
    """Base of the rotary frequencies."""
    scaling: rope.Scaling | None = None
    """Rule that stretches the rotary frequencies to a longer context; None leaves them."""
    context: int = 32768
    """Sequence length the model is run at. It decides Dynamic and LongRope scaling; RoPE itself has
    no limit."""
    window: int | None = 4096
    """Keys a query of a local layer sees, itself included; None makes all layers global."""
    pattern: tuple[Literal["local", "global"], ...] = ("local",)
    """The layers' kinds, repeated: local ones see a window, global ones all before them."""
    eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    bias: bool = False
    """Whether attention's four projections, the router and the experts have biases."""
    sinks: bool = False
    """Whether each head's softmax has one more term without a value (Xiao et al. 2024)."""
    tied: bool = False
    """Whether the output matrix is the embedding table."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "kv", "head", "ffn", "context")
        check.divides(self, "kv", "heads")
        check.even(self, "head")
        check.positive(self, "window", "experts")
        check.within("model", self, "capacity", "limit", above=0)
        for name in ("capacity", "limit"):
            value = getattr(self, name)
            ok = value is None or self.experts is not None
            check.field(f"model.{name}", value, ok, "None without model.experts")
        ok = bool(self.pattern) and {*self.pattern} <= {"local", "global"}
        check.field("model.pattern", self.pattern, ok, "of 'local' and 'global'")
        if self.experts is not None:
            routing.check(rule(self), self.experts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Each layer's kind, in order."""
        pattern = ("global",) if self.window is None else self.pattern
        return tuple(itertools.islice(itertools.cycle(pattern), self.layers))


def rule(cfg: Config) -> routing.Rule:
    """The routing rule: a softmax over the chosen experts' logits."""
    return routing.Rule(cfg.active, renormalise=True)


def spec(cfg: Config) -> param.Tree:
    """The weights."""
    p = param.shaper(
        vocab=cfg.vocab, embed=cfg.embed, heads=cfg.heads, kv=cfg.kv, head=cfg.head, ffn=cfg.ffn,
        expert=cfg.experts or 1,
    )  # fmt: skip
    # Outputs into the residual stream start smaller by sqrt(2 layers), so that its variance does
    # not grow with depth (Radford et al. 2019, section 2.3).
    out = param.fan_in((2 * cfg.layers) ** -0.5)

    def weights(kind: str) -> param.Tree:
        attn = mha.spec(p, out=out, bias=cfg.bias, out_bias=cfg.bias)
        if cfg.sinks:
            attn |= {"sinks": p("heads", init=param.zeros)}
        tree = {
            "attn_norm": p("embed", init=param.ones),
            "attn": attn,
            "ffn_norm": p("embed", init=param.ones),
        }
        if cfg.experts is None:
            return tree | {"ffn": ffn.spec(p, gated=True, bias=cfg.bias, out=out)}
        return tree | {"moe": moe.spec(p, out=out, bias=cfg.bias)}

    tree = {
        "embed": {"table": p("vocab embed", init=param.normal(cfg.embed**-0.5))},
        "stack": stack.spec(layers(cfg), weights),
        "norm": p("embed", init=param.ones),
    }
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab")}


def layers(cfg: Config) -> list[Layer]:
    """Every layer, in order."""
    sizes, active = (cfg.heads, cfg.kv, cfg.head), 1 if cfg.experts is None else cfg.active
    windows = {"local": cfg.window, "global": None}
    return [mha.layer(kind, *sizes, windows[kind], active=active) for kind in cfg.kinds]


def clamped(gate: jax.Array, up: jax.Array, limit: float, alpha: float) -> jax.Array:
    """gate * sigmoid(alpha * gate) * (up + 1), of gate below limit and up within +-limit. OpenAI
    2025, and the code released with it."""
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(alpha * gate) * (up + 1)


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""
    rotary = rope.frequencies(cfg.head, cfg.theta, cfg.scaling, cfg.context)
    routing, limit = rule(cfg), cfg.limit

    def embed(w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        return embedding_lookup.look_up(plan, w["table"], tokens)  # [B, T, D]

    def rms(w: jax.Array, x: jax.Array) -> jax.Array:
        return norm.rms_norm(x, w, cfg.eps)

    def block(
        layer: Layer,
        w: param.Tree,
        x: jax.Array,
        at: At,
        memory: mha.Memory,
        key: jax.Array | None,
    ) -> tuple[jax.Array, mha.Out]:
        h = rms(w["attn_norm"], x)
        q, k, v = mha.project(w["attn"], h, at, rotary=rotary)
        sinks = w["attn"].get("sinks")
        y, out = mha.attend(q, k, v, at, memory, plan, window=layer.window, sinks=sinks)
        x = x + mha.output(w["attn"], y)
        h = rms(w["ffn_norm"], x)
        if "ffn" in w:
            return x + ffn.apply(w["ffn"], h, jax.nn.silu), out
        h, stats = moe.apply(w["moe"], h, at, routing, plan, gated=gated, capacity=cfg.capacity)
        return x + h, stats if memory is None else out

    def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
        return moe.swiglu(gate, up) if limit is None else clamped(gate, up, limit, cfg.alpha)

    return decoder.build(
        cfg,
        spec(cfg),
        plan,
        layers=layers(cfg),
        embed=embed,
        block=block,
        norm=rms,
        context=rope.limit(cfg.scaling, cfg.context),
    )


def _gpt_oss(layers: int, experts: int) -> Config:
    return Config(
        vocab=201088, embed=2880, layers=layers, heads=64, kv=8, head=64, ffn=2880,
        experts=experts, active=4, limit=7.0, theta=150000.0,
        scaling=rope.Yarn(factor=32.0, original=4096, truncate=False), context=131072, window=128,
        pattern=("local", "global"), bias=True, sinks=True,
    )  # fmt: skip


# Table 1 of Jiang et al. 2023; table 1 of Jiang et al. 2024; the config.json of Mixtral-8x22B-v0.1;
# table 1 of OpenAI 2025 (arXiv 2508.10925).
PRESETS: dict[str, Config] = {
    "mistral-7b": Config(),
    "mixtral-8x7b": Config(experts=8, theta=1e6, window=None),
    "mixtral-8x22b": Config(
        embed=6144, layers=56, heads=48, ffn=16384, experts=8, theta=1e6, context=65536,
        window=None,
    ),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
}  # fmt: skip
