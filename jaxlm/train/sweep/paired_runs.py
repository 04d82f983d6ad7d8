"""An ablation as an experiment: paired runs, planned looks, a verdict, and what it is worth.

    power is stated -> pairs of runs up to the first look -> decided? -> ... -> ablation.json

A pair has one seed and one data order. Runs are trials of `scheduler`, on any engine: a finished
one is not run again, a failed one is retried, a stopped ablation goes on with the same command.
"""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import check, config, io
from jaxlm.core.remote import objects
from jaxlm.data import pretraining
from jaxlm.scaling import study_record, table
from jaxlm.scaling.ablation import compute_multiplier, paired, sequential
from jaxlm.scaling.cost import conventions
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run
from jaxlm.train.sweep import engines, scheduler
from jaxlm.train.sweep.sweep_cells import Trial

FILE = "ablation.json"
# Fields that decide the text to be judged on; the others of data decide the order of training.
_JUDGED = ("source", "field", "tokenizer", "holdout", "corrupt")
_EXACT = table.Counting("total", "exact causal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """A baseline, what is changed about it, and how it will be decided, before anything runs."""

    name: str
    """Runs are out/name-ARM-sSEED; the record is out/name/ablation.json, along with sweep.json,
    the state of every run, and their logs."""
    baseline: Run
    """The run that variants are compared with."""
    variants: tuple[Run, ...]
    """The baseline with a change each, under another name. With several, alpha is shared out evenly
    among them (Bonferroni)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """One pair each: Run.seed and data.seed of both its runs."""
    looks: tuple[int, ...] = (3, 5, 8)
    """Numbers of pairs after which it may be decided; the last is all of them."""
    alpha: float = 0.05
    """Probability that a change without effect is reported to have one, all looks together."""
    power: float = 0.8
    """Probability that the smallest effect that the plan claims to detect is detected."""
    noise: float | None = None
    """Standard deviation of a pair's difference in nats, known from elsewhere. None estimates it
    from the baseline's runs of the first look, as if pairing gained nothing, which is on the safe
    side; they are trained before the variants and serve as their pairs."""
    matters: float | None = None
    """Nats below which a difference does not matter: such a verdict stops it too. None goes on."""
    lengths: tuple[float, ...] = ()
    """The baseline is trained at these multiples of its steps too, with the first look's seeds,
    which gives its loss against compute and so the change's worth. () where `law` gives it."""
    law: str | None = None
    """A study.json whose law gives the worth of a loss in compute. None has no law."""
    out: str = "runs"
    """The directory of the run directories."""


class _Diverged(Exception):
    """A run has no finite loss: which, and why."""


def problems(plan: Ablation) -> Iterator[str]:
    """Problems of the plan, a line for each field that does not fit; of its runs where it has
    none."""
    wrong = [*_problems(plan)]
    yield from wrong
    arms = [(plan.baseline, x) for x in (1.0, *plan.lengths)] + [(v, 1.0) for v in plan.variants]
    seen: set[str] = set()
    for run, share in [] if wrong else arms:
        trial = arm(plan, run, plan.seeds[0], share)
        lines = [line for line in runs.problems(trial) if line not in seen]
        seen.update(lines)
        yield from (f"{trial.name}: {line}" for line in lines)


def _problems(plan: Ablation) -> Iterator[str]:
    fits = "a local directory: an ablation keeps its book there"
    yield from check.problem("out", plan.out, objects.url(plan.out) is None, fits)
    fits = "at least one Run, a change of the baseline"
    yield from check.problem("variants", plan.variants, bool(plan.variants), fits)
    names = [run.name for run in (plan.baseline, *plan.variants)]
    if len(set(names)) < len(names):
        yield f"variants: names {names} given; every arm needs a name of its own"
    digests = {runs.digest(run): run.name for run in plan.variants}
    for run in plan.variants:
        if (other := digests[runs.digest(run)]) != run.name:
            yield f"variants: {run.name!r} and {other!r} compute the same; leave one out"
    fits = "different ones: each makes one pair"
    yield from check.problem("seeds", plan.seeds, len({*plan.seeds}) == len(plan.seeds), fits)
    wrong = [*check.outside("", plan, "alpha", above=0, below=1)]
    yield from wrong
    if not wrong:
        share = plan.alpha / max(len(plan.variants), 1)
        yield from check.loaded("", lambda: sequential.nominal(plan.looks, share))
        yield from check.outside("", plan, "power", above=plan.alpha, below=1)
    ok = plan.looks[-1:] in ((), (len(plan.seeds),))
    fits = f"numbers whose last is that of all {len(plan.seeds)} pairs"
    yield from check.problem("looks", plan.looks, ok, fits)
    yield from check.outside("", plan, "noise", "matters", above=0)
    ok = all(0 < share < math.inf and share != 1 for share in plan.lengths)
    fits = "positive multiples of steps other than 1"
    yield from check.problem("lengths", plan.lengths, ok, fits)
    if plan.law is not None:
        why = f"with law={plan.law!r}: one of them gives the worth of a loss"
        yield from check.changed("", plan, "lengths", why=why)
    if not isinstance(plan.baseline.data, pretraining.Data):
        kind = config.kind(type(plan.baseline.data))
        yield f"baseline.data: {kind} given; it must be text: arms are judged by nats per token"
    elif plan.baseline.eval_every is None:
        yield "baseline.eval_every: None given; arms are judged by their evaluation"
    why = "since arms are compared after equal steps"
    yield from check.changed("baseline", plan.baseline, "patience", why=why)
    for run in plan.variants:
        yield from _unfit(plan.baseline, run)


def _unfit(baseline: Run, variant: Run) -> Iterator[str]:
    """Reason why two arms are no pair."""
    ours, theirs = (
        config.without(config.to_dict(run), *runs.EXECUTION) for run in (baseline, variant)
    )
    changes = config.differences(ours, theirs)
    if not changes:
        yield f"variants: {variant.name!r} differs from the baseline in nothing that is computed"
    for path, here, there in changes:
        change = f"variants: {variant.name!r} has {path}={there!r}, the baseline {here!r}"
        part = path.split(".")
        if path == "seed" or path == "data.seed":
            yield f"{change}; seeds are the ablation's (`seeds`), leave both as they are"
        elif part[0] == "data" and (len(part) == 1 or part[1] in _JUDGED):
            yield f"{change}; losses on different text cannot be compared"
        elif part[0] == "data":
            yield f"{change}; a pair reads the same batches in the same order"
        elif path == "eval_every" and there is None:
            yield f"{change}; arms are judged by their evaluation"


def arm(plan: Ablation, run: Run, seed: int, share: float = 1.0) -> Run:
    """The Run of one arm and seed, at `share` of its steps with a warm-up as much shorter."""
    name = f"{plan.name}-{run.name}-s{seed}"
    optim, steps = run.optim, run.steps
    if share != 1:
        name, steps = f"{name}-x{share:g}", max(round(steps * share), 2)
        optim = dataclasses.replace(optim, warmup=round(optim.warmup * share))
    data = dataclasses.replace(run.data, seed=seed)
    return dataclasses.replace(
        run, name=name, seed=seed, data=data, optim=optim, steps=steps, out=plan.out
    )


def run(
    plan: Ablation,
    execution: engines.Execution = engines.Execution(),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run an ablation to its verdicts, or on from where it stopped; returns its record, which is
    also written to out/name/ablation.json.

    Raises: ValueError with `problems`, and as `study_record.load`; for a baseline that diverged, or
    a run that failed for good; as `scheduler.running`.
    """
    check.refuse("this ablation cannot start:", problems(plan))
    curve = None if plan.law is None else _of_study(plan.law)
    folder = pathlib.Path(plan.out).expanduser() / plan.name
    trials = _trials(plan)
    book = scheduler.opened(folder, _EXACT, list(trials.values()), {})
    record: dict[str, Any] = {"plan": _plain(plan)}
    with scheduler.running(book, execution, say) as train:
        arms = _Arms(plan, book, trials, train, say)
        try:
            record["power"] = _stated(arms)
            record["arms"] = _decide(arms, curve)
        except _Diverged as error:  # of the baseline: a variant's ends its comparison alone
            raise ValueError(
                f"baseline: {error}; there is nothing to compare with, lower baseline.optim.lr"
            ) from error
    text = json.dumps(study_record.plain(record), indent=1, allow_nan=False)
    io.write(folder / FILE, text + "\n")
    say(f"{folder / FILE} written")
    return record


# A run of an ablation: the name of its arm, its seed, its share of the arm's steps.
_Key = tuple[str, int, float]


def _trials(plan: Ablation) -> dict[_Key, Trial]:
    """Every run that the ablation may need."""
    trials = {}
    for run in (plan.baseline, *plan.variants):
        for seed in plan.seeds:
            trials[run.name, seed, 1.0] = _trial(arm(plan, run, seed))
    for share in plan.lengths:
        for seed in plan.seeds[: plan.looks[0]]:
            trials[plan.baseline.name, seed, share] = _trial(arm(plan, plan.baseline, seed, share))
    return trials


def _trial(run: Run) -> Trial:
    """A run with its size and cost, by the exact count."""
    data = run.data
    assert isinstance(data, pretraining.Data)
    tokens = pretraining.tokens_before(data, run.steps)
    return Trial(
        run=run,
        digest=runs.digest(run),
        role="point",
        params=conventions.params(run.model, _EXACT.params),
        tokens=tokens,
        flops=conventions.per_token(run.model, data.seq, _EXACT) * tokens,
        seed=run.seed,
        trunk=None,
        own=run.steps,
        cluster=run.name,
    )


class _Arms(NamedTuple):
    """A plan and its runs: train(trials) runs them to their ends."""

    plan: Ablation
    book: scheduler.Book
    trials: dict[_Key, Trial]
    train: Callable[[Sequence[Trial]], None]
    say: Callable[[str], None]

    def of(self, run: Run, pairs: int, share: float = 1.0) -> list[Trial]:
        """The trials of an arm with the first seeds."""
        return [self.trials[run.name, seed, share] for seed in self.plan.seeds[:pairs]]

    def losses(self, trials: Sequence[Trial]) -> np.ndarray:
        """Held-out nats per token of trials, trained now if they were not before."""
        self.train(trials)
        entries = [self.book.entries[t.digest] for t in trials]
        for entry in entries:
            if entry.state == "diverged":
                raise _Diverged(f"{entry.name} {entry.reason}")
            if entry.state != "finished":
                raise ValueError(f"{entry.name} {entry.state}: {entry.reason}")
        return np.array([entry.loss for entry in entries])


def _plain(plan: Ablation) -> dict[str, Any]:
    record = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    baseline = config.to_dict(plan.baseline)
    record["baseline"] = baseline
    record["variants"] = [
        {"name": run.name, "changes": config.differences(baseline, config.to_dict(run))}
        for run in plan.variants
    ]
    record["digests"] = {run.name: runs.digest(run) for run in (plan.baseline, *plan.variants)}
    return record


def _of_study(path: str) -> compute_multiplier.Curve:
    study = study_record.load(path)
    return compute_multiplier.of_law(study.law, tuple(study.theta.values()), study.draws)


# --- Before, and after -----------------------------------------------------------------------


def _stated(arms: _Arms) -> dict[str, Any]:
    """Reports what the plan can detect, before any variant is trained; returns the record of it."""
    plan, say = arms.plan, arms.say
    alpha, most = plan.alpha / len(plan.variants), plan.looks[-1]
    noise, source = plan.noise, "as given"
    if noise is None:
        first = plan.looks[0]
        source = f"sqrt(2) times the sd of {first} baseline runs, as if pairing gained nothing"
        noise = math.sqrt(2) * float(arms.losses(arms.of(plan.baseline, first)).std(ddof=1))
        if not noise:
            raise ValueError(
                "noise: None given, and the baseline's runs do not differ at all between seeds; "
                "give the standard deviation of a difference"
            )
    levels = sequential.nominal(plan.looks, alpha)
    least = paired.detectable(noise, most, levels[-1], plan.power)
    say(f"noise       {noise:.5f} nats, sd of a pair's difference ({source})")
    say(f"looks       after {', '.join(map(str, plan.looks))} pairs, p at most {_shown(levels)}")
    say(f"power       {plan.power:.0%} for effects of {least:.5f} nats and more, with {most} pairs")
    if plan.matters is not None:
        chance = paired.power(plan.matters, noise, most, levels[-1])
        say(f"            {chance:.0%} for the {plan.matters:g} nats that matter")
    return {"noise": noise, "source": source, "levels": levels, "detectable": least}


def _shown(levels: tuple[float, ...]) -> str:
    return ", ".join(f"{x:.2g}" for x in levels)


def _decide(arms: _Arms, curve: compute_multiplier.Curve | None) -> dict[str, dict[str, Any]]:
    """{variant: its looks, verdict and worth}."""
    plan, say = arms.plan, arms.say
    alpha = plan.alpha / len(plan.variants)
    outcomes: dict[str, dict[str, Any]] = {variant.name: {"looks": []} for variant in plan.variants}
    waiting = list(plan.variants)
    for pairs in plan.looks:
        if not waiting:
            break
        together = [arms.of(run, pairs) for run in (plan.baseline, *waiting)]
        arms.train([*itertools.chain(*together)])
        base = arms.losses(arms.of(plan.baseline, pairs))
        for variant in tuple(waiting):
            try:
                losses = arms.losses(arms.of(variant, pairs))
            except _Diverged as error:
                waiting.remove(variant)
                outcomes[variant.name] |= {"verdict": "diverged", "reason": str(error)}
                say(f"{variant.name:<12}diverged: {error}")
                continue
            look = paired.look(base, losses, plan.looks, alpha, plan.matters)
            outcomes[variant.name]["looks"].append(look)
            say(f"{variant.name:<12}{pairs} pairs: {_text(look)}")
            if look.verdict == "go on":
                continue
            waiting.remove(variant)
            outcomes[variant.name] |= {"baseline": base, "losses": losses, "verdict": look.verdict}
    if curve is None and plan.lengths:
        curve = _measured(arms)
    for variant in plan.variants:
        if curve is not None and outcomes[variant.name]["verdict"] != "diverged":
            outcomes[variant.name]["worth"] = _worth(arms, variant, outcomes[variant.name], curve)
    return outcomes


def _text(seen: paired.Look) -> str:
    e = seen.effect
    return (
        f"{e.mean:+.5f} nats [{e.low:+.5f}, {e.high:+.5f}], p {e.p:.2g} against "
        f"{seen.nominal:.2g}: {seen.verdict}"
    )


def _measured(arms: _Arms) -> compute_multiplier.Curve:
    """Loss against compute of the baseline's own runs."""
    plan = arms.plan
    shares = [arms.of(plan.baseline, plan.looks[0], share) for share in (1.0, *plan.lengths)]
    trials = [*itertools.chain(*shares)]
    losses, flops = arms.losses(trials), np.array([t.flops for t in trials])
    return compute_multiplier.of_runs(flops, losses, np.array([float(t.seed) for t in trials]))


def _worth(
    arms: _Arms, variant: Run, outcome: dict[str, Any], curve: compute_multiplier.Curve
) -> compute_multiplier.Worth:
    nominal, baseline = outcome["looks"][-1].nominal, arms.plan.baseline
    cost = arms.of(variant, 1)[0].flops / arms.of(baseline, 1)[0].flops
    worth = compute_multiplier.worth(outcome["baseline"], outcome["losses"], curve, nominal, cost)
    arms.say(
        f"{variant.name:<12}worth {worth.multiplier:.3f} times the baseline's compute "
        f"[{worth.low:.3f}, {worth.high:.3f}], its own cost of {worth.cost:.3f} divided out"
    )
    return worth
