"""BERT, RoBERTa and Longformer: encoders that read both ways and fill in masked tokens.

Devlin et al. 2019 (BERT): learned positions and segment types, LayerNorm after each sublayer, exact
GELU. Liu et al. 2019 (RoBERTa): the same model, trained longer. Beltagy et al. 2020 (Longformer):
RoBERTa with attention to near tokens, and to global ones by projections of their own.

A token attends to its whole segment (`At`), so there is no cache. Global tokens are `At.shared`.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, mha, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Cache, Hidden, Model
from jaxlm.ops import linear, norm
from jaxlm.ops.attention import At
from jaxlm.ops.dropout import dropout, split
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a BERT-style model."""

    KIND = "bert"

    vocab: int = 30522
    """Number of token ids."""
    embed: int = 768
    """Width of the residual stream; a multiple of `heads`."""
    layers: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads, each of size embed / heads."""
    ffn: int = 3072
    """Width of the feed-forward layer."""
    context: int = 512
    """Learned positions: the longest sequence the model can read."""
    offset: int = 0
    """Rows of the table before that of position 0, which nothing reads (RoBERTa has 2)."""
    types: int = 2
    """Segment types, such as question and answer; type 0 where none are given."""
    act: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """Nonlinearity of the feed-forward layers."""
    head_act: Literal["gelu", "gelu_tanh", "relu"] | None = None
    """Nonlinearity of the head; None: that of the feed-forward layers, as in BERT. The heads of
    RoBERTa and Longformer are exact GELU ("gelu"), whatever their layers have."""
    eps: float = 1e-12
    """Added to the variance in LayerNorm."""
    window: tuple[int, ...] = ()
    """Window of each layer: only keys nearer than this on either side are seen, and global tokens
    (Longformer, whose attention_window is 2 (window - 1)). Empty: all layers see everything."""
    pooler: bool = False
    """Whether there is a layer that summarises the text from its first token (`pool`)."""
    dropout: float = 0.0
    """Rate of dropout on embeddings and sublayer outputs while training."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "embed", "layers", "heads", "ffn", "context", "types")
        check.divides(self, "heads", "embed")
        check.within("model", self, "offset", least=0)
        if self.window and (len(self.window) != self.layers or min(self.window) < 1):
            raise ValueError(
                f"model.window: {self.window} given; it must be a window of at least 1 for each of "
                f"the {self.layers} layers, or () for none"
            )
        check.within("model", self, "dropout", least=0, below=1)

    @property
    def head(self) -> int:
        """Size of one head."""
        return self.embed // self.heads


def spec(cfg: Config) -> param.Tree:
    """The weights, matrices and tables from N(0, 0.02) as Devlin et al."""
    p = param.shaper(
        vocab=cfg.vocab,
        seq=cfg.context + cfg.offset,
        types=cfg.types,
        embed=cfg.embed,
        heads=cfg.heads,
        kv=cfg.heads,
        head=cfg.head,
        ffn=cfg.ffn,
    )
    small = param.normal(0.02)

    def norm_weights() -> param.Tree:
        return {"scale": p("embed", init=param.ones), "bias": p("embed", init=param.zeros)}

    def dense() -> param.Tree:
        return {"dense": p("embed -> embed", init=small), "bias": p("embed", init=param.zeros)}

    def weights(kind: str) -> param.Tree:
        attn = mha.spec(p, out=small, init=small, bias=True, out_bias=True)
        if kind != "full":  # global tokens read with projections of their own
            attn |= {"global": {n: w for n, w in attn.items() if n not in ("o", "o_bias")}}
        return {
            "attn": attn,
            "attn_norm": norm_weights(),
            "ffn": ffn.spec(p, gated=False, bias=True, out=small, init=small),
            "ffn_norm": norm_weights(),
        }

    tree = {
        "embed": {
            "table": p("vocab embed", init=small),
            "positions": p("seq embed", init=small),
            "types": p("types embed", init=small),
            "norm": norm_weights(),
        },
        "stack": stack.spec(layers(cfg), weights),
        "mlm": dense() | {"norm": norm_weights()},
        "unembed_bias": p("vocab", init=param.zeros),
    }
    return tree | {"pooler": dense()} if cfg.pooler else tree


def layers(cfg: Config) -> list[Layer]:
    """Every layer, in order; global tokens, which see all keys, are not in its window."""
    sizes = (cfg.heads, cfg.heads, cfg.head)
    near = [mha.layer(f"near{w}", *sizes, w, over="around") for w in cfg.window]
    return near or cfg.layers * [mha.layer("full", *sizes, over="around")]


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`.

    Its `hidden` takes one argument more: types int32[B, T], the segment type of each token, 0
    everywhere if None.
    """
    act, head_act = ffn.ACTIVATIONS[cfg.act], ffn.ACTIVATIONS[cfg.head_act or cfg.act]
    of_kind = {layer.kind: layer for layer in layers(cfg)}

    def hidden(
        params: param.Tree,
        tokens: jax.Array,
        at: At,
        cache: Cache | None = None,
        key: jax.Array | None = None,
        types: jax.Array | None = None,
    ) -> Hidden:
        if cache is not None:
            raise ValueError("bidirectional models have no KV cache: bert continues no text")
        first = None if key is None else jax.random.fold_in(key, 2**31 - 1)
        x = dropout(embed(params["embed"], tokens, at, types), cfg.dropout, first)
        x = plan.constrain(x.astype(plan.dtype), "batch seq embed")

        def layer(kind: str, w: Any, x: jax.Array, at: At, _: Any, key: Any) -> tuple:
            return block(of_kind[kind], w, x, at, key), {}

        x, stats = stack.apply(params["stack"], x, layer, plan, at, spec(cfg)["stack"], key)
        return Hidden(x, None, stats)

    def embed(w: param.Tree, tokens: jax.Array, at: At, types: jax.Array | None) -> jax.Array:
        positions = plan.gather(w["positions"], "seq embed")
        x = embedding_lookup.look_up(plan, w["table"], tokens)  # [B, T, D]
        x += jnp.take(positions, at.positions + cfg.offset, axis=0)
        kinds = plan.gather(w["types"], "types embed")
        x += kinds[0] if types is None else jnp.take(kinds, types, axis=0)
        return layer_norm(w["norm"], x)

    def layer_norm(w: param.Tree, x: jax.Array) -> jax.Array:
        return norm.layer_norm(x, w["scale"], w["bias"], cfg.eps)

    def block(layer: Layer, w: param.Tree, x: jax.Array, at: At, key: Any) -> jax.Array:
        keys = split(key, 2)
        h = _attend(plan, w["attn"], x, at, layer.window)
        x = layer_norm(w["attn_norm"], x + dropout(h, cfg.dropout, keys[0]))
        h = ffn.apply(w["ffn"], x, act)
        return layer_norm(w["ffn_norm"], x + dropout(h, cfg.dropout, keys[1]))

    def head(params: param.Tree) -> param.Tree:
        return decoder.head(params) | {"mlm": params["mlm"]}

    def unembed(head: param.Tree, x: jax.Array) -> jax.Array:
        head = stack.gathered(head, spec(cfg), plan)
        w = head["mlm"]
        h = linear.einsum("...D,DE->...E", x, w["dense"]) + linear.spread(w["bias"], x)
        return decoder.logits(head, layer_norm(w["norm"], head_act(h)))

    def no_cache(batch: int, slots: int) -> tuple[dict[str, param.Param], ...]:
        raise ValueError("bidirectional models have no KV cache: bert continues no text")

    return Model(cfg, spec(cfg), hidden, head, unembed, no_cache, cfg.context, kind="encoder")


def _attend(plan: Plan, w: param.Tree, h: jax.Array, at: At, window: int | None) -> jax.Array:
    def read(w: param.Tree, at: At, window: int | None) -> jax.Array:
        q, k, v = mha.project(w, h, at)
        return mha.attend(q, k, v, at, None, plan, causal=False, window=window)[0]

    y = read(w, at, window)  # [B, T, N, H]
    if "global" in w and at.shared is not None:
        # what a global token itself reads, it reads with other projections
        own = At(at.segments, at.positions)
        y = jnp.where(at.shared[..., None, None], read(w["global"], own, None), y)
    return mha.output(w, y)


def pool(w: param.Tree, x: jax.Array) -> jax.Array:
    """float[B, D]: a summary of each row from its first token, tanh(x W + b).

    w: params["pooler"]; x [B, T, D], `hidden`'s output. Devlin et al. 2019, section 4.1: what
    sentence-level tasks are trained on.
    """
    h = linear.einsum("BD,DE->BE", x[:, 0], w["dense"]) + linear.spread(w["bias"], x[:, 0])
    return jnp.tanh(h)  # [B, E]


_LARGE: dict[str, Any] = {"embed": 1024, "layers": 24, "heads": 16, "ffn": 4096}
_ROBERTA = Config(vocab=50265, offset=2, types=1, eps=1e-5, dropout=0.1)

# Devlin et al. 2019, section 3 (uncased); Liu et al. 2019, table 9 and section 4.4; Beltagy et al.
# 2020, table 12. Without the pooler, which no masked token reads.
PRESETS: dict[str, Config] = {
    "bert-base": Config(dropout=0.1),
    "bert-large": Config(**_LARGE, dropout=0.1),
    "roberta-base": _ROBERTA,
    "roberta-large": dataclasses.replace(_ROBERTA, **_LARGE),
    "longformer-base-4096": dataclasses.replace(_ROBERTA, context=4096, window=12 * (257,)),
}
