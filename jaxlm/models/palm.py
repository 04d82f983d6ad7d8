"""The parallel block: attention and feed-forward read the same x and are added to it together.

    x + attend(norm(x)) + feed(norm(x))      PaLM, GPT-J, Falcon 7B and Cohere: one norm
    x + attend(norm(x)) + feed(norm'(x))     GPT-NeoX and Falcon 40B: each its own
    x = x + attend(norm(x)); x + feed(norm'(x))      GPT-NeoX's and Falcon's other kind

PaLM (Chowdhery et al. 2022, section 2): multi-query attention, SwiGLU, no biases, rotary positions,
a tied table that starts at N(0, 1) and logits scaled by embed ** -0.5. GPT-J (Wang and Komatsuzaki
2021), GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023), Falcon (Almazrouei et al.
2023) and Cohere's Command R differ in numbers and in which weights there are.
"""

import dataclasses
from typing import Literal

import jax

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, mha, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Model
from jaxlm.ops import norm, position_bias, rope
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a PaLM-style model."""

    KIND = "palm"

    vocab: int = 256000
    """Number of token ids."""
    embed: int = 4096
    """Width of the residual stream."""
    layers: int = 32
    """Transformer blocks."""
    heads: int = 16
    """Query heads."""
    kv: int = 1
    """Key and value heads: 1 is multi-query attention."""
    head: int = 256
    """Size of one head."""
    ffn: int = 16384
    """Width of the feed-forward layer."""
    context: int = 2048
    """Sequence length the model is meant for; it decides Dynamic and LongRope scaling."""
    block: Literal["parallel", "sequential"] = "parallel"
    """Attention and feed-forward side by side, or one after the other."""
    shared_norm: bool = True
    """Whether both sublayers of a parallel block read one LayerNorm, or each its own."""
    norm_bias: bool = False
    """Whether LayerNorms have a bias."""
    attn_bias: bool = False
    """Whether the four projections of attention have biases."""
    qk_norm: bool = False
    """Whether queries and keys pass a LayerNorm of their own, each head with its own scales."""
    rotary: int | None = 256
    """Leading dimensions of each head that positions rotate; None rotates none."""
    theta: float = 10000.0
    """Base of the rotary frequencies."""
    scaling: rope.Scaling | None = None
    """Rule that stretches the rotary frequencies to a longer context."""
    alibi: float | None = None
    """Factor on ALiBi's slopes; None adds no bias to the scores."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = "silu"
    """Feed-forward nonlinearity."""
    gated: bool = True
    """Whether the feed-forward layer has a gate (SwiGLU) or is a plain two-layer one."""
    ffn_bias: bool = False
    """Whether the feed-forward layer has biases."""
    eps: float = 1e-5
    """Added to the variance in LayerNorm."""
    tied: bool = True
    """Whether the output matrix is the embedding table."""
    unembed_bias: bool = False
    """Whether logits have a bias."""
    logit_scale: float | None = None
    """Logits are multiplied by it; None leaves them as they are."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "kv", "head", "ffn", "context")
        check.divides(self, "kv", "heads")
        check.within("model", self, "rotary", least=2, most=self.head)
        if self.rotary is not None:
            check.even(self, "rotary")
        if self.scaling is not None and self.rotary is None:
            raise ValueError(
                f"model.scaling: {self.scaling} given with model.rotary=None, which rotates nothing"
            )
        if self.block == "sequential" and self.shared_norm:
            raise ValueError(
                "model.shared_norm: True given; a sequential block has two norms: give False"
            )


def spec(cfg: Config) -> param.Tree:
    """The weights."""
    p = param.shaper(
        vocab=cfg.vocab, embed=cfg.embed, heads=cfg.heads, kv=cfg.kv, head=cfg.head, ffn=cfg.ffn
    )
    # As in LLaMA's spec: outputs into the residual stream start smaller by sqrt(2 layers).
    out = param.fan_in((2 * cfg.layers) ** -0.5)

    def norm_weights() -> param.Tree:
        tree = {"scale": p("embed", init=param.ones)}
        return tree | {"bias": p("embed", init=param.zeros)} if cfg.norm_bias else tree

    def weights(kind: str) -> param.Tree:
        bias, qk_norm = cfg.attn_bias, "heads head" if cfg.qk_norm else None
        attn = mha.spec(p, out=out, bias=bias, out_bias=bias, qk_norm=qk_norm)
        tree = {
            "attn_norm": norm_weights(),
            "attn": attn,
            "ffn": ffn.spec(p, gated=cfg.gated, bias=cfg.ffn_bias, out=out),
        }
        return tree if cfg.shared_norm else tree | {"ffn_norm": norm_weights()}

    # Logits start with unit variance: PaLM's N(0, 1) under its logit scale of embed ** -0.5.
    table = cfg.embed**-0.5 / (1.0 if cfg.logit_scale is None else cfg.logit_scale)
    tree = {
        "embed": {"table": p("vocab embed", init=param.normal(table))},
        "stack": stack.spec(layers(cfg), weights),
        "norm": norm_weights(),
    }
    if not cfg.tied:
        tree |= {"unembed": p("embed -> vocab")}
    return tree | {"unembed_bias": p("vocab", init=param.zeros)} if cfg.unembed_bias else tree


def layers(cfg: Config) -> list[Layer]:
    """Every layer, in order."""
    return cfg.layers * [mha.layer(cfg.block, cfg.heads, cfg.kv, cfg.head)]


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""
    act = ffn.ACTIVATIONS[cfg.activation]
    rotary = slope = None
    if cfg.rotary is not None:
        rotary = rope.frequencies(cfg.rotary, cfg.theta, cfg.scaling, cfg.context)
    if cfg.alibi is not None:
        slope = position_bias.alibi(cfg.alibi * position_bias.slopes(cfg.heads))

    def embed(w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        return embedding_lookup.look_up(plan, w["table"], tokens)  # [B, T, D]

    def layer_norm(w: param.Tree, x: jax.Array) -> jax.Array:
        return norm.layer_norm(x, w["scale"], w.get("bias"), cfg.eps)

    def qk_norm(w: jax.Array, x: jax.Array) -> jax.Array:
        return norm.layer_norm(x, w, None, cfg.eps)

    def block(
        layer: Layer,
        w: param.Tree,
        x: jax.Array,
        at: At,
        memory: mha.Memory,
        key: jax.Array | None,
    ) -> tuple[jax.Array, mha.Out]:
        h = layer_norm(w["attn_norm"], x)
        q, k, v = mha.project(w["attn"], h, at, norm=qk_norm, rotary=rotary)
        y, entries = mha.attend(q, k, v, at, memory, plan, bias=slope)
        y = mha.output(w["attn"], y)
        if layer.kind == "sequential":
            x = x + y
            return x + ffn.apply(w["ffn"], layer_norm(w["ffn_norm"], x), act), entries
        if "ffn_norm" in w:
            h = layer_norm(w["ffn_norm"], x)
        return x + y + ffn.apply(w["ffn"], h, act), entries

    return decoder.build(
        cfg,
        spec(cfg),
        plan,
        layers=layers(cfg),
        embed=embed,
        block=block,
        norm=layer_norm,
        scale=cfg.logit_scale,
        context=rope.limit(cfg.scaling, cfg.context),
    )


def _palm(embed: int, layers: int, heads: int) -> Config:
    return Config(
        embed=embed, layers=layers, heads=heads, ffn=4 * embed, logit_scale=embed**-0.5, eps=1e-6
    )


def _neox(embed: int, layers: int, heads: int, vocab: int = 50304) -> Config:
    """GPT-NeoX's block. A quarter of each head is rotated."""
    head = embed // heads
    return Config(
        vocab=vocab, embed=embed, layers=layers, heads=heads, kv=heads, head=head, ffn=4 * embed,
        shared_norm=False, norm_bias=True, attn_bias=True, rotary=head // 4, activation="gelu",
        gated=False, ffn_bias=True, tied=False,
    )  # fmt: skip


def _falcon(embed: int, layers: int, heads: int, kv: int, shared_norm: bool = False) -> Config:
    return Config(
        vocab=65024, embed=embed, layers=layers, heads=heads, kv=kv, head=64, ffn=4 * embed,
        shared_norm=shared_norm, norm_bias=True, rotary=64, activation="gelu", gated=False,
    )  # fmt: skip


# PaLM: table 1 of Chowdhery et al. 2022. Pythia: table 1 of Biderman et al. 2023. GPT-J,
# GPT-NeoX-20B (Black et al. 2022), Falcon and Command R: as released. Vocabularies are padded for
# the parallelism each was trained with.
PRESETS: dict[str, Config] = {
    "palm-8b": _palm(4096, 32, 16),
    "palm-62b": _palm(8192, 64, 32),
    "palm-540b": _palm(18432, 118, 48),
    "gptj-6b": Config(
        vocab=50400, embed=4096, layers=28, heads=16, kv=16, head=256, ffn=16384, norm_bias=True,
        rotary=64, activation="gelu_tanh", gated=False, ffn_bias=True, tied=False,
        unembed_bias=True,
    ),
    "gpt-neox-20b": dataclasses.replace(_neox(6144, 44, 64, 50432), activation="gelu_tanh"),
    "pythia-70m": _neox(512, 6, 8),
    "pythia-160m": _neox(768, 12, 12),
    "pythia-410m": _neox(1024, 24, 16),
    "pythia-1b": _neox(2048, 16, 8),
    "pythia-1.4b": _neox(2048, 24, 16),
    "pythia-2.8b": _neox(2560, 32, 32),
    "pythia-6.9b": _neox(4096, 32, 32, 50432),
    "pythia-12b": _neox(5120, 36, 40, 50688),
    "falcon-7b": _falcon(4544, 32, 71, 1, shared_norm=True),
    "falcon-40b": _falcon(8192, 60, 128, 8),
    "falcon-180b": _falcon(14848, 80, 232, 8),
    "command-r": Config(
        embed=8192, layers=40, heads=64, kv=64, head=128, ffn=22528, context=131072, rotary=128,
        theta=8e6, logit_scale=0.0625,
    ),
}  # fmt: skip
