"""The batch: what the data layer hands to a step. Plain arrays, no jax import."""

from typing import Any, NamedTuple

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
