"""Sources with a hidden state: hidden Markov chains, and automata whose state follows.

Of a hidden Markov chain the entropy has no closed form. It is bounded by two sequences that meet:

    H(X_n | X_1 .. X_n-1, S_1)  <=  H(X_m | X_1 .. X_m-1)  <=  H(X_n | X_1 .. X_n-1),   m >= n

Cover & Thomas 2006, section 4.4. Both are computed by enumeration, and by how much they differ is
stated. The gap closes as fast as the chain forgets.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxlm.data.synthetic import machine

_ENUMERATED = 1 << 20  # numbers in the largest array of the enumeration
_BLOCK = 2048  # documents whose bits are drawn at once


@dataclass(frozen=True)
class Hidden:
    """A hidden Markov chain. It stays in a state, or goes on to one of two others, by sixteenths;
    each state emits symbols by Zipf's law in a ranking of its own. The start is stationary."""

    states: int = 3
    """Hidden states, 3 .. 32."""
    alphabet: int = 8
    """Symbols, 2 .. 94."""
    stay: int = 12
    """Sixteenths of the steps that stay in the state, 0 .. 16. The more, the longer the memory, and
    the wider the bounds on the entropy."""
    zipf: float = 1.5
    """Probabilities in a state fall as rank ** -zipf."""
    seed: int = 0
    """Decides rankings and documents."""
    length: int = 127
    """Symbols of a document."""
    documents: int = 16384
    """Documents in all."""


@dataclass(frozen=True)
class Unifilar:
    """An automaton: state and symbol decide the next state, so that the whole document up to a
    symbol determines it, though no number of last symbols may do so."""

    states: int = 8
    """States, 2 .. 256."""
    alphabet: int = 8
    """Symbols, 2 .. 94."""
    zipf: float = 1.5
    """Probabilities in a state fall as rank ** -zipf."""
    seed: int = 0
    """Decides the automaton and the documents."""
    length: int = 127
    """Symbols of a document."""
    documents: int = 16384
    """Documents in all."""


class Chain(NamedTuple):
    """moves [S, S] and emits [S, A] int64, rows that sum to machine.TOTAL. The columns of `moves`
    do too: all states are equally frequent, from the first symbol on."""

    moves: np.ndarray
    emits: np.ndarray


class Bounds(NamedTuple):
    """Nats. upper [n], lower [n]: H(X_t | X_1 .. X_t-1) without and with S_1, t = 1 .. n."""

    upper: np.ndarray
    lower: np.ndarray


def unifilar(cfg: Unifilar) -> machine.Machine:
    """The machine of an automaton, [states, alphabet]."""
    size = cfg.states * cfg.alphabet
    drawn = machine.bits(f"unifilar/{cfg.seed}", 4 * size).view("<u2")
    following = (drawn[:size] % cfg.states).astype(np.int32).reshape(cfg.states, cfg.alphabet)
    weights = machine.zipf(cfg.alphabet, cfg.zipf)[_ranks(drawn[size:], following.shape)]
    return machine.Machine(weights, following)


def _ranks(keys: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each row's keys as ranks 0 .. A-1."""
    order = np.argsort(keys.reshape(shape), axis=1, kind="stable")  # [rows, A]
    return np.argsort(order, axis=1, kind="stable")


def chain(cfg: Hidden) -> Chain:
    """The chain of a config: state s goes on to s, s + 1 and s + 2 (modulo S)."""
    sixteenth = machine.TOTAL // 16
    away = sixteenth * (16 - cfg.stay)
    moves = np.zeros((cfg.states, cfg.states), np.int64)
    at = np.arange(cfg.states)
    moves[at, at] = sixteenth * cfg.stay
    moves[at, (at + 1) % cfg.states] += away - away // 4
    moves[at, (at + 2) % cfg.states] += away // 4
    drawn = machine.bits(f"hidden/{cfg.seed}", 2 * cfg.states * cfg.alphabet).view("<u2")
    ranks = _ranks(drawn, (cfg.states, cfg.alphabet))
    return Chain(moves, machine.zipf(cfg.alphabet, cfg.zipf)[ranks])


def bounds(source: Chain) -> Bounds:
    """The bounds for t = 1 .. n, n as large as A^n S^2 numbers fit."""
    move, emit = source.moves / machine.TOTAL, source.emits / machine.TOTAL
    states, size = emit.shape
    # joint [first state, prefix, state]: P(S_1, X_1 .. X_t-1, S_t)
    joint = np.eye(states)[:, None, :] / states  # [S, 1, S]
    upper, lower = [], []
    before = np.array([0.0, np.log(states)])  # H(X_1 .. X_t-1), and of these with S_1
    while not upper or joint.size * size <= _ENUMERATED:
        emitted = joint[:, :, None, :] * emit.T  # [first, prefix, symbol, state]
        emitted = emitted.reshape(states, -1, states)  # [first, prefix symbol, state]
        both = emitted.sum(2)  # [first, prefix symbol]
        now = np.array([_entropy(both.sum(0)), _entropy(both)])
        upper.append(now[0] - before[0])
        lower.append(now[1] - before[1])
        before, joint = now, emitted @ move
    return Bounds(np.array(upper), np.array(lower))


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))


def document_entropy(source: Chain, length: int) -> tuple[float, float]:
    """(nats of a document of `length` symbols, bound on its error): the middle of the bounds.

    Exact for the symbols that the enumeration reaches; every later one costs between the last
    lower and the last upper bound.
    """
    both = bounds(source)
    n = len(both.upper)
    if length <= n:
        return float(both.upper[:length].sum()), 0.0
    known = float(both.upper.sum())
    middle = float(both.upper[-1] + both.lower[-1]) / 2
    half = float(both.upper[-1] - both.lower[-1]) / 2
    return known + (length - n) * middle, (length - n) * half


def sample(source: Chain, label: str, block: int, length: int) -> np.ndarray:
    """uint8 [2048, length]: the symbols of one block of documents, from SHAKE-256 alone."""
    drawn = machine.bits(f"{label}/{block}", 4 * _BLOCK * (length + 1)).view("<u2")
    drawn = drawn.reshape(2, _BLOCK, length + 1).astype(np.int64)  # of moves and of symbols
    states = len(source.moves)
    moves, emits = (np.cumsum(w, axis=1)[:, :-1] for w in source)
    # 16 bits over S states: some are likelier by less than S / 65536
    state = drawn[0, :, length] * states // machine.TOTAL
    out = np.empty((_BLOCK, length), np.uint8)
    for t in range(length):
        out[:, t] = np.sum(drawn[1, :, t, None] >= emits[state], axis=1)
        state = np.sum(drawn[0, :, t, None] >= moves[state], axis=1)
    return out


def score(source: Chain, symbols: np.ndarray) -> np.ndarray:
    """[n] nats of documents, symbols [n, L], by the forward algorithm. Rabiner 1989, eq. 19-21."""
    move, emit = source.moves / machine.TOTAL, source.emits / machine.TOTAL
    belief = np.full((len(symbols), len(move)), 1 / len(move))
    total = np.zeros(len(symbols))
    for column in symbols.T:
        joint = belief * emit[:, column].T  # [n, S]
        p = joint.sum(1)  # [n]
        total -= np.log(p)
        belief = joint / p[:, None] @ move  # [n, S]
    return total
