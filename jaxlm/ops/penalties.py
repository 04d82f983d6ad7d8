"""Rules on the next token that read the text so far, each with one setting per row of the batch.

`restrict` applies them in the order of transformers' `generate`: penalties for presence and
frequency (which come after the penalty for repetition, as in vLLM), n-grams that would occur twice,
banned sequences, stop tokens that come too early, a forced beginning, a forced end. `biased` comes
before all penalties. A row without a rule keeps its logits bit for bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rules(NamedTuple):
    """Rules of B rows; -1 marks unused places of lists.

    presence, frequency float32[B]: 0 changes nothing. ngram int32[B]: the size of the n-grams that
    may occur once only; 0 allows all. min_new int32[B] and early int32[B, K]: tokens that none of
    the first min_new tokens may be. bias_tokens int32[B, N] and bias float32[B, N]: what is added
    to the logits of tokens. banned int32[B, S, L]: sequences that are not completed, each at the
    right end of its L places. begin int32[B, F]: the first tokens. end int32[B, E]: of which the
    last token is one, where no room is left for another.
    """

    presence: jax.Array
    frequency: jax.Array
    ngram: jax.Array
    min_new: jax.Array
    early: jax.Array
    bias_tokens: jax.Array
    bias: jax.Array
    banned: jax.Array
    begin: jax.Array
    end: jax.Array


class Text(NamedTuple):
    """The text of B rows before their next token.

    tokens int32[B, W]: prompt and continuation, one after the other, at the left end of each row;
    whatever is beyond them counts for nothing. prompt int32[B]: tokens of the prompt. length
    int32[B]: tokens in all. left int32[B]: tokens that may still be generated, the next one
    included.
    """

    tokens: jax.Array
    prompt: jax.Array
    length: jax.Array
    left: jax.Array


def begun(tokens: jax.Array, real: jax.Array, limit: jax.Array, room: int) -> Text:
    """The Text of prompts: tokens int32[B, P] where real bool[B, P], in order, with room for `room`
    more; limit int32[B]: how many may be generated."""
    batch, width = tokens.shape
    place = jnp.where(real, jnp.cumsum(real, axis=1) - 1, width + room)
    empty = jnp.full((batch, width + room), -1, jnp.int32)
    text = empty.at[jnp.arange(batch)[:, None], place].set(tokens, mode="drop")
    length = jnp.sum(real, axis=1, dtype=jnp.int32)
    return Text(text, length, length, limit)


def extended(text: Text, tokens: jax.Array, there: jax.Array) -> Text:
    """The Text with one more token int32[B] in the rows where there bool[B]; or with several
    int32[B, T] where there bool[B, T], which are the first ones of each row."""
    tokens, there = (x.reshape(len(text.length), -1) for x in (tokens, there))
    place = text.length[:, None] + jnp.arange(tokens.shape[1])
    place = jnp.where(there, place, text.tokens.shape[1])
    joined = text.tokens.at[jnp.arange(len(tokens))[:, None], place].set(tokens, mode="drop")
    count = jnp.sum(there, axis=1, dtype=jnp.int32)
    return Text(joined, text.prompt, text.length + count, text.left - count)


def biased(x: jax.Array, tokens: jax.Array, bias: jax.Array) -> jax.Array:
    """Logits float32[B,V] plus bias float32[B,N] at tokens int32[B,N], -1 for none."""
    place = jnp.where(tokens < 0, x.shape[-1], tokens)
    return x.at[jnp.arange(len(x))[:, None], place].add(bias, mode="drop")


def counted(x: jax.Array, text: Text, presence: jax.Array, frequency: jax.Array) -> jax.Array:
    """Logits float32[B,V] less `presence` float32[B] for every token that was generated, and
    `frequency` float32[B] for each time that it was; the prompt does not count (as in OpenAI's API
    and vLLM)."""
    column = jnp.arange(text.tokens.shape[1])
    new = (column >= text.prompt[:, None]) & (column < text.length[:, None])  # [B,W]
    place = jnp.where(new, text.tokens, x.shape[-1])
    count = jnp.zeros_like(x).at[jnp.arange(len(x))[:, None], place].add(1.0, mode="drop")
    return x - frequency[:, None] * count - presence[:, None] * (count > 0)


def without_repeats(x: jax.Array, text: Text, size: jax.Array) -> jax.Array:
    """Logits float32[B,V] of tokens that complete no n-gram of prompt and continuation a second
    time; -inf elsewhere. size int32[B]: n; 0 keeps all. Paulus et al. 2017, section 2.5."""
    tokens, end = text.tokens, text.length
    column = jnp.arange(tokens.shape[1])

    def compare(back: int, equal: jax.Array) -> jax.Array:
        """Whether the token `back` places before each column is that before the next token."""
        wanted = jnp.take_along_axis(tokens, jnp.maximum(end - back, 0)[:, None], axis=1)  # [B,1]
        same = jnp.roll(tokens, back, axis=1) == wanted
        return equal & (same | (back >= size)[:, None])

    # columns in which an n-gram of the text ends
    inside = (column >= size[:, None] - 1) & (column < end[:, None]) & (size > 0)[:, None]
    most = jnp.minimum(jnp.max(size), tokens.shape[1])  # longer ones are not inside anyway
    found = jax.lax.fori_loop(1, most, compare, inside)  # [B,W]
    return jnp.where(_any_of(tokens, found, x.shape[-1]), -jnp.inf, x)


def without_sequences(x: jax.Array, text: Text, banned: jax.Array) -> jax.Array:
    """Logits float32[B,V] of tokens that complete none of the sequences banned int32[B,S,L], which
    may begin in the prompt; -inf elsewhere."""
    before = text.length[:, None] - jnp.arange(banned.shape[-1] - 1, 0, -1)  # [B,L-1]
    recent = jnp.take_along_axis(text.tokens, jnp.maximum(before, 0), axis=1)
    recent = jnp.where(before < 0, -1, recent)[:, None]  # [B,1,L-1]
    begun = jnp.all((banned[..., :-1] == recent) | (banned[..., :-1] < 0), axis=-1)  # [B,S]
    last = banned[..., -1]
    return jnp.where(_any_of(last, begun & (last >= 0), x.shape[-1]), -jnp.inf, x)


def not_early(x: jax.Array, text: Text, min_new: jax.Array, early: jax.Array) -> jax.Array:
    """Logits float32[B,V]; -inf at tokens early int32[B,K] before min_new int32[B] tokens were
    generated."""
    too_early = (text.length - text.prompt < min_new)[:, None] & (early >= 0)
    return jnp.where(_any_of(early, too_early, x.shape[-1]), -jnp.inf, x)


def forced_begin(x: jax.Array, text: Text, begin: jax.Array) -> jax.Array:
    """Logits float32[B,V]; where begin int32[B,F] has a token for the next place, 0 at that token
    and -inf elsewhere."""
    place = text.length - text.prompt
    inside = jnp.minimum(place, begin.shape[1] - 1)[:, None]
    token = jnp.take_along_axis(begin, inside, axis=1)  # [B,1]
    forced = (token >= 0) & (place < begin.shape[1])[:, None]
    only = jnp.where(jnp.arange(x.shape[-1]) == token, 0.0, -jnp.inf)
    return jnp.where(forced, only, x)


def forced_end(x: jax.Array, text: Text, end: jax.Array) -> jax.Array:
    """Logits float32[B,V]; where one token is left and end int32[B,E] has any, 0 at those and -inf
    elsewhere."""
    forced = (text.left == 1) & jnp.any(end >= 0, axis=1)  # [B]
    only = jnp.where(_any_of(end, end >= 0, x.shape[-1]), 0.0, -jnp.inf)
    return jnp.where(forced[:, None], only, x)


def restrict(x: jax.Array, rules: Rules, text: Text) -> jax.Array:
    """Logits float32[B,V] after every rule but the bias, in order. A rule that no row has costs
    nothing; a row that is left without a token has -inf everywhere."""
    r = rules
    penal = (r.presence != 0) | (r.frequency != 0)
    x = where_any(penal, lambda x: counted(x, text, r.presence, r.frequency), x)
    x = where_any(r.ngram > 0, lambda x: without_repeats(x, text, r.ngram), x)
    if r.banned.shape[1]:
        x = without_sequences(x, text, r.banned)
    early = text.length - text.prompt < r.min_new
    x = where_any(early, lambda x: not_early(x, text, r.min_new, r.early), x)
    if r.begin.shape[1]:
        x = forced_begin(x, text, r.begin)
    return forced_end(x, text, r.end) if r.end.shape[1] else x


def where_any(rows: jax.Array, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """f(x) if any row requires it; f must leave the other rows as they are."""
    return jax.lax.cond(jnp.any(rows), f, lambda x: x, x)


def _any_of(tokens: jax.Array, chosen: jax.Array, vocab: int) -> jax.Array:
    """bool[B,V]: the tokens int32[B,N] where chosen bool[B,N]."""
    place = jnp.where(chosen, tokens, vocab)
    none = jnp.zeros((len(tokens), vocab), bool)
    return none.at[jnp.arange(len(tokens))[:, None], place].set(True, mode="drop")
