"""Proof that a plan computes what one device computes: one step's loss and gradients of a smaller
copy of a model, in float64, under both.

    certify(run) -> Certificate         jaxlm certify CONFIG --plan.fsdp 2 --plan.context 4
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import models, objectives
from jaxlm.core import config, param
from jaxlm.core.batch import Batch, Pairs
from jaxlm.models.layers import stack
from jaxlm.models.model import Model
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import memory
from jaxlm.train import step
from jaxlm.train.run.run import Run

# Differences of one leaf, relative to its largest element, up to which two plans agree.
TOLERANCE = 1e-12
# Sizes that a smaller copy changes; numbers of heads and experts are what a plan has to divide.
SIZES = (
    *("layers", "encoder", "vocab", "embed", "ffn", "expert_ffn", "shared_ffn", "head", "rotary"),
    *("rank", "q_rank", "nope", "value", "context", "window"),
)


class Leaf(NamedTuple):
    """The largest difference of one array: relative to its largest element, and in float64's units
    of the last place of that element."""

    path: str
    relative: float
    ulps: float


class Certificate(NamedTuple):
    """model: the Config of the smaller copy, whose tokens int32[B, T] have the shape `rows`.
    objective: its name, and the run's where that is another. loss: one device's. leaves: the loss
    and the gradient of every weight, in order."""

    model: Any
    objective: str
    plan: Plan
    rows: tuple[int, int]
    loss: float
    leaves: tuple[Leaf, ...]

    @property
    def different(self) -> Leaf | None:
        """The first leaf beyond TOLERANCE, or with a number that is not finite."""
        return next((leaf for leaf in self.leaves if not leaf.relative <= TOLERANCE), None)

    @property
    def largest(self) -> Leaf:
        """The leaf that differs the most."""
        return max(self.leaves, key=lambda leaf: leaf.relative)


def certify(run: Run) -> Certificate:
    """The Certificate of a run's model, objective and plan, on packed rows of random tokens.

    An objective other than that of pretraining is replaced by it: what a plan splits is the model,
    and every loss is a sum over its targets.

    Raises: ValueError for weights that do not divide over the mesh, for more devices than there
    are, and for a kernel that this platform does not have.
    """
    spec = models.spec(run.model)
    memory.spec_bytes(spec, memory.mesh(run.plan), jnp.float32)
    stack.check(spec, run.plan)
    with jax.enable_x64(True):
        plan = dataclasses.replace(run.plan, compute="float64")
        cfg = smaller(run.model, plan)
        weights = random_weights(models.spec(cfg))
        batch = rows(models.build(cfg), plan)
        alone = dataclasses.replace(Plan(), compute="float64", loss_chunk=plan.loss_chunk)
        ours, theirs = (gradients(run.objective, cfg, p, weights, batch) for p in (plan, alone))
    used, given = (config.kind(type(x)) for x in (_pretraining(run.objective, cfg), run.objective))
    name = used if used == given else f"{used} (in place of {given})"
    loss, leaves = float(theirs["loss"]), differences(ours, theirs)
    return Certificate(cfg, name, plan, batch.tokens.shape, loss, leaves)


def smaller(cfg: models.AnyConfig, plan: Plan) -> models.AnyConfig:
    """The Config with every size as small as its checks and the plan's mesh allow, and all kinds of
    layers."""
    kinds = _kinds(models.spec(cfg))
    sizes = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
    for name in SIZES:
        if type(sizes.get(name)) is not int:
            continue
        for size in _candidates(name, sizes, plan):
            if size >= sizes[name]:
                break
            try:
                changed = dataclasses.replace(cfg, **{name: size})
                spec = models.spec(changed)
                memory.spec_bytes(spec, memory.mesh(plan), jnp.float32)
                stack.check(spec, plan)
            except ValueError:
                continue
            if _kinds(spec) == kinds:
                cfg = changed
                break
    return cfg


def _candidates(name: str, given: dict[str, Any], plan: Plan) -> list[int]:
    if name in ("layers", "encoder"):
        return list(range(2, 2 + given[name]))
    if name in ("context", "window"):
        return [length(plan)] if name == "context" else [5]
    unit = math.lcm(
        2, math.prod(getattr(plan, a) for a in rules.AXES if a != "tensor"), plan.tensor
    )
    first = 32 if name == "vocab" else 4
    wide = math.lcm(unit, given.get("heads", 1))
    sizes = {unit * m for m in range(1, 33)} | {wide * m for m in range(1, 5)}
    return sorted(size for size in sizes if size >= first)


def _kinds(spec: param.Tree) -> set[tuple[str, str]]:
    trees = [name for name in ("encoder", "stack", "ahead") if name in spec]
    return {(tree, kind) for tree in trees for kind in stack.kinds(spec[tree])}


def length(plan: Plan) -> int:
    """Tokens of a row, as few as every part of a plan's sequences needs some of."""
    return math.lcm(16, 2 * plan.context * (plan.tensor if plan.sequence else 1))


def rows(model: Model, plan: Plan) -> Batch | Pairs:
    """Random packed rows for a model, NumPy: documents of all lengths, that end at, before and
    after the ends of the parts a plan cuts them into; rows with padding; uneven weights."""
    count, time = 2 * plan.multiple, length(plan)
    draw = np.random.default_rng(0)
    tokens, targets = draw.integers(0, model.cfg.vocab, (2, count, time))
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for r in range(count):
        edges = draw.choice(time + 1, size=r % 4, replace=False) if r % 5 else [time // 2]
        stop = time - (3 if r % 2 else 0)
        cuts = [0, *sorted(int(edge) for edge in edges if 0 < edge < stop), stop]
        for k, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True), 1):
            segments[r, a:b], positions[r, a:b] = k, np.arange(b - a)
    weight = draw.uniform(0.5, 1.5, tokens.shape) * (segments > 0)
    ids = (np.int32(x) for x in (tokens, targets, segments, positions))
    tokens, targets, segments, positions = ids
    batch = Batch(tokens, targets, weight, segments, positions)
    if model.kind != "encoder_decoder":
        return batch
    return Pairs(*batch, targets, segments, positions)


def random_weights(spec: param.Tree) -> param.Tree:
    """Weights as they are drawn at the start, moved away from it by 0.1: biases are no longer 0 and
    scales no longer 1."""
    draw = np.random.default_rng(1)

    def weight(p: param.Param) -> np.ndarray:
        std = p.init.std(p) if isinstance(p.init, param.Normal) else 0.0
        centre = 1.0 if p.init is param.ones else 0.0
        return centre + std * draw.normal(size=p.shape) + 0.1 * draw.normal(size=p.shape)

    return param.map(weight, spec)


def gradients(
    settings: Any, cfg: models.AnyConfig, plan: Plan, weights: param.Tree, batch: Batch | Pairs
) -> dict[str, np.ndarray]:
    """{"loss": ..., path: gradient} of one step under a plan; the loss is a sum over tokens."""
    objective = objectives.build(_pretraining(settings, cfg), models.build(cfg, plan), plan)
    key = jax.random.key_data(jax.random.key(2))

    def run(weights: param.Tree, batch: Any) -> tuple[jax.Array, param.Tree]:
        state = step.State(jnp.zeros((), jnp.int32), weights, None, {}, key)
        weight, drops = jnp.ones(()), jax.random.wrap_key_data(key)
        loss, _, _, grads = step.accumulate(objective, plan, weight, state, batch, drops)
        return loss, grads

    placed = jax.device_put(weights, plan.shard_params(objective.spec))
    loss, grads = jax.jit(run)(placed, jax.device_put(batch, plan.shard_batch(batch)))
    return {"loss": np.asarray(loss)} | {
        path: np.asarray(g) for path, g in param.flatten(grads).items()
    }


def _pretraining(settings: Any, cfg: models.AnyConfig) -> objectives.AnyConfig:
    """The settings if they are those of the objective that pretrains the model, or its own."""
    kind = objectives.OBJECTIVES[objectives.fitting(models.build(cfg))].Config
    return settings if isinstance(settings, kind) else kind()


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[Leaf, ...]:
    """The Leaf of every array of two results of `gradients`.

    A gradient without an element above TOLERANCE of all gradients' largest is rounding alone, as a
    key's bias has it, to which softmax is blind: it is compared with that largest one.
    """
    most = max(np.abs(x).max(initial=0.0) for path, x in theirs.items() if path != "loss")

    def leaf(path: str, a: np.ndarray, b: np.ndarray) -> Leaf:
        if not np.isfinite(a).all():
            return Leaf(path, math.inf, math.inf)
        apart, largest = np.abs(a - b).max(initial=0.0), np.abs(b).max(initial=0.0)
        if largest <= TOLERANCE * most:
            largest = most
        return Leaf(path, float(apart / largest), float(apart / np.spacing(largest)))

    return tuple(leaf(path, a, theirs[path]) for path, a in ours.items())


def lines(certificate: Certificate) -> Iterator[str]:
    """The report: what was compared, the largest difference, and the first leaf beyond it."""
    count = param.count(models.spec(certificate.model))
    b, t = certificate.rows
    yield f"one step of {certificate.objective}: {count:,} weights, {b} x {t} tokens, float64"
    yield f"on one device: loss {certificate.loss:.15g}"
    yield f"under the plan {certificate.plan}:"
    worst = certificate.largest
    yield (
        f"largest of {len(certificate.leaves)} differences: {worst.ulps:.1f} units of the last "
        f"place ({worst.relative:.1e} of the largest element), {worst.path}"
    )
    first = certificate.different
    if first is None:
        yield f"exact: loss and every gradient agree within {TOLERANCE:g}"
    else:
        yield f"different: {first.path} by {first.relative:.3g}, more than {TOLERANCE:g}"
