"""Processors of next-token logits, each with one setting per row of the batch.

`process` runs them in the order of transformers' `generate`: bias, repetition penalty, the other
rules of `penalties`, temperature, top-k, top-p, min-p, typical-p. A removed token has logit -inf.
Nothing is sorted: a token stays while the mass of all that are strictly better is below a bound,
and the least that stays is found by bisection, exactly. Hence **tied tokens stay or go together**:
top-k keeps more than k where the k-th is tied (as transformers does), and top-p keeps all of a tie
at its edge (transformers keeps as many as its sort happens to put first).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.ops import penalties
from jaxlm.ops.penalties import where_any


class Controls(NamedTuple):
    """Sampling settings of B rows; every field but the last two is an array [B].

    temperature float32: 0 is greedy. top_k int32: 0 keeps all. top_p float32: 1 keeps all.
    min_p float32: 0 keeps all. repetition float32: 1 changes nothing. typical float32: 1 keeps all.
    rules: those of `penalties`. allowed bool[B,V]: tokens that a constraint allows next. The last
    three are None where no row has any, which is a program without them.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition: jax.Array
    typical: jax.Array | None = None
    rules: penalties.Rules | None = None
    allowed: jax.Array | None = None


def repetition(x: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Logits float32[B,V] with those of seen tokens made smaller: divided by the penalty where
    positive, multiplied where negative. Keskar et al. 2019 (CTRL), section 4.1.

    seen bool[B,V]; penalty float32[B], 1 for none, below 1 to favour repetition.
    """
    penalty = penalty[:, None]  # [B,1]
    return jnp.where(seen, jnp.where(x > 0, x / penalty, x * penalty), x)


def temperature(x: jax.Array, value: jax.Array) -> jax.Array:
    """Logits float32[B,V] over the temperature float32[B]; rows at 0 (greedy) stay as they are."""
    return x / jnp.where(value > 0, value, 1.0)[:, None]


def top_k(x: jax.Array, k: jax.Array) -> jax.Array:
    """Logits float32[B,V] of tokens with fewer than k strictly likelier ones; -inf elsewhere.

    k int32[B]; 0 keeps all. Fan et al. 2018.
    """
    bound = jnp.where(k > 0, k, x.shape[-1]).astype(jnp.float32)
    return _keep_below(x, x, jnp.ones_like(x), bound)


def top_p(x: jax.Array, p: jax.Array) -> jax.Array:
    """Logits float32[B,V] of tokens whose strictly likelier ones have probability below p: the
    smallest set of probability p or more, with all of a tie at its edge; -inf elsewhere.

    p float32[B] in (0, 1]; 1 keeps all. Holtzman et al. 2020 (nucleus sampling).
    """
    bound = jnp.where(p < 1, p, jnp.inf)
    return _keep_below(x, x, jax.nn.softmax(x, axis=-1), bound)


def min_p(x: jax.Array, p: jax.Array) -> jax.Array:
    """Logits float32[B,V] of tokens at least p times as likely as the likeliest; -inf elsewhere.

    p float32[B] in [0, 1]; 0 keeps all. Nguyen et al. 2024.
    """
    edge = jnp.max(x, axis=-1, keepdims=True) + jnp.log(p)[:, None]  # [B,1]
    return jnp.where(x >= edge, x, -jnp.inf)


def typical_p(x: jax.Array, p: jax.Array) -> jax.Array:
    """Logits float32[B,V] of tokens such that those whose surprise is strictly nearer to the
    entropy have probability below p; -inf elsewhere.

    p float32[B] in (0, 1]; 1 keeps all. Meister et al. 2023 (locally typical sampling), eq. 9.
    """
    log_p = jax.nn.log_softmax(x, axis=-1)
    mass = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(mass > 0, mass * log_p, 0.0), axis=-1, keepdims=True)  # [B,1]
    bound = jnp.where(p < 1, p, jnp.inf)
    return _keep_below(x, -jnp.abs(-log_p - entropy), mass, bound)


def process(
    x: jax.Array, seen: jax.Array, controls: Controls, text: penalties.Text | None = None
) -> jax.Array:
    """Logits float32[B,V] of the distribution each row samples from: all processors in order.

    seen bool[B,V]: tokens of prompt and continuation. text: what controls.rules read.

    A processor that no row requires costs nothing. Rows with temperature 0 are penalised and
    restricted by rules, and otherwise kept whole, for their argmax. A row that its rules leave
    without a token has -inf everywhere.
    """
    c = controls
    greedy = c.temperature == 0
    k = jnp.where(greedy, 0, c.top_k)
    p = jnp.where(greedy, 1.0, c.top_p)
    least = jnp.where(greedy, 0.0, c.min_p)
    if c.rules is not None and c.rules.bias.shape[1]:
        x = penalties.biased(x, c.rules.bias_tokens, c.rules.bias)
    x = where_any(c.repetition != 1, lambda x: repetition(x, seen, c.repetition), x)
    if c.rules is not None:
        assert text is not None
        x = penalties.restrict(x, c.rules, text)
    if c.allowed is not None:
        x = jnp.where(c.allowed, x, -jnp.inf)
    x = temperature(x, c.temperature)
    x = where_any(k > 0, lambda x: top_k(x, k), x)
    x = where_any(p < 1, lambda x: top_p(x, p), x)
    x = where_any(least > 0, lambda x: min_p(x, least), x)
    if c.typical is None:
        return x
    typical = jnp.where(greedy, 1.0, c.typical)
    return where_any(typical < 1, lambda x: typical_p(x, typical), x)


def sample(x: jax.Array, keys: jax.Array, index: jax.Array, greedy: jax.Array) -> jax.Array:
    """Tokens int32[B] drawn from the softmax of logits float32[B,V], by the Gumbel-max rule; the
    first largest logit where greedy bool[B].

    A row draws with fold_in(key, index) of its own key and index int32 (keys [B], index [B]), so
    that its draw does not depend on the batch around it.
    """

    def draw(x: jax.Array) -> jax.Array:
        folded = jax.vmap(jax.random.fold_in)(keys, index)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, x.shape[-1:], jnp.float32))(folded)
        return jnp.where(greedy[:, None], x, x + noise)

    return first_largest(where_any(~greedy, draw, x))


def first_largest(x: jax.Array) -> jax.Array:
    """int32[B]: the first index of each row's maximum, argmax in two steps that vectorise on
    CPU."""
    index = jnp.arange(x.shape[-1], dtype=jnp.int32)
    largest = jnp.max(x, axis=-1, keepdims=True)
    place = jnp.min(jnp.where(x == largest, index, x.shape[-1]), axis=-1)
    return jnp.minimum(place, x.shape[-1] - 1)  # a row of NaN has no maximum


def log_prob(x: jax.Array, token: jax.Array) -> jax.Array:
    """Log-probability float32[B] of token int32[B] under the softmax of logits float32[B,V]."""
    return _log_probs(x, jnp.take_along_axis(x, token[:, None], axis=-1))[:, 0]


def likeliest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(tokens int32[B,K], their log-probabilities float32[B,K]) of the k likeliest tokens under the
    softmax of logits float32[B,V], the likeliest first, of equals the lower id first."""
    chosen, tokens = jax.lax.top_k(x, k)  # [B,K]
    return tokens, _log_probs(x, chosen)


def _log_probs(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """Log-probabilities [B,K] of some of the logits [B,V], chosen [B,K]."""
    peak = jnp.max(x, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp(x - peak), axis=-1, keepdims=True)
    return (chosen - peak) - jnp.log(total)


def _keep_below(x: jax.Array, merit: jax.Array, mass: jax.Array, bound: jax.Array) -> jax.Array:
    """x where the mass [B,V] of all with strictly larger merit [B,V] is below bound [B], -inf
    elsewhere."""
    rank = _rank(merit)

    def halve(_: int, edges: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = edges
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, which cannot overflow
        above = jnp.sum(jnp.where(rank > middle[:, None], mass, 0.0), axis=-1)  # [B]
        fits = above < bound
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    # The smallest rank that stays is between the smallest rank and the largest of each row.
    edges = jnp.min(rank, axis=-1), jnp.max(rank, axis=-1)  # [B], [B]
    low, _ = jax.lax.fori_loop(0, 32, halve, edges)
    return jnp.where(rank >= low[:, None], x, -jnp.inf)


def _rank(x: jax.Array) -> jax.Array:
    """int32 in the order of float32 x: its bits, inverted but for the sign where negative."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
