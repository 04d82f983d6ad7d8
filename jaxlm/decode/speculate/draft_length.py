"""Number of tokens to draft for the next pass: the length with the most expected tokens for its
cost.

If every draft of a row is accepted with probability a, independently, a pass over L drafts gives
the row 1 + a + ... + a^L tokens (Leviathan et al. 2023, eq. 1). a is estimated for each row from
its own recent passes; all rows share a pass and its length, which has the most tokens of all
running rows for its cost. The cost is computed from the sizes of the models, the batch and the
platform, never measured. Tokens do not depend on any of this (`verification`), only the number of
passes does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

DECAY = 0.9  # of what is remembered, at every pass
ASSUMED = 0.7  # acceptance before anything was seen, with the weight of two drafts
WEIGHT = 2.0
EXPECTED = (ASSUMED, 0.95)  # acceptances whose best lengths are compiled
# Rows of tokens whose products take as long as reading the weights. CPU: float32 on cores with
# AVX-512, measured (experiments/benchmarks, "Speculation"). GPU and TPU: bfloat16, by the data
# sheets: H200 989 TFLOP/s and 4.8 TB/s, v5e 197 TFLOP/s and 0.82 TB/s.
ROWS = {"cpu": 8, "gpu": 200, "tpu": 240}
# Weights that are read in the time of what else a pass of a model takes, whatever its size
# (sampling, bookkeeping, launches). CPU: 50 us, measured. GPU and TPU: 50 us, an assumption.
BESIDE = {"cpu": 300_000, "gpu": 100_000_000, "tpu": 20_000_000}


class Recent(NamedTuple):
    """Drafts of each row that were accepted, and that were tried: those up to the first rejection;
    float32[B], older passes counting less."""

    accepted: jax.Array
    tried: jax.Array


def begun(rows: int) -> Recent:
    """Nothing seen yet."""
    return Recent(jnp.zeros(rows), jnp.zeros(rows))


def seen(recent: Recent, accepted: jax.Array, offered: jax.Array) -> Recent:
    """The Recent after a pass that accepted int32[B] of offered int32[B] drafts. Where none are
    offered for long, the estimate returns to what was assumed, and drafting is tried again."""
    tried = jnp.minimum(accepted + 1, offered)
    return Recent(DECAY * recent.accepted + accepted, DECAY * recent.tried + tried)


def best(
    recent: Recent, most: jax.Array, lengths: tuple[int, ...], costs: tuple[float, ...]
) -> jax.Array:
    """int32 scalar: the one of `lengths` that gives all rows together most tokens for its cost.

    most int32[B]: how many tokens can be drafted for each row; -1 for a row that takes no part.
    costs: those of a pass with so many drafts, drafting included, in any unit.
    """
    a = (recent.accepted + WEIGHT * ASSUMED) / (recent.tried + WEIGHT)
    tokens = jnp.cumsum(a[:, None] ** jnp.arange(max(lengths) + 1), axis=1)  # [B, longest + 1]
    drafted = jnp.minimum(jnp.array(lengths), jnp.maximum(most, 0)[:, None])  # [B, lengths]
    tokens = jnp.where(most[:, None] < 0, 0, jnp.take_along_axis(tokens, drafted, axis=1))
    worth = jnp.sum(tokens, axis=0) / jnp.array(costs)
    return jnp.array(lengths, jnp.int32)[jnp.argmax(worth)]


def lengths(longest: int, adaptive: bool, costs: tuple[float, ...]) -> tuple[int, ...]:
    """The lengths that are compiled, rising: `longest` alone, or none and those up to it that are
    best where drafts are accepted with the probabilities EXPECTED. costs: of a pass with 0, 1, ...,
    longest drafts."""
    if not adaptive:
        return (longest,)
    worth = [[sum(a**i for i in range(n + 1)) / c for n, c in enumerate(costs)] for a in EXPECTED]
    return tuple(sorted({0, *(row.index(max(row)) for row in worth)}))


def costs(
    lengths: tuple[int, ...], rows: int, model: int, draft: int, platform: str
) -> tuple[float, ...]:
    """The cost of a pass over `rows` rows with so many drafts, in passes of plain decoding.

    model, draft: weights of the model and of what drafts, 0 where that is no model; it runs once
    for each draft, and once where there are none, to read what was chosen. platform: "cpu", "gpu"
    or "tpu".
    """
    share, beside = rows / ROWS[platform], BESIDE[platform]

    def run(weights: int, tokens: int) -> float:
        return weights * (1 + share * tokens) + beside

    step = run(draft, 1) if draft else 0.0
    return tuple((run(model, n + 1) + max(n, 1) * step) / run(model, 1) for n in lengths)
