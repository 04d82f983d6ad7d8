"""T5 v1.0 and v1.1: an encoder that reads a source, a decoder that writes a target.

Raffel et al. 2020, section 2.1: RMSNorm before each sublayer, no biases, scores without 1/sqrt(d)
(the start of the q matrix holds it), a learnt bias by distance that the layers of a stack share.
v1.1 gates the feed-forward layer (Shazeer 2020) and has an output matrix of its own.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, mha, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Cache, Hidden, Model
from jaxlm.ops import attention as ops_attention
from jaxlm.ops import linear, norm, position_bias
from jaxlm.ops.attention import At
from jaxlm.ops.dropout import dropout, split
from jaxlm.parallel.plan import Plan

# Input of the decoder: the encoder's x [B, S, D] (None where `cross` has put its keys and values
# into the weights), and the places of its tokens.
Source = tuple[jax.Array | None, At]


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a T5-style model."""

    KIND = "t5"

    vocab: int = 32128
    """Number of token ids."""
    embed: int = 512
    """Width of the residual stream."""
    encoder: int = 6
    """Layers of the encoder."""
    layers: int = 6
    """Layers of the decoder."""
    heads: int = 8
    """Attention heads."""
    head: int = 64
    """Size of one head."""
    ffn: int = 2048
    """Width of the feed-forward layer."""
    context: int = 512
    """Source length the model is meant for; distances have no limit."""
    act: Literal["relu", "gelu_tanh", "gelu", "silu"] = "relu"
    """Nonlinearity of the feed-forward layer (v1.1: gelu_tanh)."""
    gated: bool = False
    """Whether the feed-forward layer has a gate (v1.1)."""
    buckets: int = 32
    """Buckets of distances, each with a learnt bias a head."""
    farthest: int = 128
    """Distances from here on share the last bucket."""
    tied: bool = True
    """Whether the output matrix is the embedding table (v1.0)."""
    scaled: bool = True
    """Whether logits are multiplied by embed ** -0.5, as v1.0 does with its tied table."""
    start: int = 0
    """The token that the decoder reads before its first one: T5's pad."""
    eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    dropout: float = 0.0
    """Rate of dropout on embeddings, sublayer outputs and stack outputs while training."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "encoder", "layers", "heads", "head", "ffn")
        check.positive(self, "context")
        if self.buckets < 4 or self.buckets % 2 or self.farthest <= self.buckets // 2:
            raise ValueError(
                f"model.buckets: {self.buckets} given with model.farthest={self.farthest}; it must "
                "be even and at least 4, and model.farthest above half of it"
            )
        check.within("model", self, "start", least=0, below=self.vocab)
        check.within("model", self, "dropout", least=0, below=1)


def spec(cfg: Config) -> param.Tree:
    """The weights: "encoder" and "stack" (the decoder) are stacks of layers.

    Initialised as T5's own code does: the table from N(0, 1), matrices by their fan-in, q smaller
    by sqrt(head).
    """
    p = param.shaper(
        vocab=cfg.vocab,
        embed=cfg.embed,
        heads=cfg.heads,
        kv=cfg.heads,
        head=cfg.head,
        ffn=cfg.ffn,
        buckets=cfg.buckets,
    )
    width = param.normal(cfg.embed**-0.5)

    attn = mha.spec(p, out=param.fan_in())
    attn |= {"q": p("embed -> heads head", init=param.fan_in(cfg.head**-0.5))}

    def weights(kind: str) -> param.Tree:
        parts = {"attn": attn, "attn_norm": p("embed", init=param.ones)}
        if kind == "decoder":
            parts |= {"cross": attn, "cross_norm": p("embed", init=param.ones)}
        feed = ffn.spec(p, gated=cfg.gated, bias=False, out=param.fan_in())
        return parts | {"ffn": feed, "ffn_norm": p("embed", init=param.ones)}

    tree = {
        "embed": {"table": p("vocab embed", init=param.normal(1.0))},
        "encoder": stack.spec(layers(cfg)[: cfg.encoder], weights),
        "encoder_bias": p("buckets heads", init=width),
        "encoder_norm": p("embed", init=param.ones),
        "stack": stack.spec(layers(cfg)[cfg.encoder :], weights),
        "bias": p("buckets heads", init=width),
        "norm": p("embed", init=param.ones),
    }
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab")}


def layers(cfg: Config) -> list[Layer]:
    """Every layer, the encoder's first; a layer of the decoder reads the source too."""
    sizes = (cfg.heads, cfg.heads, cfg.head)
    read, write = (
        mha.layer("encoder", *sizes, over="around"),
        mha.layer("decoder", *sizes, cross=True),
    )
    return cfg.encoder * [read] + cfg.layers * [write]


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`.

    Its `hidden` is the decoder's and takes source=(x, at), see `Source`: a decoder token reads the
    source tokens of its own segment, so that several pairs may be packed into a row.
    """
    sp, written = spec(cfg), layers(cfg)[cfg.encoder :]

    def hidden(
        params: param.Tree,
        tokens: jax.Array,
        at: At,
        cache: Cache | None = None,
        key: jax.Array | None = None,
        source: Source | None = None,
    ) -> Hidden:
        if source is None:
            raise ValueError("t5 writes a target for a source: hidden needs source=(x, at)")
        reading = decoder.build(
            cfg,
            sp,
            plan,
            layers=written,
            embed=functools.partial(_embed, cfg, plan),
            block=functools.partial(_decode, cfg, plan, params["bias"]),
            norm=lambda w, x: norm.rms_norm(x, w, cfg.eps),
            context=None,
        )
        # the decoder's draws are not the encoder's
        out = reading.hidden(params, tokens, at, cache, _fold(key, 2**31 - 3), source=source)
        return out._replace(x=dropout(out.x, cfg.dropout, _fold(key, 2**31 - 4)))

    def unembed(head: param.Tree, x: jax.Array) -> jax.Array:
        whole = stack.gathered(head, sp, plan)
        return decoder.logits(whole, x, scale=cfg.embed**-0.5 if cfg.scaled else None)

    def empty(batch: int, slots: int) -> tuple[dict[str, param.Param], ...]:
        return tuple(layer.cache(batch, slots) for layer in written)

    encode = functools.partial(_encode, cfg, plan)
    return Model(
        cfg, sp, hidden, decoder.head, unembed, empty, None,
        kind="encoder_decoder", encode=encode, cross=_cross,
    )  # fmt: skip


def _embed(
    cfg: Config, plan: Plan, w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None
) -> jax.Array:
    x = embedding_lookup.look_up(plan, w["table"], tokens)  # [B, T, D]
    return dropout(x, cfg.dropout, _fold(key, 2**31 - 1))


def _encode(
    cfg: Config,
    plan: Plan,
    params: param.Tree,
    tokens: jax.Array,
    at: At,
    key: jax.Array | None = None,
) -> jax.Array:
    """The encoder's output [B, S, D]."""
    x = _embed(cfg, plan, params["embed"], tokens, at, key).astype(plan.dtype)
    x = plan.constrain(x, "batch seq embed")
    act, table = ffn.ACTIVATIONS[cfg.act], params["encoder_bias"]

    def layer(
        kind: str, w: param.Tree, x: jax.Array, at: At, _: Any, key: jax.Array | None
    ) -> tuple:
        keys = split(key, 2)
        h = norm.rms_norm(x, w["attn_norm"], cfg.eps)
        h, _ = _attend(cfg, plan, w["attn"], h, at, None, table, causal=False)
        x = x + dropout(h, cfg.dropout, keys[0])
        h = ffn.apply(w["ffn"], norm.rms_norm(x, w["ffn_norm"], cfg.eps), act)
        return x + dropout(h, cfg.dropout, keys[1]), {}

    x, _ = stack.apply(params["encoder"], x, layer, plan, at, spec(cfg)["encoder"], key)
    x = norm.rms_norm(x, params["encoder_norm"], cfg.eps)
    return dropout(x, cfg.dropout, _fold(key, 2**31 - 2))


def _decode(
    cfg: Config,
    plan: Plan,
    table: jax.Array,
    layer: Layer,
    w: param.Tree,
    x: jax.Array,
    rows: tuple[At, Source],
    memory: mha.Memory,
    key: jax.Array | None,
) -> tuple[jax.Array, mha.Out]:
    """A layer of the decoder: its own past, the source, the feed-forward layer."""
    (at, source), keys = rows, split(key, 3)
    h = norm.rms_norm(x, w["attn_norm"], cfg.eps)
    h, entries = _attend(cfg, plan, w["attn"], h, at, memory, table, causal=True)
    x = x + dropout(h, cfg.dropout, keys[0])
    h = _look(w["cross"], norm.rms_norm(x, w["cross_norm"], cfg.eps), at, source)
    x = x + dropout(h, cfg.dropout, keys[1])
    act = ffn.ACTIVATIONS[cfg.act]
    h = ffn.apply(w["ffn"], norm.rms_norm(x, w["ffn_norm"], cfg.eps), act)
    return x + dropout(h, cfg.dropout, keys[2]), entries


def _attend(
    cfg: Config,
    plan: Plan,
    w: param.Tree,
    h: jax.Array,
    at: At,
    memory: mha.Memory,
    table: jax.Array,
    causal: bool,
) -> tuple[jax.Array, mha.Out]:
    q, k, v = mha.project(w, h, at)
    near = position_bias.bucketed(table, cfg.farthest, causal)
    y, out = mha.attend(q, k, v, at, memory, plan, causal=causal, scale=1.0, bias=near)
    return mha.output(w, y), out


def _look(w: param.Tree, h: jax.Array, at: At, source: Source) -> jax.Array:
    """Cross-attention of the decoder over the source: no bias, no order."""
    x, source_at = source
    read = w if x is None else _project(w, x)
    q = linear.biased("BTD,DNH->BTNH", h, w, "q")
    y = ops_attention.attend(
        q, read["keys"], read["values"], at, source_at, causal=False, scale=1.0
    )
    return mha.output(w, y)


def _project(w: param.Tree, x: jax.Array) -> param.Tree:
    keys, values = (linear.biased("BSD,DNH->BSNH", x, w, n) for n in "kv")  # [B, S, N, H]
    return {"keys": keys, "values": values}


def _cross(params: param.Tree, x: jax.Array) -> param.Tree:
    """The weights with the keys and values of x in every layer of the decoder."""

    stack: param.Tree = {}
    for number, segment in params["stack"].items():
        stack[number] = {}
        for kind, w in segment.items():
            read = jax.vmap(_project, (0, None))(w["cross"], x)  # [layers, B, S, N, H] each
            stack[number][kind] = w | {"cross": w["cross"] | read}
    return params | {"stack": stack}


def _fold(key: jax.Array | None, number: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def _size(embed: int, layers: int, heads: int, head: int, ffn: int) -> Config:
    return Config(embed=embed, encoder=layers, layers=layers, heads=heads, head=head, ffn=ffn)


def _gated(cfg: Config) -> Config:
    return dataclasses.replace(cfg, act="gelu_tanh", gated=True, tied=False, scaled=False)


# Raffel et al. 2020, section 3.7; v1.1 as released with their code.
PRESETS: dict[str, Config] = {
    "t5-small": _size(512, 6, 8, 64, 2048),
    "t5-base": _size(768, 12, 12, 64, 3072),
    "t5-large": _size(1024, 24, 16, 64, 4096),
    "t5-3b": _size(1024, 24, 32, 128, 16384),
    "t5-11b": _size(1024, 24, 128, 128, 65536),
    "t5-v1.1-small": _gated(_size(512, 8, 6, 64, 1024)),
    "t5-v1.1-base": _gated(_size(768, 12, 12, 64, 2048)),
    "t5-v1.1-large": _gated(_size(1024, 24, 16, 64, 2816)),
    "t5-v1.1-xl": _gated(_size(2048, 24, 32, 64, 5120)),
    "t5-v1.1-xxl": _gated(_size(4096, 24, 64, 64, 10240)),
}
