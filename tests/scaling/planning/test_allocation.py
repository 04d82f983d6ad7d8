"""A plan's numbers at any compute: of forms, of approach 2, of both, with a form's own error."""

import dataclasses
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.scaling import study_record, table
from jaxlm.scaling.laws import loss_laws, optimum
from jaxlm.scaling.planning import allocation, discrepancy, forecast, model_selection, next_run
from jaxlm.scaling.study import analysis
from tests.scaling import public

TRUTH = np.array([1.7, 420.0, 900.0, 0.34, 0.31])
DRAWS = TRUTH * np.exp(np.random.default_rng(0).normal(0, 0.01, (50, 5)))
FLOPS = (1e18, 1e20)


def test_of_one_form_it_is_the_optimum_of_every_draw():
    p = allocation.form("chinchilla", TRUTH, DRAWS, FLOPS, 6.0)
    many = allocation.at(p, 1e22)
    best = optimum.at("chinchilla", np.concatenate([TRUTH[None], DRAWS]), 1e22)
    for name in ("params", "tokens", "loss", "exponent"):
        assert many._asdict()[name] == pytest.approx(best._asdict()[name], rel=1e-12)
    least = allocation.least(p, 2.4)
    expected = optimum.least("chinchilla", np.concatenate([TRUTH[None], DRAWS]), 2.4)
    assert least == pytest.approx(expected, rel=1e-9)
    assert allocation.at(p, least).loss == pytest.approx(np.full(51, 2.4), rel=1e-9)


def mixed(spread=(0.0, 0.0)):
    """N* = C^0.5 / 12 by approach 2, which 30 of 50 draws chose; the loss is chinchilla's."""
    rows = np.arange(50) < 30
    line = np.array([0.5, -np.log(12)])
    own = allocation.Sizes(model_selection.ISOFLOP, line, np.tile(line, (50, 1)), rows)
    other = allocation.Sizes("chinchilla", TRUTH, DRAWS, ~rows)
    return allocation.Planned((own, other), "chinchilla", TRUTH, DRAWS, spread, FLOPS, 6.0, 0)


def test_every_draw_plans_by_who_it_chose():
    many = allocation.at(mixed(), 1e22)
    assert many.params[:31] == pytest.approx(np.full(31, 1e11 / 12))
    assert many.params[31:] == pytest.approx(optimum.at("chinchilla", DRAWS[30:], 1e22).params)
    assert many.exponent[0] == 0.5
    law = loss_laws.LAWS["chinchilla"]
    assert many.loss[0] == pytest.approx(law.predict(TRUTH, (1e11 / 12, 1e22 / (6 * 1e11 / 12))))
    assert allocation.quality(mixed(), 1e11 / 12) == pytest.approx(many.loss[0], rel=1e-9)


def test_the_forms_own_error_grows_with_decades_beyond_the_runs():
    def widths(flops):
        p = mixed((0.1, 0.01))._replace(draws=np.tile(TRUTH, (4000, 1)))
        line = p.sizes[0]._replace(draws=np.tile(p.sizes[0].theta, (4000, 1)))
        many = allocation.at(p._replace(sizes=(line._replace(rows=np.ones(4000, bool)),)), flops)
        return np.std(np.log(many.params[1:])), np.std(np.log(many.loss[1:]))

    assert widths(1e20) == pytest.approx((0, 0), abs=1e-12)
    assert widths(1e22) == pytest.approx((0.2, 0.02), rel=0.05)


def runs(seed=0):
    c = np.repeat(np.geomspace(1e17, 1e20, 6), 6)
    n = optimum.at("chinchilla", TRUTH, c).params * np.tile(np.geomspace(0.3, 3, 6), 6)
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.002, len(c)))
    return table.make(
        n, c / (6 * n), loss_laws.LAWS["chinchilla"].predict(TRUTH, (n, c / (6 * n))) * noise
    )


@pytest.fixture(scope="module")
def record():
    names = ("chinchilla", "tied", "kaplan")
    return analysis.run(runs(), analysis.Options(laws=names, replicates=60, target=1e21))


def test_a_study_plans_by_what_the_truth_is(record):
    """Chinchilla's runs are planned by chinchilla, and the truth is near."""
    p = record.plan
    assert p.form == p.surface == "chinchilla" and p.default == "chinchilla"
    best = optimum.at("chinchilla", TRUTH, 1e21)
    estimates = ((p.params, best.params), (p.tokens, best.tokens), (p.loss, best.loss))
    for estimate, value in estimates:
        low, high = np.log(estimate.interval)
        # half as wide again: one study in 20 misses its own interval
        assert abs(np.log(value) - (low + high) / 2) < 0.75 * (high - low)
    many = allocation.at(allocation.of(record), 1e21)
    assert many.params[0] == pytest.approx(p.params.value, rel=1e-12)


def test_the_forms_own_error_is_in_the_plan(record):
    """Draws differ from the law's own by the discrepancy's, and the fit does not."""
    p = allocation.of(record)
    plan, law = allocation.at(p, 1e21), allocation.at(p._replace(own=None), 1e21)
    size, loss = discrepancy.draw(p.own, np.full(len(p.draws), 1e21), p.seed)
    assert np.log(plan.params[1:] / law.params[1:]) == pytest.approx(size)
    assert np.log(plan.loss[1:] / law.loss[1:]) == pytest.approx(loss)
    assert plan.params[0] == law.params[0] and np.std(plan.exponent) > np.std(law.exponent)
    without = dataclasses.replace(record, plan=dataclasses.replace(record.plan, discrepancy=None))
    wide, narrow = (forecast.predict(r, 1e9, 1e21 / 6e9) for r in (record, without))
    assert np.ptp(np.log(wide.interval)) > np.ptp(np.log(narrow.interval))
    assert wide.loss == narrow.loss


def test_plan_ahead_gives_the_studys_plan(record, tmp_path):
    """The same value and interval as the study's record, at its target."""
    study_record.save(tmp_path, record)
    best, p = next_run.at(next_run.law(study_record.load(tmp_path)), 1e21), record.plan
    pairs = ((best.params, p.params), (best.tokens, p.tokens), (best.loss, p.loss))
    for own, estimate in pairs:
        assert tuple(own) == pytest.approx((estimate.value, *estimate.interval), rel=1e-9)


def test_a_fixed_exponent_has_no_interval_and_lends_its_form_none(record):
    """The tied form says 1/2 by construction: its N* is as uncertain as the exponent is."""
    tied, free = (record.forms[k].optimum for k in ("tied", "chinchilla"))
    assert tied.exponent == (0.5, None)
    wide = [np.log(np.divide(*o.params[1][::-1])) for o in (tied, free)]
    assert wide[0] > 0.8 * wide[1]


def test_the_planner_may_be_named():
    options = analysis.Options(laws=("chinchilla",), law="isoflop", replicates=60, target=1e21)
    record = analysis.run(runs(), options)
    side, p = record.approaches["isoflop akima"], record.plan
    assert p.form == "isoflop" and p.chosen_by == "isoflop plans, as --law asks."
    assert p.params.value == pytest.approx(side.params)


def test_a_disagreement_is_beyond_what_resampling_gives_both(record):
    """The form's own error widens the plan's interval, and does not silence who contradicts it."""
    value, interval = record.plan.params.value, record.plan.params.interval
    planned = allocation.of(record)
    rivals = allocation.rivals(record.forms, record.approaches, 1e21, record.per, 0.95)
    text = allocation.disagreement(planned, rivals, 1e21, value, interval, 0.95)
    assert planned.own is not None
    many = allocation.at(planned._replace(own=None), 1e21).params[1:]
    low, high = np.percentile(many, [2.5, 97.5])
    assert np.log(high / low) < np.ptp(np.log(interval))
    for name, (n, own) in rivals.items():
        apart = not low <= n <= high
        apart &= own is None or not own[0] <= value <= own[1]
        assert apart == (f"by {name}" in text)
    assert allocation.disagreement(planned, rivals, 1e21, value, None, 0.95) == ""


def test_without_budgets_the_form_that_predicts_the_loss_plans():
    """No N* is measured and kaplan's law made the losses: a study that ended in a KeyError."""
    random = np.random.default_rng(0)
    n = np.exp(random.uniform(np.log(1e7), np.log(1e9), 60))
    d = n * np.exp(random.uniform(np.log(5), np.log(200), 60))
    loss = loss_laws.LAWS["kaplan"].predict((8.8e13, 5.4e13, 0.09, 0.12), (n, d))
    t = table.make(n, d, loss * np.exp(random.normal(0, 5e-4, 60)))
    options = analysis.Options(laws=("chinchilla", "kaplan"), replicates=40)
    p = analysis.run(t, options).planned
    assert p.form == p.surface == "kaplan" and p.chosen_by.startswith("Kaplan plans: over")


@pytest.mark.slow
def test_the_documents_commands_give_what_it_shows(tmp_path, monkeypatch, capsys):
    """docs/plan_ahead.md: its two commands, and every line of the block behind them. Hoffmann et
    al.'s runs are planned as the field does, N* at 5.76e23 between 5e10 and 1e11; Farseer's 2.6e10
    is reported and does not plan."""
    page = (pathlib.Path(__file__).parents[3] / "docs" / "plan_ahead.md").read_text()
    commands = re.findall(r"^    jaxlm (.*)$", page, re.MULTILINE)[:2]
    shown = page.split("```")[1].strip().splitlines()
    shutil.copy(public.path("chinchilla_epoch_svg.csv"), tmp_path / "hoffmann.csv")
    monkeypatch.chdir(tmp_path)
    for line in commands:
        capsys.readouterr()
        assert main.main(shlex.split(line)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line != "..." and line not in printed] == []
    record = study_record.load(tmp_path / "runs" / "fit").record
    p = record.plan
    assert p.form == "chinchilla" and 5e10 < p.params.value < 1e11
    assert 1.5e10 < p.params.interval[0] < p.params.interval[1] < 4e11
    assert "by farseer" in p.disagreement
    assert record.cautions[0].kind == "largest sizes above the law"


@pytest.mark.parametrize("free", [True, False])
def test_a_planner_whose_exponent_is_fixed(free, tmp_path):
    """With chinchilla's exponent its N* is that uncertain; without, it has no interval at all."""
    names = ("chinchilla", "tied") if free else ("tied",)
    options = analysis.Options(laws=names, law="tied", replicates=60, target=1e22)
    record = analysis.run(runs(), options)
    p = record.plan
    assert p.form == "tied" and p.exponent.interval is None
    assert "fixed exponent" in {c.kind for c in record.cautions}
    study_record.save(tmp_path, record)
    best = next_run.at(next_run.law(study_record.load(tmp_path)), 1e22)
    if free:
        own = record.forms["chinchilla"].optimum.params[1]
        assert np.diff(np.log(p.params.interval)) > 0.8 * np.diff(np.log(own))
        assert np.log(best.params.high / best.params.low) > 0.6 * np.diff(np.log(own))
    else:
        assert p.params.interval is None and np.isnan(best.params.low)
    assert forecast.predict(record, 1e9, 1e10).interval[0] < 3
