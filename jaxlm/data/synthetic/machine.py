"""Finite-state sources whose entropy is exact: the symbols of state s, and where each leads.

The next state follows from the state and the symbol (the source is unifilar), and a document begins
in state 0. So a document read from its beginning determines the state, and the best possible
prediction of the next symbol is that state's row: the entropy of a document is the expected sum of
its states' entropies. Shannon 1948, section 7; Cover & Thomas 2006, section 4.2.

Probabilities are whole numbers of 65536ths: 16 random bits choose a symbol, without rounding.
"""

import hashlib
from typing import NamedTuple

import numpy as np

TOTAL = 1 << 16  # a row's weights sum to it
_BLOCK = 2048  # documents whose bits are drawn at once


class Machine(NamedTuple):
    """weights [S, A] int64, rows that sum to TOTAL; following [S, A] int32, the state after each
    symbol. A document begins in state 0."""

    weights: np.ndarray
    following: np.ndarray


def check(machine: Machine) -> None:
    """Raises: ValueError for rows that are no distribution, or symbols that lead nowhere."""
    weights, following = machine
    if weights.shape != following.shape:
        raise ValueError(f"weights {weights.shape} and following {following.shape}: same shape")
    wrong = np.flatnonzero((weights.sum(1) != TOTAL) | (weights < 0).any(1))
    if len(wrong):
        row = weights[wrong[0]]
        raise ValueError(
            f"weights of state {wrong[0]} sum to {row.sum()} with a smallest of {row.min()}; "
            f"{TOTAL} and 0 or more are right"
        )
    if following.min() < 0 or following.max() >= len(weights):
        raise ValueError(
            f"following: states {following.min()} .. {following.max()} given; 0 .. "
            f"{len(weights) - 1} exist"
        )


def zipf(size: int, exponent: float) -> np.ndarray:
    """[size] int64 weights that fall as rank ** -exponent, at least 1 each, and sum to TOTAL.

    The shares are rounded down and the largest remainders are rounded up. Zipf 1949.
    """
    shares = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    exact = shares / shares.sum() * (TOTAL - size)
    floor = np.floor(exact).astype(np.int64)
    up = np.argsort(floor - exact, kind="stable")[: TOTAL - size - floor.sum()]
    floor[up] += 1
    return floor + 1


def bits(label: str, size: int) -> np.ndarray:
    """[size] uint8 from SHAKE-256 of a label: the same on every machine."""
    return np.frombuffer(hashlib.shake_256(label.encode()).digest(size), np.uint8)


def row_entropy(machine: Machine) -> np.ndarray:
    """[S] nats: the entropy of the next symbol in each state."""
    p = machine.weights / TOTAL
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)


def forward(machine: Machine, share: np.ndarray) -> np.ndarray:
    """[S]: the distribution of the state one symbol after it was `share` [S]."""
    flow = share[:, None] * (machine.weights / TOTAL)  # [S, A]
    return np.bincount(machine.following.ravel(), flow.ravel(), len(machine.weights))


def visits(machine: Machine, length: int) -> np.ndarray:
    """[S]: the expected number of visits to each state in a document of `length` symbols."""
    share = np.zeros(len(machine.weights))
    share[0] = 1.0
    total = np.zeros_like(share)
    for _ in range(length):
        total += share
        share = forward(machine, share)
    return total


def document_entropy(machine: Machine, length: int) -> float:
    """Nats of a document of `length` symbols, exact but for float64's rounding (1e-12 of it)."""
    return float(visits(machine, length) @ row_entropy(machine))


def rate(machine: Machine, width: float = 1e-12, most: int = 20_000) -> tuple[float, float]:
    """(entropy rate in nats a symbol, bound on its error) of the endless source.

    With h the states' entropies and P the states' transitions, the rate is pi P^n h for every n, so
    it is between the least and the largest element of P^n h: bounds that hold at every n, and
    that meet where there is one class of states. P is made lazy, (P + 1) / 2, for periodic sources:
    pi stays. Stops at `width` nats or after `most` rounds.
    """
    p = machine.weights / TOTAL
    value = row_entropy(machine)
    for _ in range(most):
        if value.max() - value.min() <= width:
            break
        value = 0.5 * value + 0.5 * np.sum(p * value[machine.following], axis=1)
    return float(value.max() + value.min()) / 2, float(value.max() - value.min()) / 2


def sample(machine: Machine, label: str, block: int, length: int) -> np.ndarray:
    """uint8 [2048, length]: the symbols of one block of documents, from SHAKE-256 alone."""
    drawn = bits(f"{label}/{block}", 2 * _BLOCK * length).view("<u2").reshape(_BLOCK, length)
    above = np.cumsum(machine.weights, axis=1)[:, :-1]  # the last symbol takes what is left
    state = np.zeros(_BLOCK, np.int64)
    out = np.empty((_BLOCK, length), np.uint8)
    for t in range(length):
        symbol = np.sum(drawn[:, t, None] >= above[state], axis=1)  # [2048]
        out[:, t] = symbol
        state = machine.following[state, symbol]
    return out


def score(machine: Machine, symbols: np.ndarray) -> np.ndarray:
    """[n] nats of documents, symbols [n, L], under the source itself: the ideal predictor."""
    with np.errstate(divide="ignore"):  # what the source never writes costs infinitely much
        cost = -np.log(machine.weights / TOTAL)
    state = np.zeros(len(symbols), np.int64)
    total = np.zeros(len(symbols))
    for column in symbols.T:
        total += cost[state, column]
        state = machine.following[state, column]
    return total
