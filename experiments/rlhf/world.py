"""A world small enough to list: every completion of every prompt, with its probability.

A text is `end prompt y1 y2 ...`: the end token, one prompt symbol, and a completion of at most
`length` symbols, closed by the end token where it is shorter. With 5 symbols, length 5 and 4
prompts there are 3,906 completions of each prompt, so that expected rewards, divergences, the best
policy and what preferences can at most tell are numbers rather than estimates: float64, on the
host. A model is listed through its own forward pass, in one compiled program: 5 ** 4 rows hold all
prefixes.

    J(pi) = E[r] - beta * KL(pi || ref)  <=  J* = beta * log E_ref[exp(r / beta)]

with equality for pi* = ref * exp(r / beta) / Z alone (Rafailov et al. 2023, eq. 4). Averages over
prompts are plain ones: all prompts are equally frequent.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Batch, Choices
from jaxlm.models import model as models
from jaxlm.models.model import Model
from jaxlm.ops.attention import At

Table = np.ndarray  # float64[prompts, completions]


@dataclasses.dataclass(frozen=True)
class World:
    """The size of a world. Its vocabulary is the symbols and, last, the end token."""

    symbols: int = 5
    """Symbols; the first `prompts` of them are prompts too."""
    length: int = 5
    """Tokens of the longest completion, which has no end token."""
    prompts: int = 4
    """Prompts, one symbol each."""

    @property
    def end(self) -> int:
        """The end token, which stands before every prompt too."""
        return self.symbols

    @property
    def vocab(self) -> int:
        """Tokens in all."""
        return self.symbols + 1

    @property
    def width(self) -> int:
        """Tokens of the longest text: the end token, a prompt and a completion."""
        return 2 + self.length


class Listing(NamedTuple):
    """All N completions, those that end first, the shortest first.

    tokens int32[N, length], the end token among them, 0 behind it. real bool[N, length]: where a
    token is. ended bool[N]. prefix int32[N, length]: what stands before each token, as a row of
    `prefixes`.
    """

    tokens: np.ndarray
    real: np.ndarray
    ended: np.ndarray
    prefix: np.ndarray


@functools.lru_cache
def listing(world: World) -> Listing:
    """The completions of any prompt."""
    symbols, length = range(world.symbols), world.length
    texts: list[tuple[int, ...]] = [
        (*text, world.end) for n in range(length) for text in itertools.product(symbols, repeat=n)
    ]
    texts += itertools.product(symbols, repeat=length)
    tokens = np.array([text + (0,) * (length - len(text)) for text in texts], np.int32)
    lengths = np.array([len(text) for text in texts])
    real = np.arange(length) < lengths[:, None]
    # a prefix is read in the row that goes on with zeros: digits of base `symbols`
    digits = np.where(real & (tokens != world.end), tokens, 0)[:, :-1]
    place = digits * world.symbols ** np.arange(length - 2, -1, -1)
    prefix = np.pad(np.cumsum(place, axis=1), ((0, 0), (1, 0))).astype(np.int32)
    ended = tokens[np.arange(len(texts)), lengths - 1] == world.end
    return Listing(tokens, real, ended, prefix)


def prefixes(world: World) -> np.ndarray:
    """int32[symbols ** (length - 1), length - 1]: the symbols of all prefixes, counting up."""
    rows = itertools.product(range(world.symbols), repeat=world.length - 1)
    return np.array(list(rows), np.int32).reshape(-1, world.length - 1)


def index(world: World, tokens: Any, real: Any) -> Any:
    """int32[...]: which completions these are, [..., length]. For numpy arrays and for jax's."""
    symbol = real & (tokens != world.end)
    number = 0 * tokens[..., 0]
    for t in range(world.length):
        digit = number * world.symbols + tokens[..., t]
        number = symbol[..., t] * digit + (1 - symbol[..., t]) * number
    # all that are shorter come first: 1 + 5 + 25 + ...
    shorter = (world.symbols ** symbol.sum(-1) - 1) // (world.symbols - 1)
    return number + shorter


# --- What a model says of it --------------------------------------------------------------------


def conditionals(model: Model, world: World, params: param.Tree) -> jax.Array:
    """float32[prompts, prefixes, length, vocab]: logits of each next token after each prefix."""
    rows = prefixes(world)
    begin = np.full((world.prompts, len(rows), 1), world.end)
    prompt = np.broadcast_to(np.arange(world.prompts)[:, None, None], begin.shape)
    body = np.broadcast_to(rows, (world.prompts, *rows.shape))
    tokens = np.concatenate([begin, prompt, body], -1).astype(np.int32)
    flat = jnp.asarray(tokens.reshape(-1, world.length + 1))
    at = At(jnp.ones_like(flat), jnp.broadcast_to(jnp.arange(flat.shape[1]), flat.shape))
    z = models.logits(model, params, flat, at)[:, 1:]
    return z.reshape(world.prompts, len(rows), world.length, world.vocab)


def together(world: World, log_p: Any) -> Any:
    """[prompts, N] log-probabilities of completions, of those of tokens after prefixes, as
    `conditionals` has them, normalised. For numpy arrays and for jax's."""
    found = listing(world)
    each = log_p[:, found.prefix, np.arange(world.length), found.tokens]
    return (each * found.real).sum(-1)


def normalised(logits: np.ndarray) -> np.ndarray:
    """float64 log-probabilities of logits [..., V]."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def policy(model: Model, world: World) -> Callable[[param.Tree], Table]:
    """The function weights -> log-probabilities [prompts, N]: one compiled program."""
    run = jax.jit(functools.partial(conditionals, model, world))
    return lambda params: together(world, normalised(np.asarray(run(params))))


def scores(read: Callable[[param.Tree, Choices], jax.Array], world: World) -> Any:
    """The function weights -> [prompts, N] scores, of a read(weights, Choices) -> [B, K] scores."""
    count = len(listing(world).tokens)
    prompt = np.repeat(np.arange(world.prompts), count)
    index = np.tile(np.arange(count), world.prompts)
    rows = choices(world, prompt[:, None], index[:, None], np.zeros_like(index)[:, None])
    run = jax.jit(read)

    def of(params: param.Tree) -> Table:
        return np.asarray(run(params, rows), np.float64).reshape(world.prompts, count)

    return of


# --- The source and the reward ------------------------------------------------------------------


def source(world: World, seed: int) -> Table:
    """Log-probabilities of a Markov source: the next token depends on the prompt and on the token
    before. Each distribution is a draw from Dirichlet(1.2)."""
    rng = np.random.default_rng(seed)
    size = (world.prompts, world.vocab)  # the row of the end token is that of the beginning
    chances = np.log(rng.dirichlet(np.full(world.vocab, 1.2), size=size))
    rows = prefixes(world)
    before = np.pad(rows, ((0, 0), (1, 0)), constant_values=world.end)
    return together(world, chances[:, before])


def reward(world: World) -> Table:
    """What is truly wanted of a completion y of prompt x, with z the last symbol:

    r = 0.6 #x - 0.5 #(x + 1) + 0.7 #(x, z) + 0.8 [it ends]
    """
    tokens, real, ended, _ = listing(world)
    out = []
    for x in range(world.prompts):
        good = ((tokens == x) & real).sum(1)
        bad = ((tokens == (x + 1) % world.symbols) & real).sum(1)
        pair = (tokens[:, :-1] == x) & (tokens[:, 1:] == world.symbols - 1) & real[:, 1:]
        out.append(0.6 * good - 0.5 * bad + 0.7 * pair.sum(1) + 0.8 * ended)
    return np.array(out)


# --- What is best -------------------------------------------------------------------------------


class Standing(NamedTuple):
    """Where a policy stands: E[r], KL to the reference in nats, J = E[r] - beta * KL."""

    reward: float
    kl: float
    objective: float


def standing(log_p: Table, log_ref: Table, r: Table, beta: float) -> Standing:
    """The exact Standing of a policy.

    Raises: ArithmeticError if J exceeds J*, which no policy's can: something is measured wrongly.
    """
    p = np.exp(log_p)
    total = p.sum(1)
    if np.abs(total - 1).max() > 1e-9:
        raise ArithmeticError(f"the completions' probabilities sum to {total}, not to 1")
    gain, kl = expected(log_p, r), float((p * (log_p - log_ref)).sum(1).mean())
    found = Standing(gain, kl, gain - beta * kl)
    check(found.objective, best(log_ref, r, beta)[1], 1e-9)
    return found


def check(objective: float, most: float, error: float) -> None:
    """Raises: ArithmeticError if a J, known up to an error, exceeds J*."""
    if not objective <= most + error:
        raise ArithmeticError(
            f"J = {objective} +- {error} exceeds J* = {most}, which no policy's can: a measure is "
            "wrong"
        )


def expected(log_p: Table, values: Table) -> float:
    """The mean of a table under a policy."""
    return float((np.exp(log_p) * values).sum(1).mean())


def divergence(log_p: Table, log_q: Table) -> float:
    """KL(p || q) in nats, the mean over prompts."""
    return expected(log_p, log_p - log_q)


def best(log_ref: Table, r: Table, beta: float) -> tuple[Table, float]:
    """(log-probabilities of the policy whose J is greatest, that J*)."""
    tilted = log_ref + r / beta
    peak = tilted.max(1, keepdims=True)
    log_z = peak + np.log(np.exp(tilted - peak).sum(1, keepdims=True))
    return tilted - log_z, float(beta * log_z.mean())


def frontier(log_ref: Table, r: Table, kl: float) -> float:
    """The largest E[r] of any policy at this KL: that of ref * exp(r / b) / Z for the b that has
    this KL. A KL beyond all b gets the best reward there is."""
    low, high = 1e-3, 1e3  # of b, whose KL falls as it rises
    for _ in range(80):
        middle = (low * high) ** 0.5
        log_p = best(log_ref, r, middle)[0]
        low, high = (middle, high) if divergence(log_p, log_ref) > kl else (low, middle)
    return expected(best(log_ref, r, high)[0], r)


def efficiency(log_p: Table, log_ref: Table, r: Table) -> float:
    """The reward gained over the reference's, as a share of the most that the policy's KL buys."""
    start = expected(log_ref, r)
    most = frontier(log_ref, r, divergence(log_p, log_ref))
    return (expected(log_p, r) - start) / (most - start)


def gap(log_p: Table, log_ref: Table, r: Table, beta: float) -> float:
    """How much of the way from the reference's J to J* a policy has gone."""
    start = expected(log_ref, r)
    most = best(log_ref, r, beta)[1]
    return (standing(log_p, log_ref, r, beta).objective - start) / (most - start)


def fit(values: Table, r: Table, log_p: Table) -> tuple[float, float]:
    """(correlation, slope) of values against r within prompts, under a policy: what a constant per
    prompt adds, preferences cannot tell."""
    p = np.exp(log_p)
    a, b = (x - (p * x).sum(1, keepdims=True) for x in (values, r))
    cov, var_a, var_b = ((p * x).sum() for x in (a * b, a * a, b * b))
    return float(cov / (var_a * var_b) ** 0.5), float(cov / var_b)


# --- Preferences and selection ------------------------------------------------------------------


def accuracy(values: Table, r: Table, log_p: Table) -> float:
    """How often values choose as a Bradley-Terry judge of r does, of two completions drawn from a
    policy; a tie counts a half. values = r gives the Bayes limit."""
    found = []
    for v, true, p in zip(values, r, np.exp(log_p), strict=True):
        kinds, kind = np.unique(true.round(9), return_inverse=True)  # few: the rest is their mass
        wins = 1 / (1 + np.exp(kinds[None] - true[:, None]))  # of each completion over each kind
        levels, level = np.unique(v, return_inverse=True)
        mass = np.zeros((len(levels), len(kinds)))
        np.add.at(mass, (level, kind), p)
        below = np.cumsum(mass, 0) - mass
        found.append(p @ (wins * (2 * below[level] + mass[level])).sum(1))
    return float(np.mean(found))


def preference_nll(values: Table, r: Table, log_p: Table) -> float:
    """Nats per preference of a Bradley-Terry judge of r, predicted from values, of two completions
    drawn from a policy. values = r gives the Bayes limit."""
    found = []
    for v, true, p in zip(values, r, np.exp(log_p), strict=True):
        total = 0.0
        for some in np.array_split(np.arange(len(v)), 16):
            d, t = v[some, None] - v[None], true[some, None] - true[None]
            nll = np.maximum(-d, 0) + np.log1p(np.exp(-np.abs(d)))  # of a victory of the first
            total += p[some] @ (2 / (1 + np.exp(-t)) * nll) @ p
        found.append(total)
    return float(np.mean(found))


def best_of(log_p: Table, values: Table, n: int) -> Table:
    """Log-probabilities of the completion of n draws whose value is greatest; ties are broken at
    random."""
    out = []
    for p, v in zip(np.exp(log_p), values, strict=True):
        levels, level = np.unique(v, return_inverse=True)
        mass = np.bincount(level, p, len(levels))
        upto = np.cumsum(mass)
        with np.errstate(divide="ignore"):  # nothing is below the lowest
            below = n * np.log1p(-np.minimum(mass / upto, 1.0))  # log of (share below) ** n
        won = n * np.log(upto) + np.log(-np.expm1(below)) - np.log(mass)
        out.append(np.log(p) + won[level])
    return np.array(out)


def best_of_kl(n: int) -> float:
    """log n - (n - 1) / n: the KL of the best of n draws where no two have the same value, and no
    less than it elsewhere (Beirami et al. 2024, theorem 1)."""
    return float(np.log(n) - (n - 1) / n)


# --- Data ---------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, log_p: Table, prompt: np.ndarray) -> np.ndarray:
    """Indices of completions drawn from a policy, one for each of these prompts, of any shape."""
    upto = np.cumsum(np.exp(log_p), 1)
    upto += np.arange(len(upto))[:, None]  # one rising table of all prompts
    at = np.searchsorted(upto.ravel(), prompt + rng.random(prompt.shape) * (1 - 1e-12))
    return np.minimum(at - prompt * upto.shape[1], upto.shape[1] - 1)


def texts(world: World, prompt: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32[..., width], which of them are real) of completions of prompts, [...]."""
    found = listing(world)
    head = np.stack([np.full_like(prompt, world.end), prompt], -1)
    tokens = np.concatenate([head, found.tokens[index]], -1).astype(np.int32)
    return tokens, np.concatenate([np.ones(head.shape, bool), found.real[index]], -1)


def batch(world: World, prompt: np.ndarray, index: np.ndarray) -> Batch:
    """Completions to learn by heart, [..., width - 1]; nothing is learnt of prompts."""
    tokens, real = texts(world, prompt, index)
    weight = (real[..., 1:] & (np.arange(1, world.width) > 1)).astype(np.float32)
    segments = real[..., :-1].astype(np.int32)
    positions = np.where(real, np.arange(world.width), 0)[..., :-1].astype(np.int32)
    return Batch(tokens[..., :-1], tokens[..., 1:], weight, segments, positions)


def choices(world: World, prompt: np.ndarray, index: np.ndarray, rank: np.ndarray) -> Choices:
    """Ranked completions, [..., K, width], of prompts, completions and ranks, all [..., K]."""
    tokens, real = texts(world, prompt, index)
    targets = np.pad(tokens[..., 1:], [(0, 0)] * (tokens.ndim - 1) + [(0, 1)])
    follows = np.pad(real[..., 1:], [(0, 0)] * (tokens.ndim - 1) + [(0, 1)])
    weight = (follows & (np.arange(world.width) > 0)).astype(np.float32)
    positions = np.where(real, np.arange(world.width), 0).astype(np.int32)
    return Choices(
        tokens, targets, weight, real.astype(np.int32), positions, rank.astype(np.int32),
        np.ones(prompt.shape[:-1], np.float32), np.zeros(prompt.shape, np.float32),
    )  # fmt: skip


def preferences(
    rng: np.random.Generator, world: World, log_p: Table, r: Table, shape: tuple[int, ...], k: int
) -> Choices:
    """Lists of k completions drawn from a policy, [*shape, k, width], the best first as a judge of
    r ranks them. The judge adds Gumbel noise to each reward, so that each pair of a list is ranked
    as Bradley and Terry have it (Luce 1959, Plackett 1975)."""
    prompt = np.broadcast_to(rng.integers(world.prompts, size=(*shape, 1)), (*shape, k))
    index = draw(rng, log_p, prompt)
    order = np.argsort(-r[prompt, index] - rng.gumbel(size=index.shape), axis=-1)
    index = np.take_along_axis(index, order, -1)
    return choices(world, prompt, index, np.broadcast_to(np.arange(k), index.shape))
