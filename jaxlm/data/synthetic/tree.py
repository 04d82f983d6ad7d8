"""Markov sources of fixed and of variable order, with Zipf's law in every context.

A context is the last symbols, the newest last. Symbol 0 is the commonest everywhere, so
contexts come with frequencies that fall over many decades, as words and phrases do: a learner meets
a few all the time and most hardly ever, which is what makes its loss a power law of the data it has
read and of what it can keep (Hutter 2021, "Learning curve theory"; Michaud et al. 2023, "The
quantization model of neural scaling").
"""

from dataclasses import dataclass

import numpy as np

from jaxlm.data.synthetic import machine

LARGEST = 1 << 23  # entries of a machine's table
_SPREAD = (0.5, 1.0, 1.5, 2.0)  # of exponents in Markov


@dataclass(frozen=True)
class Markov:
    """A chain of fixed order: every context has a ranking of its own, and an exponent of its own of
    0.5, 1, 1.5 or 2 times `zipf`."""

    alphabet: int = 16
    """Symbols, 2 .. 94."""
    order: int = 2
    """Symbols that the next one depends on."""
    zipf: float = 1.0
    """Probabilities in a context fall as rank ** -exponent, about this one."""
    seed: int = 0
    """Decides rankings, exponents and documents."""
    length: int = 127
    """Symbols of a document."""
    documents: int = 16384
    """Documents in all."""


@dataclass(frozen=True)
class Tree:
    """A source of variable order, a context tree: a context of d symbols is extended into the past
    by the `fan` commonest symbols only, up to `depth`, and by the others not at all.

    A longer context ranks the next symbols nearly as the shorter one inside it does, so that a
    learner of any size gains by learning a little more. Rissanen 1983; Willems et al. 1995.
    """

    alphabet: int = 64
    """Symbols, 2 .. 94."""
    depth: int = 2
    """Symbols of the longest context."""
    fan: int = 64
    """Number of symbols, from the commonest down, that extend a context."""
    zipf: float = 1.2
    """Probabilities in every context fall as rank ** -zipf."""
    change: int = 6
    """Distance of a context's ranking from that of the shorter one in it: a symbol's rank is
    multiplied by a factor from 1 to 1 + change, and the products are ranked anew. 0: not at all."""
    seed: int = 0
    """Decides rankings and documents."""
    length: int = 127
    """Symbols of a document."""
    documents: int = 16384
    """Documents in all."""


def markov(cfg: Markov) -> machine.Machine:
    """The machine of a chain: one state a context of 0 .. order symbols, [states, alphabet].

    Raises: ValueError for a table that is too large.
    """
    _check("order", cfg.order, cfg.alphabet, cfg.alphabet)
    rows = [machine.zipf(cfg.alphabet, cfg.zipf * scale) for scale in _SPREAD]
    weights = []
    for d in range(cfg.order + 1):
        drawn = machine.bits(f"markov/{cfg.seed}/{d}", cfg.alphabet**d * (2 * cfg.alphabet + 1))
        drawn = drawn.reshape(-1, 2 * cfg.alphabet + 1)  # [contexts, 2 A + 1] bytes
        keys = np.ascontiguousarray(drawn[:, 1:]).view("<u2")  # [contexts, A]
        rank = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
        weights.append(np.stack(rows)[drawn[:, :1] % len(rows), rank])
    following = _following(cfg.alphabet, cfg.order, cfg.alphabet)
    return machine.Machine(np.concatenate(weights), following)


def tree(cfg: Tree) -> machine.Machine:
    """The machine of a context tree: one state a context, [states, alphabet].

    Every row has the same weights in another order, hence the same entropy: that of Zipf's law.

    Raises: ValueError for a table that is too large.
    """
    _check("depth", cfg.depth, cfg.alphabet, cfg.fan)
    size = cfg.alphabet
    rank = np.arange(size)[None]
    ranks = [rank]
    for d in range(1, cfg.depth + 1):
        # y0 y1 .. yd is at y0 * (contexts of d symbols) + (y1 .. yd): copies of all of these
        rank = np.tile(rank, (cfg.fan if d > 1 else size, 1))
        drawn = machine.bits(f"tree/{cfg.seed}/{d}", rank.size).reshape(rank.shape)
        key = (rank + 1) * (256 + cfg.change * drawn.astype(np.int64))
        rank = np.argsort(np.argsort(key, axis=1, kind="stable"), axis=1, kind="stable")
        ranks.append(rank)
    weights = machine.zipf(size, cfg.zipf)[np.concatenate(ranks)]
    return machine.Machine(weights, _following(size, cfg.depth, cfg.fan))


def _check(name: str, deepest: int, alphabet: int, fan: int) -> None:
    states = 1 + sum(alphabet * fan ** (d - 1) for d in range(1, deepest + 1))
    if states * alphabet > LARGEST:
        raise ValueError(
            f"{name}={deepest}: {states} contexts of {alphabet} symbols; at most "
            f"{LARGEST // alphabet} contexts fit, choose a smaller {name}, alphabet or fan"
        )


def _following(alphabet: int, deepest: int, fan: int) -> np.ndarray:
    """[S, alphabet] int32: the longest context of the tree that ends the document so far.

    Contexts of d symbols y1 .. yd, of which all but yd are below `fan`, come after all shorter
    ones at place (y1 fan^(d-2) + .. + y(d-1)) alphabet + yd.
    """
    counts = [1] + [alphabet * fan ** (d - 1) for d in range(1, deepest + 1)]
    offset = np.cumsum([0, *counts])
    out = []
    for d in range(deepest + 1):
        place = np.arange(counts[d])
        last, before = (place % alphabet, place // alphabet) if d else (place, place)
        # how many of the newest symbols may stay along with the next one
        kept = np.where(last < fan, d, 0) if d else np.zeros(1, np.int64)
        kept = np.minimum(kept, deepest - 1)
        value = np.where(kept > 0, before * fan + last, 0)
        value = value % (np.int64(fan) ** kept)  # the oldest falls off
        start = offset[kept + 1] + value * alphabet
        out.append(start[:, None] + np.arange(alphabet))  # [contexts of d symbols, A]
    return np.concatenate(out).astype(np.int32)
