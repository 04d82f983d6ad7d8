"""A bigram model: the logits of the next token are the row of a table that its token names.

The smallest model whose whole objectives can be written down in NumPy, in value and in gradient.
`agrees` compares an objective with such an oracle: its gradient by differences in float64.
"""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Choices
from jaxlm.models.model import Hidden, Kind, Model

V, T = 7, 6
# (prompt tokens, response tokens, rank): a ranking with a tie, pairs, one the other way round, a
# prompt without a pair, and one without a response
ROWS = (
    ((2, 4, 0), (2, 2, 1), (2, 3, 1)),
    ((1, 1, 0), (1, 5, 1)),
    ((3, 2, 2), (3, 3, 0), (3, 1, 1)),
    ((2, 4, 1), (2, 2, 0)),
    ((2, 1, 0),),
    (),
)
LABELLED = (((2, 4, 0), (2, 2, -1)), ((1, 1, 1), (1, 5, -1)), ((3, 2, 1), (3, 3, -1)),
            ((1, 3, 0), (1, 4, -1)), ())  # fmt: skip


def model(kind: Kind = "decoder", ahead: bool = False) -> Model:
    """The Model of table [V, V]. The source of an encoder-decoder adds its own rows; ahead: a
    second table predicts the token after the next one."""
    p = param.shaper(vocab=V, embed=V)
    spec = {"table": p("vocab -> embed")} | ({"ahead": p("vocab -> embed")} if ahead else {})

    def hidden(params, tokens, at, cache=None, key=None, source=None):
        x = jnp.asarray(params["table"])[tokens]
        return Hidden(x if source is None else x + source[0], None)

    return Model(
        cfg=SimpleNamespace(embed=V, vocab=V),
        spec=spec,
        hidden=hidden,
        head=lambda params: {},
        unembed=lambda head, x: x,
        cache=lambda batch, slots: (),
        context=None,
        kind=kind,
        encode=(lambda params, tokens, at, key=None: params["table"][tokens])
        if kind == "encoder_decoder"
        else None,
        ahead=(lambda params, x, tokens, at: ([params["ahead"][tokens]], {})) if ahead else None,
    )


def table(seed: int) -> np.ndarray:
    """float64[V, V]: logits, far from even."""
    return np.random.default_rng(seed).normal(size=(V, V)) * 1.3


PARAMS = {"table": table(1)}
REFERENCE = {"table": table(2) + 0.7 * table(1)}


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def choices(rows, seed: int = 0, ratings: bool = True) -> Choices:
    """`Choices` of rows ((prompt tokens, response tokens, rank), ...) a prompt; missing ones of
    rank -1 are empty. The third prompt's ranking holds with probability 0.8."""
    r = np.random.default_rng(seed)
    most = max(len(row) for row in rows)
    shape = (len(rows), most, T)
    tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    weight, rank = np.zeros(shape), np.full(shape[:2], -1, np.int32)
    for b, row in enumerate(rows):
        for k, (p, n, place) in enumerate(row):
            text = r.integers(0, V, p + n)
            tokens[b, k, : p + n], targets[b, k, : p + n - 1] = text, text[1:]
            segments[b, k, : p + n], positions[b, k, : p + n] = 1, np.arange(p + n)
            weight[b, k, p - 1 : p + n - 1], rank[b, k] = 1, place
    certain = np.where(np.arange(len(rows)) == 2, 0.8, 1.0)
    score = r.normal(size=shape[:2]) if ratings else np.zeros(shape[:2])
    return Choices(tokens, targets, weight, segments, positions, rank, certain, score)


@functools.cache
def batches():
    return {"pairs": choices(ROWS), "kto": choices(LABELLED, seed=5)}


def pairs(rank):
    """(prompt, chosen, rejected, share of the prompt) of every ordered pair."""
    for b, row in enumerate(rank):
        places = range(len(row))
        ordered = [(i, j) for i, j in itertools.permutations(places, 2) if 0 <= row[i] < row[j]]
        yield from ((b, i, j, 1 / len(ordered)) for i, j in ordered)


def gradient(f, params: dict[str, np.ndarray], step: float = 1e-6) -> dict[str, np.ndarray]:
    """The gradient of f(params) by central differences."""
    slopes = {name: np.zeros_like(x) for name, x in params.items()}
    for name, x in params.items():
        for i in np.ndindex(x.shape):
            sides = []
            for s in (step, -step):
                moved = x.copy()
                moved[i] += s
                sides.append(f(params | {name: moved}))
            slopes[name][i] = (sides[0] - sides[1]) / (2 * step)
    return slopes


def slopes(objectives, params, frozen, batches):
    """{case: (sum, weight, sums, gradient)} of objectives {case: Objective}, in float64: one
    compiled program. params, frozen and batches are by case; equal ones are one input, so that the
    compiler finds what cases have in common."""

    def one(case, params, batch):
        def total(params):
            value, weight, sums = objectives[case].loss(params, frozen[case], batch, None)
            return value, (weight, sums)

        (value, (weight, sums)), grads = jax.value_and_grad(total, has_aux=True)(params)
        return value, weight, sums, grads

    def every(inputs):
        by = {key: jax.tree.map(jnp.asarray, x) for key, x in inputs.items()}
        return {c: one(c, by[id(params[c])], by[id(batches[c])]) for c in objectives}

    inputs = {id(x): x for x in (*params.values(), *batches.values())}
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(every)(inputs))


def agrees(ours, oracle, params, weight):
    """That (sum, weight, sums, gradient) are oracle(params)'s value and gradient, and the weight.

    oracle(params, held): the sum; held are the params again, for what carries no gradient."""
    value, count, _, grads = ours
    np.testing.assert_allclose(count, weight, rtol=1e-6)
    np.testing.assert_allclose(value, oracle(params, params), rtol=2e-6, atol=1e-6)
    right = gradient(lambda p: oracle(p, params), params)
    for name in params:
        most = np.abs(right[name]).max()
        assert most > 0, name
        np.testing.assert_allclose(grads[name], right[name], atol=3e-6 * max(most, 1), rtol=2e-5)
