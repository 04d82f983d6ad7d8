"""The optimiser as one optax transformation, with a skip, averaged weights and a loss scale.

Every optimiser of optax used here computes a direction d at learning rate 1; then, for all alike,
with lr from the schedule and the decay decoupled (Loshchilov & Hutter 2019, algorithm 2, with the
decay multiplied by lr as in every library):

    clip -> d -> params + lr * (rate * d - weight_decay * params)

Only the weights that `param.decayed` selects are decayed: matrices and embedding tables. A weight's
`rate` (Param.rate: 1 except under muP) is not in its decay, which is thus the same at every width.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxlm.core import check, param, precision
from jaxlm.train.optim import schedule

Transform = optax.GradientTransformationExtraArgs
Name = Literal["adamw", "adafactor", "lion", "muon"]
Schedule = schedule.Name  # in the class below, `schedule` is a field


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser, its schedule, and its safeguards."""

    name: Name = "adamw"
    """The optimiser. muon orthogonalises the momentum of the layers' matrices, and is AdamW for the
    rest (embeddings, output matrix, vectors); its updates are scaled to AdamW's size, so that lr
    and weight_decay mean the same for both. adafactor takes steps relative to each weight's size:
    its lr is near 1e-2. lion's lr is 3 to 10 times smaller than adamw's."""
    lr: float = 3e-4
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup: int = 100
    """Steps of linear warm-up; fewer than the run's steps."""
    final: float | None = None
    """Learning rate at the end, as a fraction of the peak, for cosine, linear (None is 0.1) and wsd
    (None is 0)."""
    decay: float | None = None
    """Fraction of all steps over which wsd decays at the end; None is 0.2."""
    b1: float | None = None
    """Decay rate of the momentum. None is 0.9 for adamw and lion, 0.95 for muon (whose AdamW keeps
    0.9), and no momentum for adafactor."""
    b2: float | None = None
    """Decay rate of the squared gradient (adamw, muon's AdamW: None is 0.95) or of lion's second
    momentum (None is 0.99). adafactor's follows from the step: 1 - step ** -0.8."""
    eps: float | None = None
    """Added to the root of the squared gradient (adamw, muon: None is 1e-8), or to the squared
    gradient itself (adafactor: None is 1e-30)."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and embedding tables, multiplied by the learning rate."""
    clip: float | None = 1.0
    """Largest global gradient norm; longer gradients are shortened to it. None never clips."""
    skip: float | None = None
    """A step whose gradient norm exceeds this many times the running mean of norms is skipped; None
    skips only steps whose gradient is not finite."""
    ema: float | None = None
    """Decay rate per step of an exponential average of the weights, which evaluation and sampling
    then use; None keeps none."""


# Loshchilov & Hutter 2019 with b2 of Brown et al. 2020; Shazeer & Stern 2018; Chen et al. 2023;
# Jordan et al. 2024. An absent name is one the optimiser does not have.
DEFAULTS: dict[str, dict[str, float | None]] = {
    "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},
    "adafactor": {"b1": None, "eps": 1e-30},
    "lion": {"b1": 0.9, "b2": 0.99},
    "muon": {"b1": 0.95, "b2": 0.95, "eps": 1e-8},
}
FINAL = {"cosine": 0.1, "linear": 0.1, "wsd": 0.0}
DECAY = {"wsd": 0.2}
# The size of AdamW's updates, root mean square. Liu et al. 2025, section 2.2.
MUON_RMS = 0.2
# The running mean of gradient norms spans about 100 steps and is believed after 20.
MEAN_RATE, MEAN_AFTER = 0.99, 20
# Micikevicius et al. 2018, section 3.2: halve on overflow, double after 2000 steps without. The
# step differentiates a sum over tokens, whose gradients are a factor `tokens` above those of a
# mean, so the scale starts lower than is usual and may fall below 1.
SCALE_START, SCALE_LEAST, SCALE_MOST, SCALE_STEPS = 2.0**10, 2.0**-14, 2.0**24, 2000


class Mean(NamedTuple):
    """Running mean of gradient norms: value float32, over seen int32 steps."""

    value: jax.Array
    seen: jax.Array


class Average(NamedTuple):
    """Exponential average of the weights, of total weight 1 - decay ** count."""

    params: param.Tree
    mass: jax.Array


class Scale(NamedTuple):
    """Loss scale, float32, and the int32 steps since it last changed."""

    value: jax.Array
    since: jax.Array


class State(NamedTuple):
    """The optimiser's state. A skipped step changes grad_norm, lr, skipped, mean and scale only; a
    step from which nothing was learnt changes grad_norm, lr and skipped only.

    inner: optax's state. count: int32 updates done. skipped: int32 steps not done. grad_norm, lr:
    those of the last step, float32. mean, average, scale: None where the config requests none.
    """

    inner: Any
    count: jax.Array
    skipped: jax.Array
    grad_norm: jax.Array
    lr: jax.Array
    mean: Mean | None
    average: Average | None
    scale: Scale | None


def problems(cfg: Optim, steps: int) -> Iterator[str]:
    """Problems of an optimiser for a run of `steps` updates, a line for every wrong field."""
    wrong = [*check.choices("optim", cfg)]
    yield from wrong
    yield from check.outside("optim", cfg, "lr", "eps", "clip", above=0)
    yield from check.outside("optim", cfg, "final", least=0, most=1)
    yield from check.outside("optim", cfg, "decay", above=0, most=1)
    yield from check.outside("optim", cfg, "b1", "b2", least=0, below=1)
    yield from check.outside("optim", cfg, "weight_decay", least=0)
    yield from check.outside("optim", cfg, "skip", above=1)
    yield from check.outside("optim", cfg, "ema", above=0, below=1)
    if steps >= 1:  # a run without steps is refused as such
        ok, fits = 0 <= cfg.warmup < steps, f"in [0, {steps}), within steps={steps}"
        yield from check.problem("optim.warmup", cfg.warmup, ok, fits)
    if wrong:
        return
    for name in ("b1", "b2", "eps"):
        if name not in DEFAULTS[cfg.name]:
            yield from check.changed("optim", cfg, name, why=f"with {cfg.name}, which has none")
    for name, have in (("final", FINAL), ("decay", DECAY)):
        if cfg.schedule not in have:
            yield from check.changed("optim", cfg, name, why=f"with {cfg.schedule}, which has none")
    decay = (cfg.decay or DECAY["wsd"]) if cfg.schedule == "wsd" else 0.0
    if 0 < decay <= 1 and 0 <= cfg.warmup < steps:
        ok = cfg.warmup + round(decay * steps) <= steps
        fits = f"at most {(steps - cfg.warmup) / steps:.3g} after optim.warmup={cfg.warmup}"
        yield from check.problem("optim.decay", decay, ok, f"{fits} of {steps} steps")


def build(cfg: Optim, spec: param.Tree, steps: int, fp16: bool) -> Transform:
    """The transformation for these weights and this many updates. Its state is a `State`.

    A step whose gradient is not finite, or spikes (`skip`), changes neither weights nor moments,
    count or averages: the schedule goes on where it was. The same holds for update(grads, state,
    params, learnt=False), a step without data, in which momentum and decay alone would move
    weights; the loss scale and the mean of norms stay too. fp16 adds a dynamic loss scale: the
    caller multiplies the loss by `loss_scale(state)` and divides the gradient by it again.

    Raises: ValueError with `problems`.
    """
    check.refuse("", problems(cfg, steps))
    return assemble(cfg, spec, fp16, rates(cfg, steps), cfg.weight_decay)


def assemble(
    cfg: Optim,
    spec: param.Tree,
    fp16: bool,
    rate: Callable[[jax.Array], jax.Array] | optax.Schedule,
    decay: float | jax.Array,
) -> Transform:
    """`build` with the learning rate and the decay given: numbers that a compiled program may take
    as data. rate(updates done) replaces lr, schedule, warmup, final and decay of cfg; decay its
    weight_decay, which decides only whether there is any."""
    direct = _direction(cfg, spec, decay)

    def init(params: param.Tree) -> State:
        zero, none = jnp.zeros((), precision.wide()), jnp.zeros((), jnp.int32)
        return State(
            inner=direct.init(params),
            count=none,
            skipped=none,
            grad_norm=zero,
            lr=zero,
            mean=None if cfg.skip is None else Mean(zero, none),
            average=None if cfg.ema is None else Average(optax.tree.zeros_like(params), zero),
            scale=Scale(jnp.full((), SCALE_START, precision.wide()), none) if fp16 else None,
        )

    def update(
        grads: param.Tree, state: State, params: param.Tree, learnt: bool | jax.Array = True
    ) -> tuple[param.Tree, State]:
        size, learnt = optax.tree.norm(grads), jnp.asarray(learnt)
        finite = jnp.isfinite(size)
        keep = finite & learnt
        keep = keep if state.mean is None else keep & ~_spikes(cfg, state.mean, size)
        lr = jnp.asarray(rate(state.count), precision.wide())
        d, inner = direct.update(grads, state.inner, params)
        # -0.0, not 0.0, is what leaves every bit of a weight alone, those of -0.0 too.
        moves = jax.tree.map(lambda u: jnp.where(keep, lr * u, -0.0), d)
        average = state.average
        if average is not None:
            fresh = _averaged(cfg, average, optax.apply_updates(params, moves))
            average = optax.tree.where(keep, fresh, average)
        mean, scale = state.mean, state.scale
        if mean is not None:
            mean = optax.tree.where(learnt, _observed(cfg, mean, size), mean)
        if scale is not None:
            scale = optax.tree.where(learnt, _rescaled(scale, finite), scale)
        return moves, State(
            inner=optax.tree.where(keep, inner, state.inner),
            count=state.count + keep,
            skipped=state.skipped + ~keep,
            grad_norm=size,
            lr=lr,
            mean=mean,
            average=average,
            scale=scale,
        )

    return Transform(init, update)  # ty: ignore[invalid-argument-type]


def rates(cfg: Optim, steps: int) -> optax.Schedule:
    """The learning rate as a function of the updates done."""
    final = FINAL.get(cfg.schedule, 1.0) if cfg.final is None else cfg.final
    decay = DECAY.get(cfg.schedule, 0.0) if cfg.decay is None else cfg.decay
    rate = schedule.build(cfg.schedule, cfg.lr, cfg.warmup, steps, final, decay)
    return lambda count: jnp.asarray(rate(count))


def _direction(cfg: Optim, spec: param.Tree, decay: float | jax.Array) -> Transform:
    """Clipping, the optimiser at learning rate 1, decay: what lr multiplies."""
    given = {name: getattr(cfg, name) for name in DEFAULTS[cfg.name]}
    k: Any = {n: DEFAULTS[cfg.name][n] if value is None else value for n, value in given.items()}
    if cfg.name == "adamw":
        tx = optax.adam(1.0, b1=k["b1"], b2=k["b2"], eps=k["eps"])
    elif cfg.name == "lion":
        tx = optax.lion(1.0, b1=k["b1"], b2=k["b2"], weight_decay=0.0)
    elif cfg.name == "adafactor":
        tx = optax.adafactor(1.0, momentum=k["b1"], eps=k["eps"])
    else:
        matrices = param.matrices(spec)
        rest = jax.tree.map(lambda matrix: not matrix, matrices)
        muon = optax.contrib.muon(
            1.0,
            beta=k["b1"],
            eps=k["eps"],
            muon_weight_dimension_numbers=_matrix_axes(spec),
            consistent_rms=MUON_RMS,
        )
        # muon's own treatment of the rest is Adam with Nesterov's momentum
        adam = optax.adam(1.0, b1=0.9, b2=k["b2"], eps=k["eps"])
        tx = optax.chain(optax.masked(muon, matrices), optax.masked(adam, rest))
    parts = [] if cfg.clip is None else [optax.clip_by_global_norm(cfg.clip)]
    parts.append(tx)
    own = param.map(lambda p: p.rate, spec)
    if any(rate != 1.0 for rate in jax.tree.leaves(own)):
        parts.append(optax.stateless(lambda d, params: jax.tree.map(jnp.multiply, d, own)))
    if cfg.weight_decay:
        parts.append(optax.add_decayed_weights(-decay, param.decayed(spec)))
    return optax.chain(*parts)


def _matrix_axes(spec: param.Tree) -> param.Tree:
    """Input and output axes of each hidden matrix; other weights are masked.

    "layer | embed -> heads head" is, per layer, the matrix [embed, heads * head].
    """

    def axes(p: param.Param, matrix: bool) -> optax.contrib.MuonDimensionNumbers | optax.MaskedNode:
        split = p.copies + p.inputs
        numbers = tuple(range(p.copies, split)), tuple(range(split, len(p.shape)))
        return optax.contrib.MuonDimensionNumbers(*numbers) if matrix else optax.MaskedNode()

    return param.map(axes, spec, param.matrices(spec))


def _spikes(cfg: Optim, mean: Mean, size: jax.Array) -> jax.Array:
    assert cfg.skip is not None
    return (mean.seen >= MEAN_AFTER) & (size > cfg.skip * mean.value)


def _observed(cfg: Optim, mean: Mean, size: jax.Array) -> Mean:
    """The mean after one more norm. A spike counts as the threshold, so that one of any height
    moves the mean little, yet a lasting change of level is followed and never skipped for good."""
    assert cfg.skip is not None
    rate = jnp.maximum(1 - MEAN_RATE, 1 / (mean.seen + 1))
    believed = mean.seen >= MEAN_AFTER
    seen = jnp.where(believed, jnp.minimum(size, cfg.skip * mean.value), size)
    new = Mean(mean.value + rate * (seen - mean.value), mean.seen + 1)
    return optax.tree.where(jnp.isfinite(size), new, mean)


def _averaged(cfg: Optim, average: Average, params: param.Tree) -> Average:
    """The average after one more update. Its weights decay ** age are divided by their sum as it
    goes, so that it is an average of weights the run had, from the first update on."""
    assert cfg.ema is not None
    mass = cfg.ema * average.mass + (1 - cfg.ema)
    rate = (1 - cfg.ema) / mass
    return Average(jax.tree.map(lambda a, p: a + rate * (p - a), average.params, params), mass)


def _rescaled(scale: Scale, finite: jax.Array) -> Scale:
    grow = finite & (scale.since + 1 >= SCALE_STEPS)
    value = jnp.where(finite, scale.value * jnp.where(grow, 2.0, 1.0), scale.value / 2)
    since = jnp.where(finite & ~grow, scale.since + 1, 0)
    return Scale(jnp.clip(value, SCALE_LEAST, SCALE_MOST), since)


def loss_scale(opt: State) -> jax.Array:
    """Factor on the loss before differentiating, float32 scalar; 1 except for float16."""
    return jnp.ones((), precision.wide()) if opt.scale is None else opt.scale.value


def report(opt: State) -> dict[str, jax.Array]:
    """float32 scalars about the last step: grad_norm (before clipping), lr, skipped (steps not done
    so far, those from which nothing was learnt among them);
    loss_scale (the next step's) and grad_norm_mean where there are such."""
    out = {
        "grad_norm": opt.grad_norm,
        "lr": opt.lr,
        "skipped": opt.skipped.astype(precision.wide()),
    }
    if opt.scale is not None:
        out["loss_scale"] = opt.scale.value
    if opt.mean is not None:
        out["grad_norm_mean"] = opt.mean.value
    return out


def ema(opt: State, params: param.Tree) -> param.Tree:
    """The averaged weights; params themselves where none are kept or nothing was averaged yet."""
    if opt.average is None:
        return params
    return optax.tree.where(opt.average.mass > 0, opt.average.params, params)
