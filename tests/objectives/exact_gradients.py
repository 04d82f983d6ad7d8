"""A world of 15 completions a prompt, in which what an objective's gradient must be is a sum over
all of them: the exact gradients, by none of the objectives' functions, each compiled once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rlhf import world
from jaxlm import models
from jaxlm.models import llama
from tests import programs

SIZE = world.World(symbols=2, length=3, prompts=2)
LISTED = world.listing(SIZE)
N = len(LISTED.tokens)
R = world.reward(SIZE)
BETA = 0.4
MODEL = models.build(
    llama.Config(vocab=3, embed=16, layers=1, heads=2, kv=2, head=8, ffn=24, context=8)
)
PAIR = np.array([*itertools.product(range(N), repeat=2)] * 2)
PAIR_PROMPT = np.repeat([[0, 0], [1, 1]], N * N, axis=0)
CHANCE = 1 / (1 + np.exp(np.diff(R[PAIR_PROMPT, PAIR])[:, 0]))  # that the first is preferred


@functools.cache
def weights(seed):
    """Weights of a policy that is far from even, and heads that are not 0."""
    params = programs.drawn(MODEL.spec, seed)
    draw = np.random.default_rng(seed).normal(size=16).astype(np.float32)
    return params | {"unembed": 2 * params["unembed"], "value": draw / 4, "score": draw / 2}


def trunk(tree):
    """The model's own weights, without heads."""
    return {name: tree[name] for name in MODEL.spec}


def table(params, temperature=1.0):
    """log pi [prompts, N] of the weights, differentiable, by none of the objectives' functions."""
    z = world.conditionals(MODEL, SIZE, params) / temperature
    return world.together(SIZE, jax.nn.log_softmax(z))


@functools.cache
def known():
    """log pi and log ref, float64 [prompts, N]."""
    return tuple(np.asarray(jax.jit(table)(weights(seed)), np.float64) for seed in (1, 2))


def ascent(f):
    """The gradient of f(log pi [prompts, N]) in the model's weights. No mutant changes what it
    calls: what is right is computed once."""
    return jax.jit(jax.grad(lambda w: f(table(w))))(trunk(weights(1)))


def objective_of(log_p):
    """J of a policy, differentiable."""
    log_ref = known()[1].astype(np.float32)
    return (jnp.exp(log_p) * (R - BETA * (log_p - log_ref))).sum(1).mean()


@functools.cache
def descent():
    """The gradient of -J."""
    return ascent(lambda log_p: -objective_of(log_p))


@functools.cache
def of_source():
    """The gradient of the source's cross-entropy."""
    chance = np.exp(world.source(SIZE, 3))
    return ascent(lambda log_p: -(chance * log_p).sum())


def preferring(log_p):
    """DPO's loss of all pairs, of the whole completions' log-probabilities."""
    h = BETA * (log_p - known()[1].astype(np.float32))
    d = h[PAIR_PROMPT[:, 0], PAIR[:, 0]] - h[PAIR_PROMPT[:, 1], PAIR[:, 1]]
    return -(CHANCE * jax.nn.log_sigmoid(d) + (1 - CHANCE) * jax.nn.log_sigmoid(-d)).sum()


@functools.cache
def of_preferences():
    """The gradient of `preferring`."""
    return ascent(preferring)


@functools.cache
def penalised(estimator):
    """The gradient of BETA / 2 times the sum over prefixes of probability times divergence."""
    visits = np.exp(known()[0])  # of completions; a token's KL counts where it may come
    before = np.zeros((2, len(world.prefixes(SIZE)), SIZE.length))
    for x, y, t in itertools.product(range(2), range(N), range(SIZE.length)):
        if LISTED.real[y, t]:
            before[x, LISTED.prefix[y, t], t] += visits[x, y]

    def loss(w, reference):
        log_p, log_ref = (
            jax.nn.log_softmax(world.conditionals(MODEL, SIZE, params)) for params in (w, reference)
        )
        there, here = (log_ref, log_p) if estimator == "k3" else (log_p, log_ref)
        kl = (jnp.exp(there) * (there - here)).sum(-1)
        return BETA / 2 * (before * kl).sum()

    return jax.jit(jax.grad(loss))(trunk(weights(1)), weights(2))


@functools.cache
def clipped():
    """Compiled (weights, those that sampled, advantages) -> (the clipped surrogate, its slope)."""
    real = np.tile(LISTED.real, (2, 1))

    def tokens(w):
        z = jax.nn.log_softmax(world.conditionals(MODEL, SIZE, w))
        return z[:, LISTED.prefix, np.arange(SIZE.length), LISTED.tokens].reshape(2 * N, -1)

    def loss(w, before, a):
        ratio = jnp.exp(tokens(w) - tokens(before))
        bound = jnp.where(ratio > 1.2, 1.2, jnp.where(ratio < 0.8, 0.8, ratio))
        return -jnp.where(real, jnp.minimum(ratio * a, bound * a), 0).sum()

    return jax.jit(jax.value_and_grad(loss))


@functools.cache
def at_temperature(temperature):
    """log pi [prompts, N] of the policy, sharpened or flattened."""
    return np.asarray(jax.jit(lambda w: table(w, temperature))(weights(1)), np.float64)
