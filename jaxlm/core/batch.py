"""The batch: what the data layer hands to a step. Plain arrays, no jax import."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# numpy on the host, jax inside a step; one name for both keeps this module free of jax.
Array = Any


class Batch(NamedTuple):
    """One language-modelling batch. A row may hold several packed documents.

    For the documents `[a b c eos]` and `[d e eos]` in one row of T = 6, followed by padding:

        tokens    a b c d e 0
        targets   b c . e . 0      . is eos
        weight    1 1 1 1 1 0      masks are explicit, never inferred from token ids
        segments  1 1 1 2 2 0      0 is padding; attention stays within equal segments
        positions 0 1 2 0 1 0      restart with each document

    tokens, targets, segments, positions: int32[B, T]; weight: float32[B, T].
    """

    tokens: Array
    targets: Array
    weight: Array
    segments: Array
    positions: Array


class Pairs(NamedTuple):
    """One batch of sources and targets, for an encoder-decoder. A row may hold several pairs.

    For the pair `[a b] -> [x y eos]` and one more, begin being what the decoder reads first:

        source           a b eos c eos 0     what the encoder reads
        source_segments  1 1 1   2 2   0     a target reads the source of its own number
        tokens           begin x y begin z 0
        targets          x y eos z eos 0
        segments         1 1 1 2 2 0

    source, source_segments, source_positions: int32[B, S]. The others are as in `Batch`, [B, T].
    """

    tokens: Array
    targets: Array
    weight: Array
    segments: Array
    positions: Array
    source: Array
    source_segments: Array
    source_positions: Array


class Taught(NamedTuple):
    """A `Batch` and its teacher's targets: at every position the k likeliest next tokens.

    ids int32[B, T, k]; log_probs float32[B, T, k + 1], the last that of all other tokens together
    (k = V: of none, and it is left out). The others are as in `Batch`.
    """

    tokens: Array
    targets: Array
    weight: Array
    segments: Array
    positions: Array
    ids: Array
    log_probs: Array


class Choices(NamedTuple):
    """B prompts with K responses each, of which some are preferred. A row holds one text.

    For the prompt `[p q]`, the response `[x eos]` and the worse one `[y z eos]`, T = 6:

        tokens    p q x eos 0 0      p q y z eos 0      whole texts, their end among them
        targets   q x eos 0 0 0      q y z eos 0 0
        weight    0 1 1   0 0 0      0 1 1 1 0   0      on targets that are of the response
        segments  1 1 1   1 0 0      1 1 1 1 1   0      a score is read at the last 1
        rank      0                  1

    tokens, targets, segments, positions: int32[B, K, T]; weight: float32[B, K, T].
    rank int32[B, K]: 0 is the best; equals are a tie, from which nothing is learnt; -1 where a
    prompt has fewer than K responses.
    preference float32[B]: the probability that the ranking holds; 1 where it is certain.
    score float32[B, K]: a rating of each response, whose differences are margins; 0 where the data
    has none.
    reference float32[B, K]: the log-probability of each response under the reference model, summed
    over its tokens, where it was computed before; None where it was not.
    """

    tokens: Array
    targets: Array
    weight: Array
    segments: Array
    positions: Array
    rank: Array
    preference: Array
    score: Array
    reference: Array | None = None


class Prompts(NamedTuple):
    """One batch of prompts to respond to: a row each, at its left end.

    tokens, segments, positions: int32[B, P]; segments 0 is padding. row int32[B]: which record each
    is from, for what its response is judged by; -1 in rows that only fill the batch.
    """

    tokens: Array
    segments: Array
    positions: Array
    row: Array


class Rollout(NamedTuple):
    """Sampled responses, from sampling to learning. A row holds one prompt and one response, from
    its left end; rows without a prompt are all zero.

    For the prompt `[p q]` and the response `[x eos]`, T = 6:

        tokens    p q x eos 0 0
        targets   q x eos 0 0 0
        weight    0 1 1 0   0 0    on targets that were sampled, the end among them
        behaviour . a b .   . .    log-probability of the target under the policy that sampled

    tokens, targets, segments, positions: int32[N, T]; weight, behaviour: float32[N, T]. The others
    are None until they are computed:

        finished           bool[N]        whether it ended by itself: sampling
        reference, value   float32[N, T]  log-probability under the reference, and the value head's
                                          expectation; 0 where there is none: measuring
        score              float32[N]     reward of each response: reward functions and models
        advantage, returns float32[N, T]  at the targets: over all responses sampled together

    A loss reads neither finished nor score.
    """

    tokens: Array
    targets: Array
    weight: Array
    segments: Array
    positions: Array
    behaviour: Array
    reference: Array = None
    value: Array = None
    advantage: Array = None
    returns: Array = None
    score: Array = None
    finished: Array = None


def rows(texts: Sequence[Any], width: int, count: int | None = None) -> Batch:
    """The `Batch` [count, width], numpy, of one text of token ids a row, at its left end; weight is
    0. count: None is one row each; rows beyond the texts are empty.

    Raises: ValueError for a text of more than `width` tokens.
    """
    shape = (len(texts) if count is None else count, width)
    tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    for r, text in enumerate(texts):
        n = len(text)
        tokens[r, :n] = text
        targets[r, : max(n - 1, 0)] = text[1:]
        segments[r, :n] = 1
        positions[r, :n] = np.arange(n)
    return Batch(tokens, targets, np.zeros(shape, np.float32), segments, positions)


def text(rows: Any) -> Batch:
    """The `Batch` of a record that has its fields among others."""
    return Batch(rows.tokens, rows.targets, rows.weight, rows.segments, rows.positions)
