"""The LLaMA family: RMSNorm, RoPE, SwiGLU, grouped-query attention. Touvron et al. 2023 (LLaMA,
LLaMA 2), Grattafiori et al. 2024 (LLaMA 3).

Also Chinchilla's shape (Hoffmann et al. 2022, table A9), and, through fields that are numbers or
that add a weight, QK-norm, projection biases, sliding windows and tied embeddings.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models import attention, check, decoder, stack
from jaxlm.models.model import Model
from jaxlm.ops import linear, norm, rope
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan

ACTIVATIONS = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a LLaMA-style model."""

    vocab: int = 32000
    """Token ids the model knows."""
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
    eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    context: int = 2048
    """Sequence length the model is meant for; RoPE itself has no limit."""
    window: int | None = None
    """Keys a query sees, itself included; None sees all before it."""
    softcap: float | None = None
    """Logits are capped to +-softcap by tanh; None leaves them as they are."""
    activation: Literal["silu", "gelu"] = "silu"
    """Feed-forward nonlinearity."""
    gated: bool = True
    """Whether the feed-forward layer has a gate (SwiGLU) or is a plain two-layer one."""
    bias: bool = False
    """Whether query, key and value projections have biases (as in Qwen 2)."""
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised per head (Henry et al. 2020; Qwen 3)."""
    tied: bool = False
    """Whether the output matrix is the embedding table."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "kv", "head", "ffn", "context")
        check.divides(self, "kv", "heads")
        check.even(self, "head", "rotary embedding turns pairs")


def spec(cfg: Config) -> param.Tree:
    """The weights."""
    p = param.shaper(
        vocab=cfg.vocab, embed=cfg.embed, heads=cfg.heads, kv=cfg.kv, head=cfg.head, ffn=cfg.ffn
    )
    # Outputs into the residual stream start smaller by sqrt(2 layers), so that its variance does
    # not grow with depth (Radford et al. 2019, section 2.3).
    out = param.fan_in((2 * cfg.layers) ** -0.5)

    def layer(kind: str) -> param.Tree:
        attn = {
            "q": p("embed -> heads head"),
            "k": p("embed -> kv head"),
            "v": p("embed -> kv head"),
            "o": p("heads head -> embed", init=out),
        }
        if cfg.bias:
            attn |= {
                "q_bias": p("heads head", init=param.zeros),
                "k_bias": p("kv head", init=param.zeros),
                "v_bias": p("kv head", init=param.zeros),
            }
        if cfg.qk_norm:
            attn |= {"q_norm": p("head", init=param.ones), "k_norm": p("head", init=param.ones)}
        ffn = {"up": p("embed -> ffn"), "down": p("ffn -> embed", init=out)}
        if cfg.gated:
            ffn |= {"gate": p("embed -> ffn")}
        return {
            "attn_norm": p("embed", init=param.ones),
            "attn": attn,
            "ffn_norm": p("embed", init=param.ones),
            "ffn": ffn,
        }

    tree = {
        "embed": {"table": p("vocab embed", init=param.normal(cfg.embed**-0.5))},
        "stack": stack.spec([(cfg.layers, ("global",))], layer),
        "norm": p("embed", init=param.ones),
    }
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab")}


def reaches(cfg: Config) -> list[attention.Reach]:
    """What each layer's attention costs."""
    return [attention.reach(cfg.window, cfg.heads, cfg.head)] * cfg.layers


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""
    rotary = rope.frequencies(cfg.head, cfg.theta)

    def embed(w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        return jnp.take(plan.gather(w["table"], "vocab embed"), tokens, axis=0)

    def block(
        kind: str,
        w: param.Tree,
        x: jax.Array,
        at: At,
        memory: attention.Memory,
        key: jax.Array | None,
    ) -> tuple[jax.Array, attention.Out]:
        h = norm.rms_norm(x, w["attn_norm"], cfg.eps)
        h, entries = attend(w["attn"], h, at, memory)
        x = x + h
        x = x + feed(w["ffn"], norm.rms_norm(x, w["ffn_norm"], cfg.eps))
        return x, entries

    def attend(w: param.Tree, h: jax.Array, at: At, memory: attention.Memory) -> tuple:
        q = linear.einsum("BTD,DNH->BTNH", h, w["q"])
        k = linear.einsum("BTD,DKH->BTKH", h, w["k"])
        v = linear.einsum("BTD,DKH->BTKH", h, w["v"])
        if "q_bias" in w:
            q, k, v = (a + w[f"{n}_bias"].astype(a.dtype) for n, a in zip("qkv", (q, k, v)))
        if "q_norm" in w:
            q = norm.rms_norm(q, w["q_norm"], cfg.eps)
            k = norm.rms_norm(k, w["k_norm"], cfg.eps)
        q, k = rope.apply(q, at.positions, rotary), rope.apply(k, at.positions, rotary)
        y, entries = attention.attend(q, k, v, at, memory, plan, window=cfg.window)
        return linear.einsum("BTNH,NHD->BTD", y, w["o"]), entries

    def feed(w: param.Tree, h: jax.Array) -> jax.Array:
        up = linear.einsum("BTD,DF->BTF", h, w["up"])
        act = ACTIVATIONS[cfg.activation]
        gated = "gate" in w
        up = act(linear.einsum("BTD,DF->BTF", h, w["gate"])) * up if gated else act(up)
        return linear.einsum("BTF,FD->BTD", up, w["down"])

    return decoder.build(
        cfg,
        spec(cfg),
        plan,
        embed=embed,
        block=block,
        norm=lambda w, x: norm.rms_norm(x, w, cfg.eps),
        memory=lambda kind, batch, slots: attention.cache(batch, slots, cfg.kv, cfg.head),
        softcap=cfg.softcap,
        context=None,
    )


def _llama1(embed: int, layers: int, heads: int, ffn: int, context: int = 2048) -> Config:
    return Config(
        embed=embed, layers=layers, heads=heads, kv=heads, ffn=ffn, eps=1e-6, context=context
    )


def _llama3(embed: int, layers: int, heads: int, ffn: int) -> Config:
    return Config(
        vocab=128256, embed=embed, layers=layers, heads=heads, kv=8, ffn=ffn, theta=500000.0,
        context=8192,
    )  # fmt: skip


# Table 2 of Touvron et al. 2023a; table 1 of 2023b; table 3 of Grattafiori et al. 2024.
# Chinchilla: table A9 of Hoffmann et al. 2022. Its 70B include 5.4B of Transformer-XL position
# projections (80 layers of 8192 x 8192) that rotary embedding does without.
PRESETS: dict[str, Config] = {
    "llama-7b": _llama1(4096, 32, 32, 11008),
    "llama-13b": _llama1(5120, 40, 40, 13824),
    "llama-33b": _llama1(6656, 60, 52, 17920),
    "llama-65b": _llama1(8192, 80, 64, 22016),
    "llama2-70b": Config(embed=8192, layers=80, heads=64, kv=8, ffn=28672, context=4096),
    "llama3-8b": _llama3(4096, 32, 32, 14336),
    "llama3-70b": _llama3(8192, 80, 64, 28672),
    "llama3-405b": _llama3(16384, 126, 128, 53248),
    "chinchilla-70b": Config(
        embed=8192, layers=80, heads=64, kv=64, ffn=32768, activation="gelu", gated=False, tied=True
    ),
}
