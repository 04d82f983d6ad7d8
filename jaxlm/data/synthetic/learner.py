"""The loss of an ideal learner of a known source: a law's ground truth without training.

The learner keeps N of the source's contexts, those that come oftest, and has read D symbols. In a
context that it keeps it predicts by what it counted there, mixed with the source's average
over all contexts, worth `prior` symbols; elsewhere by that average alone:

    L(N, D) = sum over kept s of visits_s E[-log (k_x + prior q_x) / (n + prior)]
            + sum over others of visits_s sum_x p(x|s) (-log q_x)

k_x is the count of x in context s. Counts are taken as independent and Poisson, of mean D times
their frequency, which makes every expectation exact and the sum over contexts free: this is the
"learning curve theory" of Hutter 2021 with a distribution in each context, and the kept contexts
are the quanta of Michaud et al. 2023. As N and D grow L falls to the entropy, and to nothing else.
"""

import math

import numpy as np

from jaxlm.data.synthetic import machine

_SERIES = 100.0  # means above it are expanded, others summed


def loss(
    source: machine.Machine,
    length: int,
    contexts: np.ndarray,
    symbols: np.ndarray,
    prior: float = 4.0,
) -> np.ndarray:
    """[n] nats per symbol of learners that keep `contexts` [n] and have read `symbols` [n] of
    documents of `length` symbols.

    Raises: ValueError for arrays that differ in length, contexts outside 0 .. S, symbols below 0,
    or a prior not above 0.
    """
    contexts, symbols = np.atleast_1d(contexts), np.atleast_1d(np.asarray(symbols, np.float64))
    states = len(source.weights)
    if contexts.shape != symbols.shape or contexts.ndim != 1:
        raise ValueError(f"contexts {contexts.shape}, symbols {symbols.shape}: one each is needed")
    if contexts.min() < 0 or contexts.max() > states or symbols.min() < 0 or not prior > 0:
        raise ValueError(
            f"contexts {contexts.min()} .. {contexts.max()}, symbols from {symbols.min()}, prior "
            f"{prior}: 0 .. {states}, 0 or more, and above 0 are needed"
        )
    share = machine.visits(source, length) / length
    order = np.argsort(-share, kind="stable")
    share, p = share[order], source.weights[order] / machine.TOTAL
    q = share @ p
    alone = -(p @ np.log(np.where(q > 0, q, 1.0)))  # [S] nats of the average in each context
    unread = np.append(np.cumsum((share * alone)[::-1])[::-1], 0.0)
    out = np.empty(len(symbols))
    for read in np.unique(symbols):
        at = symbols == read
        known = share * _kept(p, q, read * share, prior)
        out[at] = np.append(0.0, np.cumsum(known))[contexts[at]] + unread[contexts[at]]
    return out


def _kept(p: np.ndarray, q: np.ndarray, n: np.ndarray, prior: float) -> np.ndarray:
    """[S] nats of predictions by counts of mean n [S] symbols in each context."""
    counted = mean_log(n[:, None] * p, prior * q)
    return mean_log(n, np.full_like(n, prior)) - np.sum(p * counted, axis=1)


def mean_log(mean: np.ndarray, plus: np.ndarray) -> np.ndarray:
    """E log(k + plus) of Poisson counts k of this mean, plus > 0; broadcast together.

    Summed where the mean is up to 100; beyond, the expansion about the mean by central moments, up
    to the sixth (2e-8 at 100).
    """
    mean, plus = np.broadcast_arrays(mean, plus)
    out = np.empty(mean.shape)
    small = mean <= _SERIES
    m, a = mean[small], plus[small]
    total, chance = np.zeros(m.shape), np.exp(-m)
    for k in range(int(_SERIES + 12 * math.sqrt(_SERIES))):
        total += chance * np.log(k + a)
        chance = chance * m / (k + 1)
    out[small] = total
    m, a = mean[~small], plus[~small]
    x = m + a
    moments = (m, m, m + 3 * m**2, m + 10 * m**2, m + 25 * m**2 + 15 * m**3)  # 2nd to 6th
    terms = [(-1) ** (j + 1) * c / (j * x**j) for j, c in enumerate(moments, start=2)]
    out[~small] = np.log(x) + sum(terms)
    return out
