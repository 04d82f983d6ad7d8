"""DeepSeek V2 and V2-Lite (DeepSeek-AI 2024, arXiv:2405.04434), V3 and R1 (arXiv:2412.19437):
latent attention, a few dense layers, then mixtures of many small experts along with shared ones.

Multi-token prediction (V3, section 2.2) is the weights under "ahead": one more layer for each token
further ahead, fed with that token's predecessor, sharing embedding and output matrix.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.models.layers import decoder, embedding_lookup, ffn, kv_cache, mha, mla, moe, stack
from jaxlm.models.layers.stack import Layer
from jaxlm.models.model import Cache, Hidden, Model
from jaxlm.ops import linear, norm, rope, routing
from jaxlm.ops.attention import At
from jaxlm.ops.losses import shift
from jaxlm.parallel import pipeline_parallel
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of a DeepSeek model. The defaults are V3's."""

    KIND = "deepseek"

    vocab: int = 129280
    """Number of token ids."""
    embed: int = 7168
    """Width of the residual stream."""
    layers: int = 61
    """Transformer blocks."""
    dense: int = 3
    """Number of them, from the first, with a plain feed-forward layer."""
    heads: int = 128
    """Attention heads."""
    q_rank: int | None = 1536
    """Size of the queries' latent; None makes queries from the residual stream (V2-Lite)."""
    rank: int = 512
    """Size of the latent from which keys and values are computed, and that the cache holds."""
    nope: int = 128
    """Dimensions of a head's query and key without positions."""
    rotary: int = 64
    """Dimensions of a head's query, and of the one key of all heads, with rotary positions."""
    value: int = 128
    """Size of a head's value."""
    ffn: int = 18432
    """Width of the dense layers' feed-forward layer."""
    experts: int = 256
    """Routed experts of a layer."""
    active: int = 8
    """Routed experts a token goes to."""
    shared: int = 1
    """Experts every token goes to, held as one of this many times the width."""
    expert_ffn: int = 2048
    """Width of one expert."""
    score: Literal["softmax", "sigmoid"] = "sigmoid"
    """Function from router logits to scores: over all experts (V2), or each by itself (V3)."""
    select_bias: bool = True
    """Whether a bias without gradient, moved by the experts' loads, is added for the selection."""
    renormalise: bool = True
    """Whether the chosen experts' scores are divided by their sum."""
    groups: int = 8
    """Groups of neighbouring experts."""
    groups_chosen: int = 4
    """Groups a token's experts may be in."""
    group_best: int = 2
    """A group's score is the sum of this many of its largest: 2 in V3, 1 in V2."""
    routed_scale: float = 2.5
    """Factor on the routed experts' weights."""
    capacity: float | None = None
    """Places of an expert, in multiples of its even share; None drops no token."""
    theta: float = 10000.0
    """Base of the rotary frequencies."""
    scaling: rope.Scaling | None = None
    """Rule that stretches them; YaRN's mscale_all also sharpens the softmax (`softmax_scale`)."""
    interleaved: bool = True
    """Whether neighbouring dimensions rotate as a pair, or those half a head apart."""
    eps: float = 1e-6
    """Added to the mean square in the blocks' RMSNorm."""
    latent_eps: float = 1e-6
    """The same in the latents' norms."""
    context: int = 4096
    """Sequence length the model is meant for; RoPE itself has no limit."""
    tied: bool = False
    """Whether the output matrix is the embedding table."""
    ahead: int = 0
    """Depth of multi-token prediction: how many tokens beyond the next are predicted (V3: 1)."""

    def __post_init__(self) -> None:
        sizes = (
            "vocab",
            "embed",
            "layers",
            "heads",
            "q_rank",
            "rank",
            "nope",
            "rotary",
            "value",
            "ffn",
        )
        check.positive(self, *sizes, "experts", "active", "shared", "expert_ffn", "context")
        check.even(self, "rotary")
        check.within("model", self, "dense", least=0, most=self.layers)
        check.within("model", self, "ahead", least=0)
        routing.check(rule(self), self.experts)


def rule(cfg: Config) -> routing.Rule:
    """The routing rule that chooses a token's experts."""
    return routing.Rule(
        count=cfg.active,
        score=cfg.score,
        renormalise=cfg.renormalise,
        scale=cfg.routed_scale,
        groups=cfg.groups,
        groups_chosen=cfg.groups_chosen,
        group_best=cfg.group_best,
    )


def softmax_scale(cfg: Config) -> float:
    """The factor on q.k: (nope + rotary) ** -0.5, sharpened by YaRN's mscale_all as in the
    released models (the paper gives the formula of Peng et al. 2023, eq. 22)."""
    scale = (cfg.nope + cfg.rotary) ** -0.5
    if isinstance(cfg.scaling, rope.Yarn) and cfg.scaling.mscale_all:
        scale *= rope.sharpness(cfg.scaling.factor, cfg.scaling.mscale_all) ** 2
    return scale


def layers(cfg: Config) -> list[Layer]:
    """Every layer, in order. Those that predict further ahead are like the last."""
    sizes = (cfg.heads, cfg.rank, cfg.nope, cfg.rotary, cfg.value)
    dense, mixture = mla.layer("dense", *sizes), mla.layer("moe", *sizes, active=cfg.active)
    return cfg.dense * [dense] + (cfg.layers - cfg.dense) * [mixture]


def spec(cfg: Config) -> param.Tree:
    """The weights."""
    wide = {"vocab": cfg.vocab, "embed": cfg.embed, "pair": 2}
    p = param.shaper(**wide, ffn=cfg.ffn)
    p_expert = param.shaper(**wide, ffn=cfg.expert_ffn, expert=cfg.experts)
    p_shared = param.shaper(**wide, ffn=cfg.shared * cfg.expert_ffn)
    # Outputs into the residual stream start smaller by sqrt(2 layers), so that its variance does
    # not grow with depth (Radford et al. 2019, section 2.3).
    out = param.fan_in((2 * cfg.layers) ** -0.5)

    def weights(kind: str) -> param.Tree:
        attn = mla.spec(
            embed=cfg.embed, heads=cfg.heads, q_rank=cfg.q_rank, rank=cfg.rank, nope=cfg.nope,
            rotary=cfg.rotary, value=cfg.value, out=out,
        )  # fmt: skip
        tree = {
            "attn_norm": p("embed", init=param.ones),
            "attn": attn,
            "ffn_norm": p("embed", init=param.ones),
        }
        if kind == "dense":
            return tree | {"ffn": ffn.spec(p, gated=True, bias=False, out=out)}
        shared = ffn.spec(p_shared, gated=True, bias=False, out=out)
        return tree | {
            "moe": moe.spec(p_expert, out=out, select_bias=cfg.select_bias, shared=shared)
        }

    def further(kind: str) -> param.Tree:
        return {
            "token_norm": p("embed", init=param.ones),
            "hidden_norm": p("embed", init=param.ones),
            "join": p("pair embed -> embed"),
            "layer": weights(kind),
            "norm": p("embed", init=param.ones),
        }

    tree = {
        "embed": {"table": p("vocab embed", init=param.normal(cfg.embed**-0.5))},
        "stack": stack.spec(layers(cfg), weights),
        "norm": p("embed", init=param.ones),
    }
    if cfg.ahead:
        tree |= {"ahead": stack.spec(cfg.ahead * layers(cfg)[-1:], further)}
    return tree if cfg.tied else tree | {"unembed": p("embed -> vocab")}


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model: pure functions over the weights of `spec(cfg)`."""
    rotary = rope.frequencies(cfg.rotary, cfg.theta, cfg.scaling, cfg.context)
    scale, routing, last = softmax_scale(cfg), rule(cfg), layers(cfg)[-1]

    def embed(w: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        return embedding_lookup.look_up(plan, w["table"], tokens)  # [B, T, D]

    def block(
        layer: Layer, w: param.Tree, x: jax.Array, at: At, memory: mha.Memory, key: Any
    ) -> tuple[jax.Array, mha.Out]:
        h, entries = mla.apply(
            w["attn"], norm.rms_norm(x, w["attn_norm"], cfg.eps), at, memory, plan,
            rotary=rotary, interleaved=cfg.interleaved, scale=scale, eps=cfg.latent_eps,
        )  # fmt: skip
        x = x + h
        h = norm.rms_norm(x, w["ffn_norm"], cfg.eps)
        if layer.kind == "dense":
            h, stats = ffn.apply(w["ffn"], h, jax.nn.silu), {}
        else:
            h, stats = moe.apply(w["moe"], h, at, routing, plan, capacity=cfg.capacity)
        return x + h, stats if memory is None else entries

    def further(
        w: param.Tree, x: jax.Array, rows: tuple[jax.Array, At], memory: mha.Memory = None
    ) -> tuple:
        """One step ahead: V3, equations 21 to 23, and the norm before the output matrix."""
        token, at = rows
        w = stack.gathered(w, spec(cfg)["ahead"]["0"][f"0_{last.kind}"], plan, layer=True)
        token = norm.rms_norm(token, w["token_norm"], cfg.eps)
        x = norm.rms_norm(x, w["hidden_norm"], cfg.eps)
        x = linear.einsum("BTPD,PDE->BTE", jnp.stack([token, x], axis=2), w["join"])
        x, stats = block(last, w["layer"], x, at, memory, None)
        return plan.constrain(norm.rms_norm(x, w["norm"], cfg.eps), "rows seq embed"), stats

    def ahead(params: param.Tree, x: jax.Array, tokens: jax.Array, at: At) -> tuple:
        run, depths, stats = further, [], []
        if plan.remat != "none":
            run = jax.checkpoint(further, policy=stack.policy(plan))
        for k in range(1, cfg.ahead + 1):
            # a document's last k tokens have no k-th after them: they are padding here
            token, there = shift.later(tokens, at.segments, k)
            here = At(jnp.where(there, at.segments, 0), at.positions)
            token = embed(params["embed"], token, here, None).astype(x.dtype)
            w = jax.tree.map(lambda w, k=k: w[k - 1], params["ahead"]["0"][f"0_{last.kind}"])
            x, layer_stats = pipeline_parallel.spread(run, plan, w, x, (token, here))
            depths.append(x)
            stats.append(layer_stats)
        return depths, jax.tree.map(lambda *values: jnp.stack(values), *stats)

    model = decoder.build(
        cfg, spec(cfg), plan, layers=layers(cfg), embed=embed, block=block,
        norm=lambda w, x: norm.rms_norm(x, w, cfg.eps),
        context=rope.limit(cfg.scaling, cfg.context),
    )  # fmt: skip
    if not cfg.ahead:
        return model
    return model._replace(ahead=ahead, further=_first_depth(model, last, embed, further))


def _first_depth(
    model: Model, last: Layer, embed: Callable[..., jax.Array], further: Callable[..., tuple]
) -> Model:
    """The first depth of multi-token prediction as a Model of its own, with a cache: hidden(params,
    tokens, at, cache, source) reads the token after each place, and the model's x there."""

    def hidden(
        params: param.Tree, tokens: jax.Array, at: At, cache: Cache, source: jax.Array
    ) -> Hidden:
        token = embed(params["embed"], tokens, at, None).astype(source.dtype)
        w = jax.tree.map(lambda w: w[0], params["ahead"]["0"][f"0_{last.kind}"])
        x, entries = further(w, source, (token, at), mha.Slots(cache.layers[0], cache.at))
        return Hidden(x, kv_cache.append(cache, [entries], at, x, caches(1, 1)))

    def caches(batch: int, slots: int) -> tuple[dict[str, param.Param], ...]:
        return (last.cache(batch, slots),)

    return model._replace(spec=None, hidden=hidden, cache=caches)


_V2 = Config(
    vocab=102400, embed=5120, layers=60, dense=1, heads=128, ffn=12288, experts=160, active=6,
    shared=2, expert_ffn=1536, score="softmax", select_bias=False, renormalise=False,
    groups=8, groups_chosen=3, group_best=1, routed_scale=16.0, context=163840,
    scaling=rope.Yarn(40.0, 4096, mscale=0.707, mscale_all=0.707),
)  # fmt: skip

# V2: sections 3.1.2 and B; V3: section 4.2; and what the released config.json files say (YaRN).
PRESETS: dict[str, Config] = {
    "deepseek-v2-lite": dataclasses.replace(
        _V2, embed=2048, layers=27, heads=16, q_rank=None, ffn=10944, experts=64, expert_ffn=1408,
        groups=1, groups_chosen=1, routed_scale=1.0,
    ),
    "deepseek-v2": _V2,
    "deepseek-v3": Config(
        context=163840, scaling=rope.Yarn(40.0, 4096, mscale=1.0, mscale_all=1.0)
    ),
}  # fmt: skip
