"""Many runs of one shape as one compiled program: seeds, learning rates, schedules, decays.

The members' states are stacked, [members, ...], and one call updates them all, so that what has to
be compiled is compiled once. Except on a CPU they are updated in parallel (jax.vmap), which fills a
device too large for one small model; a CPU, which one model fills, takes them in turn
(jax.lax.map). Either way a member equals its own `loop.run` up to rounding: a stacked product sums
in another order, and in turn the compiler may still fuse differently.

Each member is otherwise an ordinary run. It has its own seed, order of rows and learning rate, its
own directory with metrics, evaluations and checkpoints. One that diverges does not affect others.
Stopped or killed, each directory holds an unfinished run that resumes alone or, from equal steps,
in a population. In metrics.jsonl the timing of a member is its share of the time of all: its tokens
in the seconds that all took.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import check, config, log
from jaxlm.data import pretraining
from jaxlm.objectives import distill
from jaxlm.parallel import devices
from jaxlm.parallel import watch as watches  # a local bears the name
from jaxlm.train import loop, step
from jaxlm.train.optim import optimizer
from jaxlm.train.run import directory, interrupts, progress
from jaxlm.train.run import run as runs
from jaxlm.train.run.directory import Result
from jaxlm.train.run.run import Run

# Fields that members may differ in: numbers that a program takes as data,
DATA = (
    "seed",
    "data.seed",
    "optim.lr",
    "optim.schedule",
    "optim.warmup",
    "optim.final",
    "optim.decay",
    "optim.weight_decay",
)
# and what decides nothing in it.
FREE = ("name", "out", "trunk", "checkpoint", "data.workers")


class Given(NamedTuple):
    """A member's own numbers: learning rate by updates done, float32 [steps]; decay, float32."""

    rate: jax.Array
    decay: jax.Array


def alone(run: Run) -> Iterator[str]:
    """Reasons why a run cannot be a member of a population, a line for each field."""
    if not isinstance(run.data, pretraining.Data):
        yield f"data: {config.kind(type(run.data))} given; it must be text (data.pretraining.Data)"
    if isinstance(run.objective, distill.Config):
        yield "objective: distill given; it must be one without a teacher"
    names = ("adapter", "diloco", "rollout", "profile", "samples", "patience")
    yield from check.changed("", run, *names, why="in a population")
    yield from check.problem(
        "plan", run.plan, run.plan.devices == 1, "for 1 device in a population"
    )


def groups(wanted: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that may be populations, in order of first appearance; a run that shares
    with none is a group of its own."""
    by_shape: dict[str, list[Run]] = {}
    for index, run in enumerate(wanted):
        key = str(index) if any(alone(run)) else json.dumps(_shape(run), sort_keys=True)
        by_shape.setdefault(key, []).append(run)
    return list(by_shape.values())


def _shape(run: Run) -> dict[str, Any]:
    """Fields that members have in common. Without any decay the optimiser is another program."""
    record = config.without(config.to_dict(run), *DATA, *FREE)
    return record | {"optim.weight_decay > 0": run.optim.weight_decay > 0}


def problems(members: Sequence[Run]) -> Iterator[str]:
    """Reasons why these runs are no population, a line for each field."""
    folders = [str(runs.folder(run)) for run in members]
    for name in sorted({name for name in folders if folders.count(name) > 1}):
        yield f"name: {name} is the directory of several runs; each needs its own"
    for run in members:
        wrong = [*alone(run)]
        yield from (f"{line} (run {run.name!r})" for line in wrong)
        for path, a, b in [] if wrong else config.differences(_shape(members[0]), _shape(run)):
            yield (
                f"{path}: {a!r} in run {members[0].name!r} and {b!r} in {run.name!r}; members of a "
                f"population may differ in {', '.join(DATA)} alone"
            )


def run(members: Sequence[Run]) -> list[Result]:
    """Trains all members, from their last good checkpoints on; returns their outcomes in order.

    Finished members are not run again. A signal ends all early, with everything saved, as in
    `loop.run`; an error of one (a full disk) ends all.

    Raises: ValueError with `problems`, and as `loop.run`.
    """
    devices.correct()
    check.refuse("these runs are no population:", problems(members))
    results = {str(runs.folder(r)): directory.finished(r) for r in members}
    waiting = [r for r in members if results[str(runs.folder(r))] is None]
    warnings = [loop.prepare(r) for r in waiting]
    with contextlib.ExitStack() as stack:
        if waiting:
            out = stack.enter_context(log.open(True, f"{len(waiting)} runs", waiting[0].steps))
            arrived = stack.enter_context(interrupts.caught())
            watch = stack.enter_context(watches.Watch(math.inf, out.warn))
            begun = [
                loop.begin(r, t, out, watch, stack) for r, t in zip(waiting, warnings, strict=True)
            ]
            for group in _abreast(begun):
                results |= {result.folder: result for result in _train(group, out, arrived)}
    return [end for end in results.values() if end is not None]


Begun = tuple[loop.Session, loop.From]


def _abreast(begun: list[Begun]) -> list[list[Begun]]:
    """The members by the step they go on from."""
    by: dict[int, list[Begun]] = {}
    for session, at in begun:
        by.setdefault(int(at.state.step), []).append((session, at))
    return [by[number] for number in sorted(by)]


def _train(group: list[Begun], out: log.Log, arrived: Callable[[], int]) -> list[Result]:
    """Trains members that are at one step, to their ends or the step in which a signal arrived."""
    begun = int(group[0][1].state.step)
    sessions = _quiet([session for session, _ in group], begun)
    first = sessions[0].run
    advance = _advance(sessions)
    states = jax.jit(lambda *each: jax.tree.map(lambda *x: jnp.stack(x), *each))(
        *(at.state for _, at in group)
    )  # every leaf [members, ...]
    member = jax.jit(lambda states, i: jax.tree.map(lambda x: x[i], states))
    try:
        with contextlib.ExitStack() as stack:
            streams = _streams(sessions, begun, stack)
            for i, session in enumerate(sessions):
                if begun and loop.missed_evaluation(session, begun):
                    loop.evaluate(session, member(states, i), begun)
            stopped = 0
            for number in range(begun + 1, first.steps + 1):
                fed = {seed: stream.next(number, states) for seed, stream in streams.items()}
                states, measured = advance(states, {seed: f.batch for seed, f in fed.items()})
                waited = {"data_wait": sum(f.seconds["data_wait"] for f in fed.values())}
                for session, metrics in zip(sessions, measured, strict=True):
                    session.meter.note(number, metrics, waited)
                    session.store.poll()
                stopped = arrived()
                _after(sessions, partial(member, states), number, stopped)
                _tell(out, first, number, measured)
                if number == begun + 1:
                    jax.block_until_ready(states.step)
                    for session in sessions:
                        session.meter.restart(number)
                if stopped:
                    break
            for session in sessions:
                session.meter.flush()
        done = enumerate(sessions)
        return [loop.finish(s._replace(out=out), member(states, i), stopped) for i, s in done]
    except Exception:
        for session in sessions:
            with contextlib.suppress(Exception):
                session.store.wait()  # a save under way is whole, whatever else failed
        raise


def _quiet(sessions: list[loop.Session], begun: int) -> list[loop.Session]:
    """The sessions without a line a member a step, and with one evaluation program for all: it
    reads the held-out split in order, whatever the seed."""
    silent, judge = log.Log(False, None), sessions[0].supply.evaluate
    quiet = []
    for s in sessions:
        supply = s.supply._replace(evaluate=judge)
        ours = progress.Meter(s.run, supply, s.writer, silent, begun)
        quiet.append(s._replace(supply=supply, out=silent, meter=ours))
    return quiet


def _streams(
    sessions: list[loop.Session], begun: int, stack: contextlib.ExitStack
) -> dict[int, Any]:
    """The batches from a step on, by data.seed."""
    by = {s.run.data.seed: s.supply for s in sessions}
    return {seed: stack.enter_context(supply.open(begun, {})) for seed, supply in by.items()}


def _advance(sessions: list[loop.Session]) -> Callable[..., tuple[step.State, list[step.Metrics]]]:
    """The compiled step of all: (stacked States, {data.seed: batch}) -> (States, each's metrics).
    The states' memory is reused."""
    first, program = sessions[0].run, sessions[0].program
    seeds = [s.run.data.seed for s in sessions]
    fp16 = first.plan.dtype == jnp.float16

    def member(state: step.State, batch: Any, given: Given) -> tuple[step.State, step.Metrics]:
        def rate(count: jax.Array) -> jax.Array:
            return given.rate[jnp.minimum(count, first.steps - 1)]

        tx = optimizer.assemble(first.optim, program.objective.spec, fp16, rate, given.decay)
        return step.body(program.objective, tx, first.plan)(state, batch)

    def advance(states: step.State, batches: dict[int, Any], given: Given) -> Any:
        # every leaf [members, B, ...]
        rows = jax.tree.map(lambda *x: jnp.stack(x), *(batches[seed] for seed in seeds))
        if abreast():
            states, measured = jax.vmap(member)(states, rows, given)
        else:
            states, measured = jax.lax.map(lambda each: member(*each), (states, rows, given))
        # {name: [members]} -> [{name: scalar}, ...]
        return states, [jax.tree.map(lambda x, i=i: x[i], measured) for i in range(len(seeds))]

    compiled, own = jax.jit(advance, donate_argnums=0), _given([s.run for s in sessions])
    return lambda states, batches: compiled(states, batches, own)


def abreast() -> bool:
    """Whether members move side by side; else in turn, within the same program."""
    return jax.default_backend() != "cpu"


def _given(members: list[Run]) -> Given:
    """The members' own numbers, [members, ...], by the schedules that `loop.run` follows."""
    # One update at a time, as in a run's own step: an array of them rounds otherwise.
    at = [jax.jit(optimizer.rates(r.optim, r.steps)) for r in members]
    rates = []  # [members][steps]
    for rate in at:
        rates.append([rate(np.int32(step)) for step in range(members[0].steps)])
    rates = jax.device_get(rates)
    decays = [r.optim.weight_decay for r in members]
    return Given(jnp.asarray(np.asarray(rates), jnp.float32), jnp.asarray(decays, jnp.float32))


def _after(
    sessions: list[loop.Session], state: Callable[[int], step.State], number: int, stopped: int
) -> None:
    """Evaluate and save the members that are due after a step."""
    for i, session in enumerate(sessions):
        judges = runs.evaluates(session.run, number) and not stopped
        saves = stopped or runs.saves(session.run, number)
        if judges or saves:
            now = state(i)
            val = loop.evaluate(session, now, number) if judges else None
            if saves:
                loop.save(session, now, {}, val, progress.Best())


def _tell(out: log.Log, first: Run, number: int, measured: list[step.Metrics]) -> None:
    """A line on all members where a run would write one on itself."""
    out.tick(number)
    if number % first.log_every == 0 or number in (1, first.steps):
        losses = np.asarray(jax.device_get([metrics["loss"] for metrics in measured]))
        fine = losses[np.isfinite(losses)]
        shown = f"{fine.min():.4f} .. {fine.max():.4f}" if len(fine) else "nan"
        lost = f" ({len(losses) - len(fine)} not finite)" if len(fine) < len(losses) else ""
        out.progress(number, f"step {number}/{first.steps}  loss {shown}{lost}")
