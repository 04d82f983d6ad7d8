"""Which experts a token goes to, how much each counts, and what keeps their loads even.

softmax, renormalised    Mixtral, Qwen 3 MoE, GPT-OSS
softmax                  Switch, Qwen 1.5/2 MoE, DeepSeek V2
sigmoid, in groups       DeepSeek V3
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import precision


@dataclasses.dataclass(frozen=True)
class Rule:
    """The choice rule of a router. Everything here is static in the compiled program."""

    count: int
    """Experts a token goes to."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """Function from the router's logits to scores: over all experts, or each by itself."""
    renormalise: bool = False
    """Whether the chosen experts' scores are divided by their sum."""
    scale: float = 1.0
    """Factor on the final weights."""
    groups: int = 1
    """Groups of neighbouring experts, of equal size."""
    groups_chosen: int = 1
    """Groups a token's experts may be in: those of the largest scores."""
    group_best: int = 2
    """A group's score is the sum of this many of its largest: 2 in DeepSeek V3, 1 in V2."""


class Routes(NamedTuple):
    """weights float32[..., k], of the experts int32[..., k], largest selection score first.
    scores float32[..., E]: before selection, as the balance loss reads them."""

    weights: jax.Array
    experts: jax.Array
    scores: jax.Array


def choose(logits: jax.Array, rule: Rule, select_bias: jax.Array | None = None) -> Routes:
    """The Routes of tokens from the router's logits float32[..., E].

    A softmax over the chosen logits (GPT-OSS) is the softmax over all, renormalised over the chosen
    (Mixtral), and is what `renormalise` computes. select_bias float32[E] is added to the scores for
    the selection only (Wang et al. 2024, section 3; DeepSeek V3, eq. 16): it moves no weight and
    gets no gradient. Of groups, a token may use the best ones (DeepSeek V3, section 2.1.2). Of
    equal scores the expert with the lower number is chosen, as torch.topk does on a CPU.

    Raises: ValueError where the rule does not fit the number of experts.
    """
    check(rule, logits.shape[-1])
    logits = logits.astype(precision.wide())
    softmax = rule.score == "softmax"
    scores = jax.nn.softmax(logits, axis=-1) if softmax else jax.nn.sigmoid(logits)
    ranked = scores if select_bias is None else scores + select_bias
    ranked = jax.lax.stop_gradient(ranked)
    if rule.groups > 1:
        ranked = jnp.where(_in_best_groups(ranked, rule), ranked, -jnp.inf)
    experts = jax.lax.top_k(ranked, rule.count)[1]  # [..., k]
    if softmax and rule.renormalise:
        weights = jax.nn.softmax(jnp.take_along_axis(logits, experts, axis=-1), axis=-1)
    else:
        weights = jnp.take_along_axis(scores, experts, axis=-1)  # [..., k]
        if rule.renormalise:  # sigmoids of very negative logits may all be 0
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    return Routes(weights * rule.scale, experts, scores)


def check(rule: Rule, experts: int) -> None:
    """Raises: ValueError where a rule does not fit a number of experts."""
    if experts % rule.groups:
        raise ValueError(f"route: {experts} experts do not divide into groups={rule.groups}")
    if not 1 <= rule.groups_chosen <= rule.groups:
        raise ValueError(f"route: groups_chosen={rule.groups_chosen}; 1 .. {rule.groups} exist")
    if rule.groups > 1 and not 1 <= rule.group_best <= experts // rule.groups:
        raise ValueError(
            f"route: group_best={rule.group_best}; a group has {experts // rule.groups} experts"
        )
    open_to = experts // rule.groups * rule.groups_chosen
    if not 1 <= rule.count <= open_to:
        raise ValueError(f"route: count={rule.count}; a token may go to 1 .. {open_to} experts")


def _in_best_groups(ranked: jax.Array, rule: Rule) -> jax.Array:
    """Whether each expert is in one of its token's best groups, bool[..., E]."""
    parts = ranked.reshape(*ranked.shape[:-1], rule.groups, -1)  # [..., groups, E / groups]
    best = jnp.sum(jax.lax.top_k(parts, rule.group_best)[0], axis=-1)  # [..., groups]
    chosen = jax.lax.top_k(best, rule.groups_chosen)[1]  # [..., groups_chosen]
    hit = jnp.any(chosen[..., None] == jnp.arange(rule.groups), axis=-2)  # [..., groups]
    return jnp.repeat(hit, parts.shape[-1], axis=-1)  # [..., E]


def load(experts: jax.Array, keep: jax.Array, total: int) -> jax.Array:
    """float32[E]: how many tokens each of `total` experts got. experts int32[..., k]; keep
    bool[...] is False for padding, which is not counted."""
    hit = (experts[..., None] == jnp.arange(total)) & keep[..., None, None]  # [..., k, E]
    return jnp.sum(hit, axis=tuple(range(hit.ndim - 1)), dtype=precision.wide())


def shares(scores: jax.Array, keep: jax.Array) -> jax.Array:
    """float32[E]: the sum over tokens of scores float32[..., E], each token's divided by their sum,
    which changes sigmoids only (DeepSeek V3, eq. 19). keep as for `load`."""
    each = scores / jnp.sum(scores, axis=-1, keepdims=True)
    return _sum(each, keep)


def balance(load: jax.Array, shares: jax.Array) -> jax.Array:
    """The load-balancing loss float32[...] of load and shares float32[..., E]: E x sum over experts
    of f x P, with f the part of all choices that fell on an expert and P its mean score. Fedus et
    al. 2022, eqs. 4 to 6.

    1 where either is uniform, E / k where all tokens choose the same k with all their score. Its
    gradient comes through P alone. 0 where no token was routed. transformers'
    `load_balancing_loss_func`, called on one layer, is k times this: its f sums to k.
    """
    f, p = (x / jnp.maximum(jnp.sum(x, axis=-1, keepdims=True), 1e-9) for x in (load, shares))
    return load.shape[-1] * jnp.sum(jax.lax.stop_gradient(f) * p, axis=-1)


def router_z(logits: jax.Array, keep: jax.Array) -> jax.Array:
    """The router z-loss, a float32 sum over tokens of log(sum exp logits)^2, which keeps the
    router's logits small. Zoph et al. 2022 (ST-MoE), eq. 5. (log E)^2 a token at logits of 0."""
    return _sum(jax.nn.logsumexp(logits.astype(precision.wide()), axis=-1) ** 2, keep)


def entropy(scores: jax.Array, keep: jax.Array) -> jax.Array:
    """The entropy in nats of each token's scores, a float32 sum over tokens: log E each where a
    router is undecided, 0 where it is sure."""
    each = scores / jnp.sum(scores, axis=-1, keepdims=True)
    return _sum(jnp.sum(jax.scipy.special.entr(each), axis=-1), keep)


def _sum(x: jax.Array, keep: jax.Array) -> jax.Array:
    """The sum over kept tokens of x [...] or [..., E]."""
    mask = keep.reshape(*keep.shape, *[1] * (x.ndim - keep.ndim))  # [...] or [..., 1]
    return jnp.sum(jnp.where(mask, x, 0.0), axis=tuple(range(keep.ndim)))
