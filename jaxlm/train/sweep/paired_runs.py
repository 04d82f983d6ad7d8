"""An ablation as an experiment: paired runs, planned looks, a verdict, and what it is worth.

    power is stated -> pairs of runs up to the first look -> decided? -> ... -> ablation.json

A pair has one seed and one data order. Runs are ordinary ones, each in its directory: a finished
one is not run again, a stopped ablation goes on with the same command.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import config, io, json_file
from jaxlm.data import pretraining
from jaxlm.scaling import study_record, table
from jaxlm.scaling.ablation import compute_multiplier, paired, sequential
from jaxlm.scaling.cost import conventions
from jaxlm.train import loop
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

FILE = "ablation.json"
# Fields that decide the text to be judged on; the others of data decide the order of training.
_JUDGED = ("source", "field", "tokenizer", "holdout", "corrupt")
_EXACT = table.Counting("total", "exact causal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """A baseline, what is changed about it, and how it will be decided, before anything runs."""

    name: str
    """Runs are out/name-ARM-sSEED, the record is out/name/ablation.json."""
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


class Outcome(NamedTuple):
    """Outcome of an ablation: its record, and 0 or 128 + the signal that stopped a run."""

    record: dict[str, Any]
    exit_code: int


class _Stopped(Exception):
    """A signal ended a run early."""


class _Diverged(Exception):
    """A run has no finite loss: which, and why."""


def validate(plan: Ablation) -> None:
    """Check the plan and all its runs. Raises: ValueError listing every problem by field."""
    found = list(_problems(plan))
    if not found:
        for one in (plan.baseline, *plan.variants):
            runs.validate(arm(plan, one, plan.seeds[0]))
        for share in plan.lengths:
            runs.validate(arm(plan, plan.baseline, plan.seeds[0], share))
    if found:
        raise ValueError("\n".join(["this ablation cannot start:", *(f"  {t}" for t in found)]))


def _problems(plan: Ablation) -> Iterator[str]:
    if not plan.variants:
        yield "variants: none given; at least one is needed"
    names = [one.name for one in (plan.baseline, *plan.variants)]
    if len(set(names)) < len(names):
        yield f"variants: names {names} given; every arm needs a name of its own"
    if len(set(plan.seeds)) < len(plan.seeds):
        yield f"seeds: {plan.seeds} given; each makes one pair, so different ones are needed"
    try:
        sequential.nominal(plan.looks, plan.alpha / max(len(plan.variants), 1))
    except ValueError as error:
        yield str(error)
    if plan.looks and plan.looks[-1] != len(plan.seeds):
        yield f"looks: {plan.looks} given; the last is after all {len(plan.seeds)} pairs"
    for name in ("noise", "matters"):
        value = getattr(plan, name)
        if value is not None and not value > 0:
            yield f"{name}: {value} given; a positive number of nats is needed"
    if not plan.alpha < plan.power < 1:
        yield f"power: {plan.power} given; more than alpha={plan.alpha} and less than 1 is needed"
    if any(not 0 < share < math.inf or share == 1 for share in plan.lengths):
        yield f"lengths: {plan.lengths} given; positive multiples of steps other than 1"
    if plan.law is not None and plan.lengths:
        yield (
            f"lengths: {plan.lengths} given with law={plan.law!r}; one of them says what a loss is "
            "worth, leave the other out"
        )
    if not isinstance(plan.baseline.data, pretraining.Data):
        kind = type(plan.baseline.data).__name__
        yield f"baseline.data: {kind} given; arms are judged on text, by nats per token"
    elif plan.baseline.eval_every is None:
        yield "baseline.eval_every: None given; arms are judged by their evaluation"
    for one in plan.variants:
        yield from _unfit(plan.baseline, one)


def _unfit(baseline: Run, variant: Run) -> Iterator[str]:
    """Reason why two arms are no pair."""
    ours, theirs = (
        config.without(config.to_dict(one), *runs.EXECUTION) for one in (baseline, variant)
    )
    found = config.differences(ours, theirs)
    if not found:
        yield f"variants: {variant.name!r} differs from the baseline in nothing that is computed"
    for path, here, there in found:
        told = f"variants: {variant.name!r} has {path}={there!r}, the baseline {here!r}"
        part = path.split(".")
        if path == "seed" or path == "data.seed":
            yield f"{told}; seeds are the ablation's (`seeds`), leave both as they are"
        elif part[0] == "data" and (len(part) == 1 or part[1] in _JUDGED):
            yield f"{told}; losses on different text cannot be compared"
        elif part[0] == "data":
            yield f"{told}; a pair reads the same batches in the same order"
        elif path == "eval_every" and there is None:
            yield f"{told}; arms are judged by their evaluation"


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


def run(plan: Ablation, say: Callable[[str], None] = print) -> Outcome:
    """Run an ablation to its verdicts, or on from where it stopped; its Outcome, also written to
    out/name/ablation.json.

    Raises: ValueError as `validate`, and as `study_record.load`; what `loop.run` raises.
    """
    validate(plan)
    curve = None if plan.law is None else _of_study(plan.law)
    folder = pathlib.Path(plan.out).expanduser() / plan.name
    record: dict[str, Any] = {"plan": _plain(plan)}
    try:
        record["power"] = _stated(plan, say)
        record["arms"] = _decide(plan, curve, say)
    except _Stopped as stopped:
        return Outcome(record, stopped.args[0])
    except _Diverged as error:  # of the baseline: a variant's ends its comparison alone
        raise ValueError(
            f"baseline: {error}; there is nothing to compare with, lower baseline.optim.lr"
        ) from error
    io.make_folder(folder)
    io.write(
        folder / FILE, json.dumps(study_record.plain(record), indent=1, allow_nan=False) + "\n"
    )
    say(f"{folder / FILE} written")
    return Outcome(record, 0)


def _plain(plan: Ablation) -> dict[str, Any]:
    found = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    arms = [plan.baseline, *plan.variants]
    found["baseline"] = config.to_dict(plan.baseline)
    found["variants"] = [
        {"name": one.name, "changes": config.differences(found["baseline"], config.to_dict(one))}
        for one in plan.variants
    ]
    found["digests"] = {one.name: runs.digest(one) for one in arms}
    return found


def _of_study(path: str) -> compute_multiplier.Curve:
    found = study_record.load(path)
    return compute_multiplier.of_law(found.law, tuple(found.theta.values()), found.draws)


def _loss(plan: Ablation, run_: Run, seed: int, share: float = 1.0) -> float:
    """Held-out nats per token of one run, trained now if it was not before."""
    one = arm(plan, run_, seed, share)
    result = directory.finished(one) or loop.run(one)
    if result.signal:
        raise _Stopped(result.exit_code)
    nll = None if result.val is None else json_file.number(result.val, "nll")
    if result.diverged is not None or nll is None or not math.isfinite(nll):
        raise _Diverged(f"{result.folder} diverged at step {result.step}: {result.diverged}")
    return nll


def _losses(plan: Ablation, run_: Run, pairs: int) -> np.ndarray:
    return np.array([_loss(plan, run_, seed) for seed in plan.seeds[:pairs]])


# --- Before, and after -----------------------------------------------------------------------


def _stated(plan: Ablation, say: Callable[[str], None]) -> dict[str, Any]:
    """Reports what the plan can detect, before any variant is trained; returns the record of it."""
    alpha, most = plan.alpha / len(plan.variants), plan.looks[-1]
    noise, source = plan.noise, "as given"
    if noise is None:
        first = plan.looks[0]
        source = f"sqrt(2) times the sd of {first} baseline runs, as if pairing gained nothing"
        noise = math.sqrt(2) * float(_losses(plan, plan.baseline, first).std(ddof=1))
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


def _decide(
    plan: Ablation, curve: compute_multiplier.Curve | None, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    alpha = plan.alpha / len(plan.variants)
    arms: dict[str, dict[str, Any]] = {one.name: {"looks": []} for one in plan.variants}
    waiting = list(plan.variants)
    for pairs in plan.looks:
        base = _losses(plan, plan.baseline, pairs) if waiting else np.zeros(0)
        for one in tuple(waiting):
            try:
                losses = _losses(plan, one, pairs)
            except _Diverged as error:
                waiting.remove(one)
                arms[one.name] |= {"verdict": "diverged", "reason": str(error)}
                say(f"{one.name:<12}diverged: {error}")
                continue
            seen = paired.look(base, losses, plan.looks, alpha, plan.matters)
            arms[one.name]["looks"].append(seen)
            say(f"{one.name:<12}{pairs} pairs: {_told(seen)}")
            if seen.verdict == "go on":
                continue
            waiting.remove(one)
            arms[one.name] |= {"baseline": base, "losses": losses, "verdict": seen.verdict}
    if curve is None and plan.lengths:
        curve = _measured(plan)
    for one in plan.variants:
        if curve is not None and arms[one.name]["verdict"] != "diverged":
            arms[one.name]["worth"] = _worth(plan, one, arms[one.name], curve, say)
    return arms


def _told(seen: paired.Look) -> str:
    e = seen.effect
    return (
        f"{e.mean:+.5f} nats [{e.low:+.5f}, {e.high:+.5f}], p {e.p:.2g} against "
        f"{seen.nominal:.2g}: {seen.verdict}"
    )


def _flops(run_: Run, share: float = 1.0) -> float:
    """Training FLOPs of a run by the exact count."""
    data = run_.data
    assert isinstance(data, pretraining.Data)
    tokens = pretraining.tokens_before(data, max(round(run_.steps * share), 2))
    return conventions.per_token(run_.model, data.seq, _EXACT) * tokens


def _measured(plan: Ablation) -> compute_multiplier.Curve:
    """Loss against compute of the baseline's own runs."""
    points = [
        (_flops(plan.baseline, share), _loss(plan, plan.baseline, seed, share), seed)
        for share in (1.0, *plan.lengths)
        for seed in plan.seeds[: plan.looks[0]]
    ]
    flops, losses, pair = np.array(points).T
    return compute_multiplier.of_runs(flops, losses, pair)


def _worth(
    plan: Ablation,
    one: Run,
    found: dict[str, Any],
    curve: compute_multiplier.Curve,
    say: Callable[[str], None],
) -> compute_multiplier.Worth:
    last = found["looks"][-1]
    cost = _flops(one) / _flops(plan.baseline)
    seen = compute_multiplier.worth(found["baseline"], found["losses"], curve, last.nominal, cost)
    say(
        f"{one.name:<12}worth {seen.multiplier:.3f} times the baseline's compute "
        f"[{seen.low:.3f}, {seen.high:.3f}], its own cost of {cost:.3f} divided out"
    )
    return seen
