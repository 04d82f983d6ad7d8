"""Tiny models of every family and their compiled programs, each built once and shared by tests."""

import contextlib
import functools
import importlib
import os
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import models, objectives
from jaxlm.core import param
from jaxlm.core.batch import Batch, Pairs
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from tests.families.sizes import B, T, V

_FILES = [importlib.import_module(f"tests.families.{name}") for name in models.FAMILIES]
FAMILIES = {case: cfg for file in _FILES for case, cfg in file.CASES.items()}
VOID = {case: ends for file in _FILES for case, ends in file.VOID.items()}
UNREAD = {case: rows for file in _FILES for case, rows in vars(file).get("UNREAD", {}).items()}
# The fast suite tries every law on the full cases, and the laws of one forward and backward pass on
# the first case of every family, but for DeepSeek's, which compiles as long as three others; the
# rest of the product is slow.
FULL = ("gpt", "llama-all")
FIRST = {next(iter(file.CASES)) for file in _FILES} - {"deepseek"} | {*FULL}
MESH = Plan(data=2, fsdp=2, tensor=2)


class Whole:
    """A module whose functions compile as one program a call, where arrays are traced and the rest
    is as given. Operation by operation each would compile a program of its own, 33 ms of CPU."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        value = getattr(self.module, name)
        return functools.partial(_once, value) if callable(value) else value


def _once(function, *args, **kwargs):
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, np.ndarray | jax.Array)}

    def run(arrays):
        args, kwargs = tree.unflatten(arrays.get(i, x) for i, x in enumerate(leaves))
        return function(*args, **kwargs)

    return jax.jit(run)(arrays)


class Probe(NamedTuple):
    """logits [B,T,V]; the loss sum, its gradient and the objective's other sums; reach [V,D]: the
    gradient of the loss in the embedding table by way of the layers alone, also where the table is
    the output matrix too."""

    logits: Any
    loss: Any
    grads: Any
    sums: Any
    reach: Any


@functools.cache
def shape(family):
    """The Model of a case under no particular plan: what it is, not how it runs."""
    return models.build(FAMILIES[family])


def pretraining(model, plan):
    """The objective that pretrains a model."""
    settings = objectives.OBJECTIVES[objectives.fitting(model)].Config(z_loss=0.01)
    return objectives.build(settings, model, plan)


def fit(family, batch):
    """The batch as a model reads it: where it reads pairs, the targets are the sources too."""
    if shape(family).kind != "encoder_decoder":
        return batch
    return Pairs(*batch, batch.targets, batch.segments, batch.positions)


def sourced(model, params, batch):
    """What `hidden` needs beside tokens: of an encoder-decoder, the encoded source."""
    if model.kind != "encoder_decoder":
        return {}
    at = At(batch.source_segments, batch.source_positions)
    return {"source": (model.encode(params, batch.source, at), at)}


@functools.cache
def prober(family, plan):
    """Compiled (params, batch) -> Probe. One pass forward and one backward: the layers read a table
    of their own, whose gradient is the reach."""
    model = models.build(FAMILIES[family], plan)

    def loss(params, table, batch):
        states = []

        def hidden(params, *args, **kwargs):
            changed = params | {"embed": params["embed"] | {"table": table}}
            out = model.hidden(changed, *args, **kwargs)
            states.append(out.x)
            return out

        objective = pretraining(model._replace(hidden=hidden), plan)
        total, _, sums = objective.loss(params, {}, batch, None)
        return total, (model.unembed(model.head(params), states[0]), sums)

    def probe(params, batch):
        both = jax.value_and_grad(loss, (0, 1), has_aux=True)
        table = params["embed"]["table"]
        (total, (z, sums)), (grads, reach) = both(params, table, fit(family, batch))
        embed = grads["embed"] | {"table": grads["embed"]["table"] + reach}
        return Probe(z, total, grads | {"embed": embed}, sums, reach)

    return jax.jit(probe)


class Gradient(NamedTuple):
    """The compiled (params, batch) -> (loss sum, weight, other sums, gradient) of a batch, cut and
    summed as a plan's step does it, and what the compiler printed."""

    of: Any
    log: str


@functools.cache
def gradient(family, plan):
    """The gradient of a family under a plan, computed once so that it is compiled. A whole step,
    whose optimiser has several programs of every weight's shape, compiles twice as long."""
    objective, _ = parts(family, plan)
    one, key = jnp.ones(()), jax.random.key(0)

    def of(params, batch):
        state = step.State(jnp.zeros((), jnp.int32), params, None, {}, None)
        return step.accumulate(objective, plan, one, state, batch, key)

    spec = objective.spec
    split = (plan.replicated, plan.replicated, plan.replicated, plan.shard_state(spec))
    compiled = jax.jit(of, out_shardings=split)
    with printed() as log:
        compiled(jax.device_put(weights(family), plan.shard_params(spec)), given(family, 0, plan))
    return Gradient(compiled, log())


class Trainer(NamedTuple):
    """() -> a fresh State on the plan's mesh, the compiled step, the State's shardings, and what
    the compiler printed."""

    start: Any
    step: Any
    shardings: Any
    log: str


def parts(family, plan):
    """(objective, optimiser) of a family under a plan."""
    objective = pretraining(models.build(FAMILIES[family], plan), plan)
    # eps is large so that rounding is not blown up by Adam where gradients are near 0
    cfg = optimizer.Optim(lr=0.02, warmup=2, eps=1e-3, ema=0.9)
    return objective, optimizer.build(cfg, objective.spec, 100, plan.compute == "float16")


@functools.cache
def start(family, plan):
    """A fresh State as NumPy arrays."""
    return jax.tree.map(np.asarray, step.init(*parts(family, plan), plan, seed=3))


@functools.cache
def trainer(family, plan):
    """The step of a family under a plan, run once so that it is compiled."""
    program = step.make(*parts(family, plan), plan)
    shardings = step.shard(*parts(family, plan), plan)
    # the same on every mesh, as law 10 says; only float16 has a loss scale
    first = start(family, Plan(compute="float16") if plan.compute == "float16" else Plan())

    def fresh():
        return jax.device_put(first, shardings)

    with printed() as log:
        program(fresh(), given(family, 0, plan))
    return Trainer(fresh, program, shardings, log())


@contextlib.contextmanager
def printed():
    """What C++ writes to stderr meanwhile, as a function to call afterwards."""
    text = ""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            text = file.read().decode()


def drawn(spec, seed):
    """Weights of a spec as its initialisers distribute them, drawn by NumPy: JAX would compile a
    program of every spec, 1.5 s of CPU for three layers. What is uniform at the start, an adapter's
    weights, is drawn by JAX."""
    r = np.random.default_rng(seed)

    def leaf(p):
        if isinstance(p.init, param.Normal):
            return jnp.asarray(p.init.std(p) * r.standard_normal(p.shape, np.float32))
        if p.init in (param.zeros, param.ones):
            return jnp.asarray(np.full(p.shape, p.init is param.ones, np.float32))
        return p.init(jax.random.key(r.integers(2**31)), p)

    return param.map(leaf, spec)


@functools.cache
def weights(family, seed=3):
    """Weights away from their start, where biases are 0 and scales 1."""
    r = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x) + 0.1 * r.standard_normal(x.shape, np.float32)),
        drawn(models.spec(FAMILIES[family]), seed),
    )


def rows(seed, lengths=((T,),) * B):
    """A batch; lengths are those of each row's documents, the rest of the row is padding.

    Documents of a row share no token. Every weight is different.
    """
    r = np.random.default_rng(seed)
    tokens = np.stack([r.permutation(V)[:T] for _ in lengths])
    targets, segments, positions = r.integers(0, V, tokens.shape), 0 * tokens, 0 * tokens
    for i, documents in enumerate(lengths):
        cuts = np.cumsum((0, *documents))
        for k, (a, b) in enumerate(zip(cuts[:-1], cuts[1:]), 1):
            segments[i, a:b], positions[i, a:b] = k, np.arange(b - a)
    weight = r.uniform(0.5, 1.5, tokens.shape) * (segments > 0)
    a, b, c, d = (np.int32(x) for x in (tokens, targets, segments, positions))
    return Batch(a, b, np.float32(weight), c, d)


def placed(batch, plan):
    return jax.device_put(batch, plan.shard_batch(batch))


def given(family, seed, plan, lengths=((T,),) * B):
    """A batch of `rows` as a family reads it, on the plan's mesh."""
    return placed(fit(family, rows(seed, lengths)), plan)


def close(a, b, rtol=1e-5, scale=1e-5):
    """Every leaf agrees to rtol, or to `scale` of the leaf's largest value (and leaves that are
    nothing but rounding, to 1e-6 of the tree's)."""
    x, y = param.flatten(a), param.flatten(b)
    assert x.keys() == y.keys()
    most = max(np.abs(v).max(initial=0) for v in y.values())
    for path in x:
        u, v = np.asarray(x[path]), np.asarray(y[path])
        atol = max(scale * np.abs(v).max(initial=0), 1e-6 * most)
        np.testing.assert_allclose(u, v, rtol=rtol, atol=atol, err_msg=path)


def same(a, b):
    """Every leaf has the same bits."""
    x, y = param.flatten(a), param.flatten(b)
    assert x.keys() == y.keys()
    for path in x:
        assert np.asarray(x[path]).tobytes() == np.asarray(y[path]).tobytes(), path


def only(batch, *places):
    """The batch with weight at these places alone."""
    keep = np.zeros_like(batch.weight)
    for place in places:
        keep[place] = 1
    return batch._replace(weight=batch.weight * keep)


def run(family, plan, batches):
    """(state, [metrics]) after training on the batches under a plan."""
    training = trainer(family, plan)
    state, history = training.start(), []
    for batch in batches:
        state, metrics = training.step(state, placed(fit(family, batch), plan))
        history.append({k: float(v) for k, v in metrics.items()})
    return state, history


# Documents of different lengths and different weights: a mean of means would differ.
UNEVEN = [(8,), (1,), (3, 4), (2,), (8,), (5, 3), (1, 1, 1), (7,)]
