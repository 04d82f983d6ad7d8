"""A mixture of experts in place of a feed-forward layer. Shazeer et al. 2017; Fedus et al. 2022.

    h -> router -> k experts of E -> their outputs, weighted and summed (-> plus a shared expert)

Two ways to compute it, equal where nothing is dropped:

dropless  tokens are sorted by expert, and each expert multiplies as many as came. On a mesh every
          device sorts its own tokens and holds a part of every expert's ffn, so that uneven loads
          leave no device idle; with plan.expert it holds a part of the experts.
capacity  each expert has a fixed number of places for each row of the batch, given to tokens in
          order of time, so that no token takes a place from an earlier one; what finds none adds
          nothing (Lepikhin et al. 2021, section 2.2, with rows for groups). Documents packed in a
          row compete for places, rows do not. A single token always finds one.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.core import param, precision
from jaxlm.models.layers import ffn, stack
from jaxlm.ops import linear, routing
from jaxlm.ops.attention import At
from jaxlm.parallel import expert_parallel
from jaxlm.parallel.plan import Plan

# (h gate, h up) -> what `down` multiplies
Gated = Callable[[jax.Array, jax.Array], jax.Array]

AXES = {
    "gate": "expert embed ffn",
    "up": "expert embed ffn",
    "down": "expert ffn embed",
    "gate_bias": "expert ffn",
    "up_bias": "expert ffn",
}


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up. Shazeer 2020, eq. 6."""
    return jax.nn.silu(gate) * up


def spec(
    p: Callable[..., param.Param],
    *,
    out: param.Init,
    bias: bool = False,
    select_bias: bool = False,
    shared: param.Tree | None = None,
    shared_gate: bool = False,
) -> param.Tree:
    """The weights of one layer: router [D, E]; gate, up [E, D, F] and down [E, F, D].

    p is a shaper of `embed`, `ffn` (of one expert) and `expert`, and `shared` = 1 where
    there is a shared_gate. out starts the matrices into the residual stream. bias: of the router
    and of all experts' matrices. select_bias [E]: what `routing.choose` takes; it gets no gradient
    and no decay, and `rebalance` moves it. shared: the `ffn.spec` of an expert that sees every
    token; shared_gate [D, 1]: a sigmoid that its output is multiplied by (Qwen 2 MoE).
    """
    tree = {
        "router": p("embed -> expert"),
        "gate": p("expert | embed -> ffn"),
        "up": p("expert | embed -> ffn"),
        "down": p("expert | ffn -> embed", init=out),
    }
    if bias:
        tree |= {
            "router_bias": p("expert", init=param.zeros),
            "gate_bias": p("expert | ffn", init=param.zeros),
            "up_bias": p("expert | ffn", init=param.zeros),
            "down_bias": p("expert | embed", init=param.zeros),
        }
    if select_bias:
        tree |= {"select_bias": p("expert", init=param.zeros)}
    if shared is not None:
        tree |= {"shared": shared}
    if shared_gate:
        tree |= {"shared_gate": p("embed -> shared")}
    return tree


def apply(
    w: param.Tree,
    h: jax.Array,
    at: At,
    rule: routing.Rule,
    plan: Plan,
    *,
    gated: Gated = swiglu,
    capacity: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The layer's output [B, T, D] for h [B, T, D], and its statistics.

    capacity: None is dropless; otherwise each expert has capacity * k * T / E places a row, rounded
    up. Padding is sent to no expert and counted nowhere. The router works in float32.

    Statistics, all float32 sums over tokens: routed, of 1; load [E], tokens that chose each expert
    (dropped ones too); shares [E], router_z and router_entropy (see `ops.route`); dropped, choices
    that found no place.
    """
    real = at.segments > 0
    logits = linear.einsum("BTD,DE->BTE", h.astype(precision.wide()), w["router"])  # [B, T, E]
    if "router_bias" in w:
        logits = logits + w["router_bias"]
    routes = routing.choose(logits, rule, w.get("select_bias"))
    stats = {
        "routed": jnp.sum(real, dtype=precision.wide()),
        "load": routing.load(routes.experts, real, logits.shape[-1]),
        "shares": routing.shares(routes.scores, real),
        "router_z": routing.router_z(logits, real),
        "router_entropy": routing.entropy(routes.scores, real),
        "dropped": jnp.zeros(()),
    }
    # no expert has this number: padding goes to none
    experts = jnp.where(real[..., None], routes.experts, logits.shape[-1])  # [B, T, k]
    weights = routes.weights * real[..., None]  # [B, T, k]
    if capacity is not None:
        experts, stats["dropped"] = _places(experts, logits.shape[-1], capacity)
        weights = weights * (experts < logits.shape[-1])
        limit = _limit(experts, logits.shape[-1], capacity)
        y = _limited(w, h, weights, experts, limit, gated)
    else:
        matrices = {name: w[name] for name in AXES if name in w}

        def run(matrices: param.Tree, *rows: jax.Array) -> jax.Array:
            return _dropless(matrices, *rows, gated, plan.poison)

        y = expert_parallel.apply(run, plan, matrices, AXES, h, weights, experts)
    if "down_bias" in w:
        hit = experts[..., None] == jnp.arange(logits.shape[-1])  # [B, T, k, E]
        # [B, T, E]: the weight that a token gives each expert
        share = jnp.sum(jnp.where(hit, weights[..., None], 0.0), axis=-2).astype(h.dtype)
        y = y + linear.einsum("BTE,ED->BTD", share, w["down_bias"])
    return y + _shared(w, h) if "shared" in w else y, stats


def has(spec: param.Tree, name: str = "router") -> bool:
    """Whether a spec has layers with experts, or with this weight of theirs."""
    return any(path.endswith(f"/{name}") for path in param.flatten(spec))


def rebalance(params: param.Tree, load: jax.Array, speed: float) -> param.Tree:
    """params with every layer's select_bias moved by +speed for experts that got less than the mean
    load, by -speed for those that got more. Wang et al. 2024, algorithm 1.

    load float32[layers with experts, E], in order of execution (the stack's, then those of
    multi-token prediction): the statistic summed over a step.

    Raises: ValueError where not every layer with experts has a select_bias.
    """
    toward = speed * jnp.sign(jnp.mean(load, axis=-1, keepdims=True) - load)  # [layers, E]
    flat = param.flatten(params)
    paths = {tuple(p.split("/")[:3]): p for p in flat if p.endswith("/select_bias")}
    trees = [name for name in ("stack", "ahead") if name in params]
    places = [(tree, *at) for tree in trees for at in stack.places(params[tree])]
    places = [at for at in places if at[:3] in paths]
    if len(places) != load.shape[0]:
        raise ValueError(f"{load.shape[0]} layers have experts, {len(places)} a select_bias")
    for i, (*at, index) in enumerate(places):
        path = paths[tuple(at)]
        flat[path] = flat[path].at[index].add(toward[i])
    return jax.tree.unflatten(jax.tree.structure(params), list(flat.values()))


def _shared(w: param.Tree, h: jax.Array) -> jax.Array:
    y = ffn.apply(w["shared"], h, jax.nn.silu)
    if "shared_gate" in w:
        y = y * jax.nn.sigmoid(linear.einsum("BTD,DG->BTG", h, w["shared_gate"]))
    return y


def _dropless(
    w: param.Tree,
    h: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
    gated: Gated,
    poison: bool,
) -> jax.Array:
    """The weighted sum of the experts' outputs [B, T, D], by sorting: choices [M = B T k] are
    put in order of their expert, those of no expert at the end."""
    count, k = w["gate"].shape[0], experts.shape[-1]
    flat = experts.reshape(-1)  # [M]
    order = jnp.argsort(flat, stable=True)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]), unique_indices=True)
    sizes = jnp.zeros(count + 1, jnp.int32).at[flat].add(1)[:count]  # [E]
    each = jnp.repeat(h.reshape(-1, h.shape[-1]), k, axis=0)  # [M, D]
    x = _permute(each, order, back)  # [M, D], by expert
    chosen = jnp.minimum(flat[order], count - 1)  # [M]

    def project(x: jax.Array, name: str) -> jax.Array:
        y = linear.grouped(x, w[name], sizes, poison)
        y = y + w[f"{name}_bias"][chosen].astype(y.dtype) if f"{name}_bias" in w else y
        return checkpoint_name(y, name)

    y = linear.grouped(gated(project(x, "gate"), project(x, "up")), w["down"], sizes, poison)
    y = _permute(y, back, order).reshape(*experts.shape, -1)  # [B, T, k, D]
    return jnp.einsum("BTKD,BTK->BTD", y, weights.astype(y.dtype))


@jax.custom_vjp
def _permute(x: jax.Array, order: jax.Array, back: jax.Array) -> jax.Array:
    """x[order], where x[order][back] is x: its gradient is a look-up too, not a scatter."""
    return x[order]


_permute.defvjp(
    lambda x, order, back: (x[order], back),
    lambda back, g: (g[back], None, None),
)


def _limit(experts: jax.Array, count: int, capacity: float) -> int:
    """Places an expert has in a row; a token takes at most one."""
    time, k = experts.shape[1:]
    return min(time, math.ceil(capacity * k * time / count))


def _places(experts: jax.Array, count: int, capacity: float) -> tuple[jax.Array, jax.Array]:
    """The experts int32[B, T, k] with `count` for the choices that find no place, and how many
    these are, float32."""
    lost = (_rank(experts, count) >= _limit(experts, count, capacity)) & (experts < count)
    return jnp.where(lost, count, experts), jnp.sum(lost, dtype=precision.wide())


def _rank(experts: jax.Array, count: int) -> jax.Array:
    """Number of earlier choices of the row that fell on the same expert, int32[B, T, k]."""
    flat = experts.reshape(experts.shape[0], -1)  # [B, T k]
    hit = (flat[..., None] == jnp.arange(count)).astype(jnp.int32)  # [B, T k, E]
    before = jnp.cumsum(hit, axis=1) - hit
    return jnp.sum(before * hit, axis=-1).reshape(experts.shape)  # [B, T, k]


def _limited(
    w: param.Tree,
    h: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
    limit: int,
    gated: Gated,
) -> jax.Array:
    """The weighted sum of the experts' outputs [B, T, D], with `limit` places C in each."""
    count, rows = w["gate"].shape[0], jnp.arange(h.shape[0])[:, None, None]
    # of those with a place the rank among all and among those is the same; count: dropped below
    # [B, 1, 1], [B, T, k], [B, T, k]
    at = (rows, experts, jnp.minimum(_rank(experts, count), limit - 1))
    x = jnp.zeros((h.shape[0], count, limit, h.shape[-1]), h.dtype)  # [B, E, C, D]
    x = x.at[at].set(jnp.broadcast_to(h[:, :, None], (*experts.shape, h.shape[-1])), mode="drop")

    def project(x: jax.Array, name: str) -> jax.Array:
        y = linear.batched(x, w[name])
        return y + linear.spread(w[f"{name}_bias"][:, None], y) if f"{name}_bias" in w else y

    y = linear.batched(gated(project(x, "gate"), project(x, "up")), w["down"])  # [B, E, C, D]
    gathered = y.at[at].get(mode="fill", fill_value=0)  # [B, T, k, D]
    return jnp.einsum("BTKD,BTK->BTD", gathered, weights.astype(y.dtype))
