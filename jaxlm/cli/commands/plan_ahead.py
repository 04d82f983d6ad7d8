"""`jaxlm plan-ahead`: a plan, from a fitted law, of a run not yet trained."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from jaxlm.scaling import study_record
from jaxlm.scaling.cost import conventions, cost_report, ladder
from jaxlm.scaling.cost.cost_report import Row
from jaxlm.scaling.laws import loss_laws
from jaxlm.scaling.planning import allocation, next_run
from jaxlm.scaling.planning.next_run import Law, Plan, Range
from jaxlm.scaling.study import cautions


def plan_ahead(args: Sequence[str]) -> int:
    """jaxlm plan-ahead --law STUDY --flops C | --loss L | --inference-tokens T ..."""

    def command(
        law: pathlib.Path,
        flops: float | None = None,
        loss: float | None = None,
        quality: float | None = None,
        inference_tokens: float | None = None,
        params: float | None = None,
        tokens: float | None = None,
        unique_tokens: float | None = None,
        form: str | None = None,
        vocab: int = 32768,
        level: float = next_run.LEVEL,
        as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    ) -> int:
        """Plan a training run from a study of smaller ones.

        With --flops the compute-optimal run; with --loss the cheapest that reaches it. The study
        names its planner; its intervals hold resampled runs, the choice of planner and the form's
        own error beyond the runs; with --form they are of that form's bootstrap draws alone.

        Args:
            law: The study.json that `jaxlm fit` wrote, or its directory.
            flops: Training FLOPs, counted as the study counts them.
            loss: Held-out nats per token to reach.
            quality: Reach the loss of the compute-optimal model of this many parameters.
            inference_tokens: Tokens the model will read and write in its life; the size is then
                that of fewest FLOPs of training and inference together.
            params: Parameters chosen instead of the optimum's: what that costs.
            tokens: Training tokens chosen instead of the optimum's: what that costs.
            unique_tokens: Different tokens there are to train on.
            form: A form of the study instead of what the study plans by.
            vocab: Token ids of the Config that is proposed.
            level: Of the intervals.
            as_json: Print one JSON object instead of lines.
        """
        fitted = next_run.law(study_record.load(law, form))
        if quality is not None and loss is not None:
            raise ValueError("loss, quality: both given; one of them is to be reached")
        if quality is not None:
            loss = next_run.quality(fitted, quality)
        plans = _plans(fitted, flops, loss, inference_tokens, params, tokens, unique_tokens, level)
        print(_json(fitted, plans, vocab) if as_json else _text(fitted, plans, vocab, level))
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm plan-ahead")


def _plans(
    law: Law,
    flops: float | None,
    loss: float | None,
    inference: float | None,
    params: float | None,
    tokens: float | None,
    unique: float | None,
    level: float,
) -> dict[str, Any]:
    """{the question: its plan}, the run to train first.

    Raises: ValueError for a question that lacks a part, or has one too many.
    """
    chosen = params is not None or tokens is not None
    if flops is not None and loss is not None:
        raise ValueError("flops, loss: both given; the other follows from each")
    if flops is None and loss is None and not (params is not None and tokens is not None):
        raise ValueError(
            "flops, loss: none given; --flops, --loss or --quality, or --params with --tokens, "
            "say what to plan"
        )
    if chosen and loss is not None:
        raise ValueError("params, tokens: given with a loss; they go with --flops")
    if unique is not None and flops is None and not chosen:
        raise ValueError("unique_tokens: given without --flops")
    if inference is not None and flops is None and loss is None:
        raise ValueError("inference_tokens: given without --flops, --loss or --quality")
    plans: dict[str, Any] = {}
    if flops is not None:
        plans["optimum"] = next_run.at(law, flops, level)
    if loss is not None:
        plans["optimum"] = next_run.reach(law, loss, level)
    if inference is not None:
        aim = plans["optimum"].loss.value if loss is None else loss
        plans["served"] = next_run.serve(law, aim, inference, level)
    if chosen:
        plans["choice"] = next_run.choice(
            law, flops, params=params, tokens=tokens, unique=unique, level=level
        )
        plans.setdefault("optimum", plans["choice"].best)
    if unique is not None and flops is not None:
        plans["capped"] = next_run.capped(law, flops, unique, level)
    return plans


def _text(law: Law, plans: dict[str, Any], vocab: int, level: float) -> str:
    """All plans as aligned lines."""
    how = f"N {law.counting.params}, C {law.counting.flops}"
    rows = [*_study(law, plans["optimum"], level), Row("law", "")]
    rows += [
        Row("form", law.law),
        *(Row(k, f"{v:.8g}") for k, v in zip(_names(law), law.theta)),
        Row("counting", how),
        Row("fitted on", f"{law.flops[0]:.4g} to {law.flops[1]:.4g} FLOPs"),
        Row("intervals", f"{level:.0%}, {len(law.draws)} bootstrap draws"),
    ]
    if law.plan is not None and law.plan.sizes[0].name != law.law:
        rows.append(Row("N* by", f"{law.plan.sizes[0].name}; the loss by {law.law}"))
    rows += [Row("compute-optimal", ""), *_run(law, plans["optimum"])]
    rows += _built(law, plans["optimum"], vocab)
    if "served" in plans:
        s = plans["served"]
        rows += [Row("least training and inference together", ""), *_run(law, s.best)]
        rows += [
            Row("training and inference", _range(s.total, "FLOPs")),
            Row("of the compute-optimal run", _range(s.plain_total, "FLOPs")),
            Row("saved", _range(s.saved, "", "{:.2%}")),
            *_built(law, s.best, vocab),
        ]
    if "choice" in plans:
        c = plans["choice"]
        rows += [Row("as chosen", ""), *_run(law, c.run)]
        rows += [
            Row("loss above the optimum", _range(c.extra, "nats per token", "{:.6f}")),
            Row("compute that its loss needs", _range(c.enough, "FLOPs")),
            Row("wasted", f"{_range(c.wasted, 'FLOPs')}, {c.wasted.value / c.run.flops.value:.1%}"),
        ]
    if "capped" in plans:
        rows += _capped(law, plans["capped"], vocab)
    return cost_report.text(rows)


def _study(law: Law, plan: Plan, level: float) -> list[Row]:
    """Rows on the choice of the study's planner, and cautions; [] for a law of another form."""
    if law.plan is None or law.record is None:
        return []
    rows = [Row("plan", ""), Row("chosen", law.record.planned.chosen_by)]
    if math.isfinite(plan.params.low):
        text = _disagreement(law.record, law.plan, plan)
        rows += [Row("disagreement", text)] if text else []
    for caution in law.record.cautions:
        if caution.kind in cautions.VOID + cautions.MOVE and caution.kind != "forms disagree":
            rows.append(Row(f"caution: {caution.kind}", caution.text))
    return rows


def _disagreement(record: study_record.Record, planned: allocation.Planned, plan: Plan) -> str:
    n, level = plan.params, record.options.level
    others, flops = _rivals(record, plan), plan.flops.value
    return allocation.disagreement(planned, others, flops, n.value, (n.low, n.high), level)


def _rivals(record: study_record.Record, plan: Plan) -> dict[str, Any]:
    level = record.options.level
    return allocation.rivals(record.forms, record.approaches, plan.flops.value, record.per, level)


def _run(law: Law, plan: Plan) -> list[Row]:
    rows = [
        Row("training FLOPs C", _range(plan.flops)),
        Row("parameters N", _range(plan.params)),
        Row("tokens D", _range(plan.tokens)),
        Row("tokens per parameter", _range(plan.ratio)),
        Row("loss, nats per token", _range(plan.loss, "", "{:.6f}")),
        Row("extrapolation", f"{plan.extrapolation:.4g} times the largest compute fitted"),
    ]
    if plan.lost:
        rows.append(Row("without such a run", f"{plan.lost} of {len(law.draws)} draws"))
    return rows


def _capped(law: Law, c: next_run.Capped, vocab: int) -> list[Row]:
    head = Row("with the different tokens there are", "")
    if not c.binds:
        return [head, Row("cap", "does not bind: the optimum repeats no token")]
    if c.repeats:
        what = f"repeated {c.epochs.value:.3g} times, as the law values repetition"
    else:
        what = (
            f"binds: {law.law} says nothing of repeated tokens, so D stops at the cap and the "
            "rest of the compute goes into parameters"
        )
    return [
        head,
        Row("tokens" if c.repeats else "cap", what),
        *_run(law, c.run),
        Row("loss above the optimum", _range(c.extra, "nats per token", "{:.6f}")),
        *_built(law, c.run, vocab),
    ]


def _built(law: Law, plan: Plan, vocab: int) -> list[Row]:
    """The nearest Config, and its size."""
    nearest = _nearest(law, plan, vocab)
    if "none" in nearest:
        return [Row("nearest Config", nearest["none"])]
    n = nearest["params"]
    off = f"{cost_report.short(n)} {nearest['counting']}, {n / plan.params.value - 1:+.1%}"
    return [
        Row("nearest Config", f"{nearest['describe']}; vocabulary {vocab}"),
        Row("its N", off),
    ]


def _nearest(law: Law, plan: Plan, vocab: int) -> dict[str, Any]:
    """The nearest Config of the ladder to a plan's N, or {"none": why}."""
    counted = "total" if law.counting.params == "given" else law.counting.params
    try:
        cfg = ladder.nearest(plan.params.value, counted, vocab)
    except ValueError as error:
        return {"none": str(error)}
    n = conventions.params(cfg, counted)
    return {
        "describe": ladder.describe(cfg),
        "counting": counted,
        "params": n,
        "embed": cfg.embed,
        "layers": cfg.layers,
        "vocab": vocab,
    }


def _range(r: Range, unit: str = "", form: str = "{:.4g}") -> str:
    low, high = (form.format(x) for x in (r.low, r.high))
    known = math.isfinite(r.low) and low != high
    parts = [form.format(r.value), unit, f"({low} to {high})" if known else ""]
    return " ".join(p for p in parts if p)


def _names(law: Law) -> tuple[str, ...]:
    return loss_laws.LAWS[law.law].names


def _json(law: Law, plans: dict[str, Any], vocab: int) -> str:
    """One JSON object of all plans."""
    record: dict[str, Any] = {
        "law": law.law,
        "theta": dict(zip(_names(law), law.theta.tolist())),
        "draws": len(law.draws),
        "counting": law.counting,
        "per": law.per,
        "fitted": law.flops,
    }
    if law.plan is not None and law.record is not None:
        best = plans["optimum"]
        record["chosen_by"] = law.record.planned.chosen_by
        record["planner"] = law.plan.sizes[0].name
        record["disagreement"] = _disagreement(law.record, law.plan, best)
        record["rivals"] = _rivals(law.record, best)
        record["cautions"] = law.record.cautions
    runs = {"optimum": plans["optimum"]}
    runs |= {"served": plans["served"].best} if "served" in plans else {}
    runs |= {"capped": plans["capped"].run} if "capped" in plans else {}
    record |= plans
    record["nearest"] = {name: _nearest(law, run, vocab) for name, run in runs.items()}
    return json.dumps(study_record.plain(record), indent=1, allow_nan=False)
