"""The Qwen family: LLaMA's block with biases on queries, keys and values (Qwen 2 and 2.5: Yang et
al. 2024a, 2024b) or with queries and keys normalised per head (Qwen 3: Yang et al. 2025); and with
many small experts (Qwen 3 MoE), along with a gated shared one (Qwen 1.5 and 2 MoE). Configs of
Qwen 3 may have biases too, then on the output of attention as well.
"""

import dataclasses
from typing import Literal

import jax

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, mha, moe, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Model
from jaxlm.ops import norm, rope, routing
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a Qwen model."""

    KIND = "qwen"

    vocab: int = 151936
    """Number of token ids."""
    embed: int = 4096
    """Width of the residual stream."""
    layers: int = 36
    """Transformer blocks."""
    heads: int = 32
    """Query heads."""
    kv: int = 8
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    head: int = 128
    """Size of one head."""
    ffn: int = 12288
    """Width of a dense feed-forward layer."""
    pattern: tuple[Literal["local", "global"], ...] = ("global",)
    """Kinds of layers, repeated: "local" sees the last `window` keys, "global" all of them."""
    window: int | None = None
    """Keys a query of a local layer sees, itself included."""
    theta: float = 1e6
    """Base of the rotary frequencies."""
    scaling: rope.Scaling | None = None
    """Rule that stretches the rotary frequencies to a longer context; None leaves them."""
    eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    context: int = 32768
    """Sequence length the model is meant for; RoPE itself has no limit."""
    bias: bool = False
    """Whether query, key and value projections have biases (Qwen 2)."""
    out_bias: bool = False
    """Whether the output projection of attention has a bias."""
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised per head (Qwen 3)."""
    tied: bool = False
    """Whether the output matrix is the embedding table."""
    experts: int | None = None
    """Experts of a layer; None: every layer is dense."""
    active: int = 8
    """Experts a token goes to."""
    expert_ffn: int = 768
    """Width of one expert."""
    shared_ffn: int | None = None
    """Width of the expert that sees every token, with a sigmoid gate; None: there is none."""
    renormalise: bool = True
    """Whether the chosen experts' weights are divided by their sum."""
    dense: tuple[int, ...] = ()
    """Layers, counted from 0, that are dense where the others have experts."""
    capacity: float | None = None
    """Places of an expert, as a multiple of an even share of the row; None drops no token."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "kv", "head", "ffn", "context")
        check.divides(self, "kv", "heads")
        check.even(self, "head")
        check.pattern(self)
        if self.experts is None:
            given = {"shared_ffn": self.shared_ffn, "dense": self.dense, "capacity": self.capacity}
            for name, value in given.items():
                check.field(f"model.{name}", value, not value, "left out without model.experts")
            return
        check.positive(self, "experts", "expert_ffn")
        check.within("model", self, "active", least=1, most=self.experts)
        for layer in self.dense:
            ok = 0 <= layer < self.layers
            check.field("model.dense", layer, ok, f"a layer's number, 0 .. {self.layers - 1}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer: "local" or "global", with "_moe" where it has experts."""
        dense = range(self.layers) if self.experts is None else self.dense
        reach = (self.pattern[i % len(self.pattern)] for i in range(self.layers))
        return tuple(r if i in dense else f"{r}_moe" for i, r in enumerate(reach))


def spec(cfg: Config) -> param.Tree:
    """The weights."""
    sizes = {"embed": cfg.embed, "heads": cfg.heads, "kv": cfg.kv, "head": cfg.head}
    p = param.shaper(vocab=cfg.vocab, ffn=cfg.ffn, **sizes)
    # as in llama: the residual stream's variance does not grow with depth
    out = param.fan_in((2 * cfg.layers) ** -0.5)

    def mixture() -> param.Tree:
        assert cfg.experts is not None  # or no layer is of this kind
        small = param.shaper(embed=cfg.embed, ffn=cfg.expert_ffn, expert=cfg.experts, shared=1)
        if cfg.shared_ffn is None:
            return moe.spec(small, out=out)
        wide = param.shaper(embed=cfg.embed, ffn=cfg.shared_ffn)
        shared = ffn.spec(wide, gated=True, bias=False, out=out)
        return moe.spec(small, out=out, shared=shared, shared_gate=True)

    def weights(kind: str) -> param.Tree:
        qk_norm = "head" if cfg.qk_norm else None
        attn = mha.spec(p, out=out, bias=cfg.bias, out_bias=cfg.out_bias, qk_norm=qk_norm)
        feed = {"ffn": ffn.spec(p, gated=True, bias=False, out=out)}
        return {
            "attn_norm": p("embed", init=param.ones),
            "attn": attn,
            "ffn_norm": p("embed", init=param.ones),
        } | ({"moe": mixture()} if kind.endswith("_moe") else feed)

    tree = {
        "embed": {"table": p("vocab embed", init=param.normal(cfg.embed**-0.5))},
        "stack": stack.spec(layers(cfg), weights),
        "norm": p("embed", init=param.ones),
    }
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab")}


def layers(cfg: Config) -> list[Layer]:
    """Every layer, in order."""

    def layer(kind: str) -> Layer:
        window = cfg.window if kind.startswith("local") else None
        active = cfg.active if kind.endswith("_moe") else 1
        return mha.layer(kind, cfg.heads, cfg.kv, cfg.head, window, active=active)

    return [layer(kind) for kind in cfg.kinds]


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""
    rotary = rope.frequencies(cfg.head, cfg.theta, cfg.scaling, cfg.context)
    rule = routing.Rule(cfg.active, renormalise=cfg.renormalise)

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
        q, k, v = mha.project(w["attn"], h, at, norm=rms, rotary=rotary)
        y, entries = mha.attend(q, k, v, at, memory, plan, window=layer.window)
        x = x + mha.output(w["attn"], y)
        h = rms(w["ffn_norm"], x)
        if "moe" in w:
            h, stats = moe.apply(w["moe"], h, at, rule, plan, capacity=cfg.capacity)
        else:
            h, stats = ffn.apply(w["ffn"], h, jax.nn.silu), {}
        return x + h, stats if memory is None else entries

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


def _qwen2(
    embed: int, layers: int, heads: int, kv: int, ffn: int, context: int, eps: float = 1e-6
) -> Config:
    small = embed <= 2048  # shares one table, with fewer of the padded ids
    return Config(
        vocab=151936 if small else 152064, embed=embed, layers=layers, heads=heads, kv=kv,
        head=embed // heads, ffn=ffn, context=context, eps=eps, bias=True, tied=small,
    )  # fmt: skip


def _qwen3(embed: int, layers: int, heads: int, kv: int, ffn: int, tied: bool = False) -> Config:
    return Config(
        embed=embed, layers=layers, heads=heads, kv=kv, ffn=ffn, context=40960, qk_norm=True,
        tied=tied,
    )  # fmt: skip


# The configs released with each: Yang et al. 2024a, table 1; 2024b, table 1; 2025, tables 1 and 2.
PRESETS: dict[str, Config] = {
    "qwen2-0.5b": _qwen2(896, 24, 14, 2, 4864, 131072),
    "qwen2-1.5b": _qwen2(1536, 28, 12, 2, 8960, 131072),
    "qwen2-7b": _qwen2(3584, 28, 28, 4, 18944, 131072),
    "qwen2-72b": _qwen2(8192, 80, 64, 8, 29568, 131072, 1e-5),
    "qwen2.5-0.5b": _qwen2(896, 24, 14, 2, 4864, 32768),
    "qwen2.5-1.5b": _qwen2(1536, 28, 12, 2, 8960, 131072),
    "qwen2.5-3b": _qwen2(2048, 36, 16, 2, 11008, 32768),
    "qwen2.5-7b": _qwen2(3584, 28, 28, 4, 18944, 131072),
    "qwen2.5-14b": _qwen2(5120, 48, 40, 8, 13824, 131072, 1e-5),
    "qwen2.5-32b": _qwen2(5120, 64, 40, 8, 27648, 131072, 1e-5),
    "qwen2.5-72b": _qwen2(8192, 80, 64, 8, 29568, 131072, 1e-5),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 8, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 8, 12288),
    "qwen3-14b": _qwen3(5120, 40, 40, 8, 17408),
    "qwen3-32b": _qwen3(5120, 64, 64, 8, 25600),
    "qwen3-30b-a3b": dataclasses.replace(_qwen3(2048, 48, 32, 4, 6144), experts=128),
    "qwen3-235b-a22b": dataclasses.replace(
        _qwen3(4096, 94, 64, 4, 12288), experts=128, expert_ffn=1536
    ),
    "qwen1.5-moe-a2.7b": Config(
        embed=2048, layers=24, heads=16, kv=16, ffn=5632, context=8192, bias=True, experts=60,
        active=4, expert_ffn=1408, shared_ffn=5632, renormalise=False,
    ),
    "qwen2-57b-a14b": Config(
        embed=3584, layers=28, heads=28, kv=4, ffn=18944, context=131072, bias=True, experts=64,
        active=8, expert_ffn=2560, shared_ffn=20480, renormalise=False,
    ),
}  # fmt: skip
