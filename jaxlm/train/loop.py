"""Training of a Run: from its config to a finished run directory, or on from where it stopped."""

import contextlib
import json
import math
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxlm.core import cache, config, io, log, param
from jaxlm.core.remote import staging
from jaxlm.data import tokenizers
from jaxlm.decode import prompt_tokens
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import agreement, devices, multihost
from jaxlm.parallel import watch as watches  # a local bears the name
from jaxlm.train import initial_weights, step
from jaxlm.train import inputs as supplies
from jaxlm.train import program as programs
from jaxlm.train.optim import optimizer
from jaxlm.train.preflight import memory_check
from jaxlm.train.run import (
    branching,
    checkpoint,
    directory,
    environment,
    interrupts,
    metrics,
    plot,
    trace,
)
from jaxlm.train.run import progress as meters
from jaxlm.train.run import run as runs
from jaxlm.train.run.directory import Result
from jaxlm.train.run.run import Run
from jaxlm.train.run.trackers import weights_biases


class Program(NamedTuple):
    """The compiled step, with the model, objective and optimiser that shape its state."""

    model: Model
    objective: Objective
    tx: optimizer.Transform
    step: step.Step


class Session(NamedTuple):
    """One start of a run: its program and data, and where its results go."""

    run: Run
    folder: pathlib.Path
    program: Program
    supply: supplies.Supply
    out: log.Log
    writer: metrics.Writer
    store: checkpoint.Store
    meter: meters.Meter
    watch: watches.Watch
    origin: dict[str, Any]  # what `initial_weights.weights` noted about the weights of step 0
    best: meters.Best  # at the step it went on from


def run(run: Run) -> Result:
    """Train to the end, from the last good checkpoint if there is one; how it ended.

    A finished run is not run again. SIGTERM and SIGINT end it early, with everything saved:
    Result.signal says so, and the same call resumes. A held-out loss that is not finite ends it
    for good, with the checkpoints it had: Result.diverged. So does Run.patience: Result.early_stop.
    The same Run ends with the same weights,
    optimiser state and metrics, bit for bit on CPU, however often it was stopped or killed.

    Raises: ValueError for a Run that cannot start, a directory that holds another run, or
    checkpoints of which none is whole; BlockingIOError while another process has the directory;
    io.WriteError for a full disk, with the earlier checkpoints intact.
    """
    devices.correct()
    primary = jax.process_index() == 0
    folder = runs.folder(run)
    done = directory.finished(run)
    if done is not None:
        out = log.Log(primary, None)
        if done.diverged is None:
            out.say(f"{folder} is finished: {done.step} steps. {directory.score_text(done.val)}")
        else:
            out.warn(f"{directory.diverged_text(run, done)}; it is not run again")
        if fault := directory.lost_records(folder, done):
            out.warn(fault)
        return done
    warnings = prepare(run)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open(primary, run.name, run.steps))
        arrived = stack.enter_context(interrupts.caught())
        limit = multihost.timeout(dict(os.environ))
        watch = stack.enter_context(watches.Watch(limit, out.warn))
        session, at = begin(run, warnings, out, watch, stack)
        try:
            return finish(session, *_train(session, at, arrived))
        except Exception:
            if jax.process_count() == 1:  # of several, the others may be gone, and it never ends
                with contextlib.suppress(Exception):
                    session.store.wait()  # a save under way is whole, whatever else failed
            raise


def prepare(run: Run) -> list[str]:
    """Checks all that can be checked before a run starts; returns warnings.

    Raises: ValueError for a Run that cannot start.
    """
    runs.validate(run)
    memory_check.check(run)
    warnings = []
    if not checkpoint.steps(runs.folder(run) / "checkpoints"):
        warnings = initial_weights.check(run)
        branching.check(run)
    cache.programs()
    environment.quiet()
    return warnings


def build(run: Run) -> Program:
    """The model, objective, optimiser and step of a Run; nothing is compiled yet."""
    model, objective = programs.training(run)
    tx = programs.optimiser(run, objective.spec)
    return Program(model, objective, tx, programs.update(run, objective, tx))


class From(NamedTuple):
    """Starting point of training: the state, and what its batches' source needs along with it."""

    state: step.State
    carry: param.Tree


def begin(
    run: Run,
    warnings: list[str],
    out: log.Log,
    watch: watches.Watch,
    stack: contextlib.ExitStack,
) -> tuple[Session, From]:
    """The session, and what to go on from: the last good checkpoint, or a fresh state.
    warnings: what `prepare` gave. Until the stack ends, no other process may have the directory.

    Raises: as `run`.
    """
    primary, folder = jax.process_index() == 0, runs.folder(run)
    confirm = stack.enter_context(directory.held(folder, primary))
    for text_ in warnings:
        out.warn(text_)
    if primary:
        branching.begin(run, folder, out.warn, out.say)
    program = build(run)
    supply = supplies.of(run, program.model, program.objective, watch.arrive)
    watch.meet("its first weights")
    for text_ in (supply.tally.line(), *supply.notes):
        out.say(text_)
    for text_ in supply.tally.warnings():
        out.warn(text_)
    at = _resume(run, folder, program, supply, primary, out)
    begun = 0 if at is None else int(at.state.step)
    origin = initial_weights.recorded(folder)
    if at is None:
        state, origin = initial_weights.state(run, program.objective, program.tx)
        at = From(state, {})
    frozen = initial_weights.frozen(run, program.objective, origin)
    at = at._replace(state=at.state._replace(frozen=frozen))
    if primary:
        described = environment.describe(run, supply.corpus) | {
            "resumed_at_step": begun,
            "start": origin,
        }
        for change in directory.changed(folder, run, described):
            out.say(f"changed since the last start: {change}")
        directory.record(folder, run)
        io.write(folder / "env.json", json.dumps(described, indent=1) + "\n")
        out.say(environment.headline(run, described, begun))
    facts = checkpoint.facts(folder / "checkpoints", begun) if begun else {}
    mark = None if facts.get("metrics") is None else metrics.Mark(*facts["metrics"])
    project, fields = run.wandb if primary else None, config.to_dict(run)
    send = stack.enter_context(weights_biases.opened(project, run.name, fields, folder))
    due = runs.records_due(run, begun)
    writer = metrics.Writer(folder, begun, primary, out.warn, mark, due, send)
    store = checkpoint.Store(folder / "checkpoints", run.checkpoint, primary, confirm)
    meter = meters.Meter(run, supply, writer, out, begun)
    best = meters.Best(*facts.get("best", ()))  # an earlier version's checkpoint has none
    parts = (run, folder, program, supply, out, writer, store, meter, watch, origin, best)
    return Session(*parts), at


def _resume(
    run: Run,
    folder: pathlib.Path,
    program: Program,
    supply: supplies.Supply,
    primary: bool,
    out: log.Log,
) -> From | None:
    """Restores the last good checkpoint; None if none was ever committed.

    Raises: ValueError if there are checkpoints and none is whole, or the data is no longer what it
    was trained on.
    """
    place = folder / "checkpoints"
    if primary:
        checkpoint.sweep(place)
    like = step.abstract(program.objective, program.tx, run.plan)
    begun = checkpoint.resumable(place, out.warn, like, supply.carry)
    for name in checkpoint.set_aside(place, begun or 0):
        out.warn(f"{place / name} was set aside; training goes on from step {begun}")
    if begun is None:
        return None
    facts = checkpoint.facts(place, begun)
    changes = config.differences(facts["data"], supply.facts)
    if changes:
        path, there, here = changes[0]
        raise ValueError(
            f"data.source: the training data of {folder} changed since step {begun}: its {path} "
            f"was {there!r} and is {here!r}; restore the old data, or give this run another name"
        )
    return From(*checkpoint.restore(place, begun, like, supply.carry))


def _train(
    session: Session, at: From, arrived: Callable[[], int]
) -> tuple[step.State, int, str | None]:
    """(state, signal, reason of an early stop): after the last step, after an evaluation that was
    not finite, after one by which patience ends, or after the step in which a signal arrived."""
    run, state, best = session.run, at.state, session.best
    begun = int(state.step)
    if begun and missed_evaluation(session, begun):
        best = best.after(run, begun, evaluate(session, state, begun).measure)
    early = best.early_stop(run)
    if begun and diverged(session, begun):
        return state, 0, None
    if early:
        return state, 0, early
    stopped = 0
    with session.supply.open(begun, at.carry) as stream, trace.steps(run, session.out) as profile:
        for number in range(begun + 1, run.steps + 1):
            session.watch.arrive(f"the batch of step {number}")
            fed = stream.next(number, state)
            profile(number, state)
            # whose first collectives do not wait long for one whose batch is late
            (session.watch.meet if number == begun + 1 else session.watch.arrive)(f"step {number}")
            state, measured = session.program.step(state, fed.batch)
            session.meter.note(number, measured | fed.metrics, fed.seconds)
            session.out.tick(number)
            session.store.poll()
            stopped = _stopped(run, number, arrived)
            val = None
            if runs.evaluates(run, number) and not stopped:
                val = evaluate(session, state, number)
                if not math.isfinite(val.measure):
                    break  # a checkpoint of it would push out a good one
                best = best.after(run, number, val.measure)
                early = best.early_stop(run)
                if early and run.eval_batches is not None:
                    evaluate(session, state, number, last=True)
            if stopped or early or runs.saves(run, number):
                save(session, state, stream.carry(), val, best)
            if number == begun + 1:
                jax.block_until_ready(state.step)
                session.meter.restart(number)
            if stopped or early:
                break
    session.meter.flush()
    return state, stopped, early


def _stopped(run: Run, number: int, arrived: Callable[[], int]) -> int:
    """The signal that arrived, or 0. Several processes ask each other when they log, together."""
    own = arrived()
    if jax.process_count() > 1:
        return agreement.largest(own) if number % run.log_every == 0 else 0
    return own


def missed_evaluation(session: Session, number: int) -> bool:
    """Whether a signal cut in before the evaluation due at the step a run resumes from."""
    if not runs.evaluates(session.run, number):
        return False
    seen = metrics.records(session.folder / metrics.FILE)
    evaluated = any(r["step"] == number and r["split"] == "val" for r in seen)
    return not agreement.first(int(evaluated))


def diverged(session: Session, number: int) -> str | None:
    """The loss that is not finite after step `number`, by process 0's records; None if none."""
    session.meter.flush()
    seen = metrics.deterministic(session.folder / metrics.FILE)
    loss = directory.divergence(seen, number)
    if agreement.first(None if loss is None else 1) is None:
        return None
    return loss or "process 0 recorded a loss that is not finite"


def evaluate(
    session: Session, state: step.State, number: int, last: bool = False
) -> supplies.Judged:
    """The evaluation after step `number`, which is recorded, and the samples drawn. last: whether
    it reads the whole split although more steps were wanted."""
    run = session.run
    assert session.supply.evaluate is not None
    session.meter.flush()
    session.watch.meet(f"the evaluation after step {number}")
    clock = time.perf_counter()
    batches = None if last or number == run.steps else run.eval_batches
    judged = session.supply.evaluate(state, batches)
    timing = {"seconds": time.perf_counter() - clock}
    record = {"step": number, "split": "val", **judged.record, "timing": timing}
    session.writer.write(record)
    session.out.say(f"step {number}/{run.steps}  {directory.score_text(record)}")
    if run.samples and math.isfinite(judged.measure):
        params = optimizer.ema(state.opt, state.params)
        _sample(session, session.program.objective.weights(params, state.frozen), number)
    session.meter.restart(number)
    return judged


def _sample(session: Session, params: param.Tree, number: int) -> None:
    """Continue the run's prompts, into samples/."""
    run = session.run
    tokenizer, settings = tokenizers.load(run.data.tokenizer), runs.sampling(run)
    turns = prompt_tokens.turns(run.data, tokenizer, run.samples)
    completed = prompt_tokens.answered(session.program.model, params, tokenizer, turns, settings)
    lines = [
        f"--- {p!r}\n{p}{answer.text}\n" for p, answer in zip(run.samples, completed, strict=True)
    ]
    io.make_folder(session.folder / "samples")
    io.write(session.folder / "samples" / f"{number:08}.txt", "\n".join(lines))
    session.out.say(f"sample: {run.samples[0]}{completed[0].text}")


def save(
    session: Session,
    state: step.State,
    carry: param.Tree,
    val: supplies.Judged | None,
    best: meters.Best,
) -> None:
    """Start writing a checkpoint. carry: `Stream.carry`; val: the evaluation of this step, if
    there was one; best: the best of all so far. Raises: io.WriteError."""
    session.watch.arrive(f"the checkpoint of step {int(state.step)}")
    # What a checkpoint's step has in metrics.jsonl is on the disk before the checkpoint is.
    session.meter.flush()
    session.writer.commit()
    tokenizer = tokenizers.load(session.run.data.tokenizer).hash
    facts = directory.identity(session.run, tokenizer, session.origin) | {
        "data": session.supply.facts,
        "metrics": session.writer.mark(),
        "best": best,
        # of one run all evaluations are in the same measure; the best is a finite one
        "val": val.measure if val is not None and math.isfinite(val.measure) else None,
    }
    session.store.save(state, facts, carry)
    session.meter.restart(int(state.step))


def finish(session: Session, state: step.State, stopped: int, early: str | None = None) -> Result:
    """Wait for the last checkpoint, draw the plot, mark the run as finished unless stopped. early:
    the reason of an early stop."""
    session.watch.arrive("its last checkpoint")
    session.store.close()
    session.writer.commit()
    run, folder, number = session.run, session.folder, int(state.step)
    loss = None if stopped else diverged(session, number)
    seen = [r for r in metrics.deterministic(folder / metrics.FILE) if r["split"] == "val"]
    last = seen[-1] if seen and seen[-1]["step"] == number else None
    val = last if number == run.steps or early or loss else None
    tokens = session.supply.positions(number)
    where = staging.named(str(folder))
    result = Result(where, number, run.steps, tokens, val, stopped, loss, early)
    if session.out.primary:
        plot.loss(folder)
        if not stopped:
            directory.finish(folder, result)
        if loss is not None:
            session.out.warn(directory.diverged_text(run, result))
        elif not stopped:
            ended = f"stopped early, {early}; " if early else ""
            session.out.say(f"{ended}finished: {folder}. {directory.score_text(val)}")
        else:
            name = signal.Signals(stopped).name
            session.out.say(
                f"{name}: stopped after step {number} of {run.steps}, everything is saved. "
                f"Resume with the same command: {log.command()}"
            )
    session.watch.meet("its end")
    return result
