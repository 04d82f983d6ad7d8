"""The LLaMA family: RMSNorm, RoPE, SwiGLU, grouped-query attention. Touvron et al. 2023 (LLaMA,
LLaMA 2), Roziere et al. 2023 (Code Llama), Grattafiori et al. 2024 (LLaMA 3).

    x = x + attend(norm(x))      x = x + feed(norm'(x))       LLaMA, Phi-3
    x = x + norm(attend(x))      x = x + norm'(feed(x))       OLMo 2

Also Chinchilla's shape (Hoffmann et al. 2022, table A9), Phi-3 (Abdin et al. 2024) and OLMo 2
(OLMo team 2024), which differ in numbers and in which weights there are.
"""

import dataclasses
from typing import Literal

import jax

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, mha, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Model
from jaxlm.ops import norm, rope
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a LLaMA-style model."""

    KIND = "llama"

    vocab: int = 32000
    """Number of token ids."""
    embed: int = 4096
    """Width of the residual stream."""
    layers: int = 32
    """Transformer blocks."""
    heads: int = 32
    """Query heads."""
    kv: int = 32
    """Key and value heads; fewer than `heads` is grouped-query attention, 1 is multi-query."""
    head: int = 128
    """Size of one head."""
    ffn: int = 11008
    """Width of the feed-forward layer."""
    theta: float = 10000.0
    """Base of the rotary frequencies."""
    scaling: rope.Scaling | None = None
    """Rule that stretches the rotary frequencies to a longer context; None leaves them."""
    rotary_share: float = 1.0
    """Fraction of each head's dimensions, from the first, that RoPE rotates; 1 rotates all."""
    eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    context: int = 2048
    """Sequence length the model is run at. It decides Dynamic and LongRope scaling; RoPE itself has
    no limit."""
    window: int | None = None
    """Keys a query sees, itself included; None sees all before it."""
    softcap: float | None = None
    """Logits are capped to +-softcap by tanh; None leaves them as they are."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = "silu"
    """Feed-forward nonlinearity."""
    gated: bool = True
    """Whether the feed-forward layer has a gate (SwiGLU) or is a plain two-layer one."""
    norm: Literal["pre", "post"] = "pre"
    """Place of the norms: before the sublayers, or between them and the residual stream."""
    bias: bool = False
    """Whether query, key and value projections have biases (as in Qwen 2)."""
    out_bias: bool = False
    """Whether attention's output projection has a bias."""
    ffn_bias: bool = False
    """Whether the feed-forward layer has biases."""
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised per head (Henry et al. 2020; Qwen 3)."""
    qk_norm_all: bool = False
    """Whether queries and keys are RMS-normalised over all heads together (OLMo 2)."""
    tied: bool = False
    """Whether the output matrix is the embedding table."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "kv", "head", "ffn", "context")
        check.divides(self, "kv", "heads")
        check.even(self, "head")
        fits = f"an even number of model.head={self.head} dimensions, 2 or more, not {self.rotary}"
        ok = self.rotary % 2 == 0 and 2 <= self.rotary <= self.head
        check.field("model.rotary_share", self.rotary_share, ok, fits)
        if self.qk_norm and self.qk_norm_all:
            raise ValueError("model.qk_norm_all: True given with model.qk_norm; set one of them")

    @property
    def rotary(self) -> int:
        """Dimensions of a head that positions rotate."""
        return int(self.head * self.rotary_share)


def spec(cfg: Config) -> param.Tree:
    """The weights."""
    p = param.shaper(
        vocab=cfg.vocab, embed=cfg.embed, heads=cfg.heads, kv=cfg.kv, head=cfg.head, ffn=cfg.ffn
    )
    # Outputs into the residual stream start smaller by sqrt(2 layers), so that its variance does
    # not grow with depth (Radford et al. 2019, section 2.3).
    out = param.fan_in((2 * cfg.layers) ** -0.5)
    scale = p("embed", init=param.ones)
    qk_norm = "heads head" if cfg.qk_norm_all else "head" if cfg.qk_norm else None

    def weights(kind: str) -> param.Tree:
        tree = {
            "attn": mha.spec(p, out=out, bias=cfg.bias, out_bias=cfg.out_bias, qk_norm=qk_norm),
            "ffn": ffn.spec(p, gated=cfg.gated, bias=cfg.ffn_bias, out=out),
        }
        if cfg.norm == "post":
            return tree | {"attn_post_norm": scale, "ffn_post_norm": scale}
        return tree | {"attn_norm": scale, "ffn_norm": scale}

    tree = {
        "embed": {"table": p("vocab embed", init=param.normal(cfg.embed**-0.5))},
        "stack": stack.spec(layers(cfg), weights),
        "norm": p("embed", init=param.ones),
    }
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab")}


def layers(cfg: Config) -> list[Layer]:
    """Every layer, in order."""
    return cfg.layers * [mha.layer("global", cfg.heads, cfg.kv, cfg.head, cfg.window)]


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""
    rotary = rope.frequencies(cfg.rotary, cfg.theta, cfg.scaling, cfg.context)

    def embed(w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        return embedding_lookup.look_up(plan, w["table"], tokens)  # [B, T, D]

    def rms(w: jax.Array, x: jax.Array) -> jax.Array:
        return norm.rms_norm(x, w, cfg.eps)

    def qk_norm(w: jax.Array, x: jax.Array) -> jax.Array:
        # w [H]: each head of x [B, T, N, H] by itself; w [N, H]: all heads together
        rows = x.reshape(*x.shape[:2], -1, w.size)
        return rms(w.reshape(-1), rows).reshape(x.shape)

    def block(
        layer: Layer,
        w: param.Tree,
        x: jax.Array,
        at: At,
        memory: mha.Memory,
        key: jax.Array | None,
    ) -> tuple[jax.Array, mha.Out]:
        def normed(name: str, x: jax.Array) -> jax.Array:
            return rms(w[name], x) if name in w else x

        h = normed("attn_norm", x)
        q, k, v = mha.project(w["attn"], h, at, norm=qk_norm, rotary=rotary)
        y, out = mha.attend(q, k, v, at, memory, plan, window=layer.window)
        x = x + normed("attn_post_norm", mha.output(w["attn"], y))
        h = ffn.apply(w["ffn"], normed("ffn_norm", x), ffn.ACTIVATIONS[cfg.activation])
        return x + normed("ffn_post_norm", h), out

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


def _llama1(embed: int, layers: int, heads: int, ffn: int) -> Config:
    return Config(embed=embed, layers=layers, heads=heads, kv=heads, ffn=ffn, eps=1e-6)


def _llama2(embed: int, layers: int, heads: int, kv: int, ffn: int) -> Config:
    return Config(embed=embed, layers=layers, heads=heads, kv=kv, ffn=ffn, context=4096)


def _code(plain: Config, vocab: int = 32016) -> Config:
    return dataclasses.replace(plain, vocab=vocab, theta=1e6, context=16384)


def _llama3(embed: int, layers: int, heads: int, ffn: int, head: int = 128) -> Config:
    return Config(
        vocab=128256, embed=embed, layers=layers, heads=heads, kv=8, head=head, ffn=ffn,
        theta=500000.0, context=8192,
    )  # fmt: skip


def _llama31(plain: Config, factor: float = 8.0, tied: bool = False) -> Config:
    scaling = rope.Llama3(factor=factor)
    return dataclasses.replace(plain, context=131072, scaling=scaling, tied=tied)


def _olmo2(embed: int, layers: int, heads: int, kv: int, ffn: int) -> Config:
    return Config(
        vocab=100352, embed=embed, layers=layers, heads=heads, kv=kv, ffn=ffn, theta=500000.0,
        eps=1e-6, context=4096, norm="post", qk_norm_all=True,
    )  # fmt: skip


def _phi3(embed: int, layers: int, heads: int, kv: int, ffn: int) -> Config:
    return Config(
        vocab=32064, embed=embed, layers=layers, heads=heads, kv=kv, head=embed // heads, ffn=ffn,
        context=4096, window=2047,
    )  # fmt: skip


# Table 2 of Touvron et al. 2023a; table 1 of 2023b; section 2 of Roziere et al. 2023; table 3 of
# Grattafiori et al. 2024; model cards of LLaMA 3.2; OLMo team 2024; section 2 of Abdin et al. 2024.
# Chinchilla: table A9 of Hoffmann et al. 2022. Its 70B include 5.4B of Transformer-XL position
# projections (80 layers of 8192 x 8192) that rotary embedding does without.
PRESETS: dict[str, Config] = {
    "llama-7b": _llama1(4096, 32, 32, 11008),
    "llama-13b": _llama1(5120, 40, 40, 13824),
    "llama-33b": _llama1(6656, 60, 52, 17920),
    "llama-65b": _llama1(8192, 80, 64, 22016),
    "llama2-7b": _llama2(4096, 32, 32, 32, 11008),
    "llama2-13b": _llama2(5120, 40, 40, 40, 13824),
    "llama2-70b": _llama2(8192, 80, 64, 8, 28672),
    "codellama-7b": _code(_llama2(4096, 32, 32, 32, 11008)),
    "codellama-13b": _code(_llama2(5120, 40, 40, 40, 13824)),
    "codellama-34b": _code(_llama2(8192, 48, 64, 8, 22016), vocab=32000),
    "codellama-70b": _code(_llama2(8192, 80, 64, 8, 28672)),
    "llama3-8b": _llama3(4096, 32, 32, 14336),
    "llama3-70b": _llama3(8192, 80, 64, 28672),
    "llama3-405b": _llama3(16384, 126, 128, 53248),
    "llama3.1-8b": _llama31(_llama3(4096, 32, 32, 14336)),
    "llama3.1-70b": _llama31(_llama3(8192, 80, 64, 28672)),
    "llama3.1-405b": _llama31(_llama3(16384, 126, 128, 53248)),
    "llama3.2-1b": _llama31(_llama3(2048, 16, 32, 8192, head=64), factor=32.0, tied=True),
    "llama3.2-3b": _llama31(_llama3(3072, 28, 24, 8192), factor=32.0, tied=True),
    "olmo2-1b": _olmo2(2048, 16, 16, 16, 8192),
    "olmo2-7b": _olmo2(4096, 32, 32, 32, 11008),
    "olmo2-13b": _olmo2(5120, 40, 40, 40, 13824),
    "olmo2-32b": _olmo2(5120, 64, 40, 8, 27648),
    "phi3-mini-4k": _phi3(3072, 32, 32, 32, 8192),
    "phi3-medium-4k": _phi3(5120, 40, 40, 10, 17920),
    "chinchilla-70b": Config(
        embed=8192, layers=80, heads=64, kv=64, ffn=32768, activation="gelu_tanh", gated=False,
        tied=True,
    ),
}  # fmt: skip
