"""The optimum of every law and plans made from it, against published numbers and minimisers."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from scipy import optimize

from jaxlm.cli.commands import plan_ahead as command
from jaxlm.scaling import study_record, table
from jaxlm.scaling.laws import loss_laws, optimum
from jaxlm.scaling.planning import next_run
from tests.scaling import public

EPOCH = (1.817218, 477.82587, 2143.41737, 0.347310, 0.367172)
THETA = {
    "chinchilla": EPOCH,
    "tied": (1.8, 480.0, 2100.0, 0.35),
    "kaplan": (6.4e13, 1.8e13, 0.076, 0.103),
    "overtraining": (1.836648, 166.210978, 366.687159, 0.272851),
    # Muennighoff et al. 2023: a, b, e, alpha = beta; R_D*, R_N*
    "data_constrained": (
        math.exp(0.6254804),
        math.exp(6.255414),
        math.exp(7.3049974),
        0.3526596,
        0.3526596,
        15.387756,
        5.309743,
    ),
    # made up, of the size of bits per character: 0.43 to 0.68 for 1e8 to 1e10 weights
    "farseer": (-0.124, 0.424, 0.123, 88.01, -6.287, -0.1, -0.021, -0.091, 0.169),
}


def law_of(name="chinchilla", theta=None, draws=0, spread=0.01):
    """A Law with draws about its theta."""
    values = np.array(THETA[name] if theta is None else theta)
    noise = np.random.default_rng(0).standard_normal((draws, len(values)))
    many = values * (1 + spread * noise)
    return next_run.Law(name, values, many, table.Counting("total"), (1e18, 1e22))


# -- the optimum


@pytest.mark.parametrize(
    "flops, params, ratio",
    [(1e19, 2.6186e8, 24.305), (5.76e23, 7.319e10, 17.921), (1e25, 3.1730e11, 16.554)],
)
def test_planning_numbers_of_hoffmanns_runs(flops, params, ratio):
    best = optimum.at("chinchilla", EPOCH, flops)
    assert best.params == pytest.approx(params, rel=5e-5)
    assert best.tokens / best.params == pytest.approx(ratio, abs=6e-4)
    assert best.exponent == pytest.approx(0.5139, abs=5e-5)
    if flops == 5.76e23:
        assert best.tokens == pytest.approx(1.3116e12, rel=5e-5)
        assert best.loss == pytest.approx(1.973914, abs=5e-7)


def test_rounding_alone_moves_tokens_per_parameter_by_half():
    """Hoffmann et al.'s printed coefficients and those of their TeX source."""
    rounded = (1.69, 406.4, 410.7, 0.34, 0.28)
    tex = (math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083)
    best = optimum.at("chinchilla", [rounded, tex], 5.76e23)
    assert best.tokens / best.params == pytest.approx([92.6, 58.9], abs=0.05)


@pytest.mark.parametrize("law", THETA)
def test_the_optimum_is_where_a_minimiser_ends(law):
    theta, flops = THETA[law], 1e21
    form = loss_laws.LAWS[law]

    def loss(log_n):
        n = math.exp(log_n)
        d = flops / (6 * n)
        known = {"params": n, "tokens": d, "unique": d}
        return float(form.predict(theta, tuple(known[k] for k in form.inputs)))

    best = optimum.at(law, theta, flops)
    least = optimize.minimize_scalar(
        loss, bounds=(18, 26), method="bounded", options={"xatol": 1e-9}
    )
    assert np.log(best.params) == pytest.approx(least.x, abs=2e-5)
    assert best.loss <= least.fun + 1e-14
    assert best.params * best.tokens * 6 == pytest.approx(flops)
    wide = optimum.at(law, theta, [flops * 0.99, flops * 1.01]).params
    slope = np.diff(np.log(wide))[0] / math.log(1.01 / 0.99)
    assert best.exponent == pytest.approx(slope, abs=1e-4)
    assert optimum.least(law, theta, best.loss) == pytest.approx(flops, rel=1e-8)
    assert next_run.quality(law_of(law), best.params) == pytest.approx(best.loss, rel=1e-8)


def test_formula_and_search_agree():
    for law in ("chinchilla", "tied", "overtraining", "kaplan", "data_constrained"):
        theta, c = np.array([THETA[law]]), np.array([1e22])
        n, a = optimum._search(law, theta, np.log(c / 6), None, optimum.HALVINGS)
        best = optimum.at(law, theta, 1e22)
        # parameters lose worth beyond the optimum of different tokens: its curvature jumps there
        assert n == pytest.approx(best.params[:], rel=1e-5 if law == "data_constrained" else 1e-8)
        assert a == pytest.approx(best.exponent, abs=1e-6)


def test_every_draw_meets_every_compute_or_its_own():
    draws = np.array(EPOCH) * np.linspace(0.99, 1.01, 4)[:, None]
    c = np.array([[1e20, 1e21, 1e22]])
    best = optimum.at("chinchilla", draws, c)
    assert best.params.shape == (4, 1, 3)
    single = optimum.at("chinchilla", draws[2], 1e21)
    assert best.params[2, 0, 1] == single.params
    own = optimum.at("chinchilla", draws[:3], c[0], paired=True)
    np.testing.assert_array_equal(own.params, best.params[np.arange(3), 0, np.arange(3)])
    at = optimum.loss("chinchilla", draws[:3], own.params, own.tokens, paired=True)
    np.testing.assert_array_equal(at, own.loss)
    assert optimum.loss("chinchilla", draws, np.ones((2, 5)) * 1e9, 1e10).shape == (4, 2, 5)


def test_what_has_no_optimum_says_so():
    for law, theta in [("offset", (1, 1, 1)), ("kaplan_params", (1, 1)), ("cubic", (1,))]:
        with pytest.raises(ValueError, match=law):
            optimum.at(law, theta, 1e20)
    for more, word in [
        (dict(flops=-1.0), "flops, per"),
        (dict(flops=math.nan), "flops, per"),
        (dict(flops=1e20, unique=1e9), "data_constrained alone"),
        (dict(theta=(1, 2), flops=1e20), "chinchilla has 5"),
    ]:
        with pytest.raises(ValueError, match=word):
            optimum.at("chinchilla", **{"theta": EPOCH, **more})
    # a draw whose loss rises with size has none
    wrong = np.array([EPOCH, (1.8, 480, 2100, -0.1, 0.3)])
    assert np.isnan(optimum.at("chinchilla", wrong, 1e20).params).tolist() == [False, True]
    assert np.isinf(optimum.least("chinchilla", EPOCH, [1.8, 2.0])).tolist() == [True, False]


def test_kaplan_kept_apart():
    """L(N,D) has alpha_D .103, L(D) alone .095."""
    joint = loss_laws.LAWS["kaplan"].predict(THETA["kaplan"], (1e9, 2.3e10))
    assert joint == pytest.approx(2.367307, abs=5e-7)
    n = loss_laws.LAWS["kaplan_params"].predict((8.8e13, 0.076), (1e9,))
    d = loss_laws.LAWS["kaplan_tokens"].predict((5.4e13, 0.095), (2.3e10,))
    assert (n, d) == pytest.approx((2.375640, 2.090322), abs=5e-7)


# -- plans


@pytest.mark.parametrize(
    "params, tokens, n, share",
    [(13e9, 2e12, 6.969e9, 0.1745), (30e9, 1e13, 1.361e10, 0.2798), (70e9, 2e12, None, 0.0131)],
)
def test_a_model_that_is_used_is_smaller(params, tokens, n, share):
    """Sardana et al. 2024, section 3: 13B quality and 2e12 tokens to read take a 7B model, 17 %
    cheaper in all."""
    law = law_of(theta=(1.69, 406.4, 410.7, 0.336, 0.283))
    served = next_run.serve(law, next_run.quality(law, params), tokens)
    assert served.plain.params.value == pytest.approx(params, rel=1e-6)
    assert served.saved.value == pytest.approx(share, abs=5e-5)
    if n:
        assert float(f"{served.best.params.value:.3e}") == n
    if params == 13e9:
        assert served.best.tokens.value == pytest.approx(1.248e12, rel=4e-4)
        totals = served.total.value, served.plain_total.value
        assert totals == pytest.approx((8.005e22, 9.697e22), rel=1e-4)
    with pytest.raises(ValueError, match="params: 1e.50 given"):
        next_run.quality(law, 1e50)
    never = next_run.serve(law, 2.1, 0.0)
    assert never.saved.value == pytest.approx(0, abs=1e-9)
    assert never.best.params.value == pytest.approx(never.plain.params.value, rel=1e-4)


def test_intervals_are_the_draws_percentiles():
    law = law_of(draws=300)
    plan = next_run.at(law, 5.76e23, level=0.8)
    best = optimum.at("chinchilla", law.draws, 5.76e23)
    ratio = best.tokens / best.params
    assert (plan.ratio.low, plan.ratio.high) == tuple(np.percentile(ratio, (10, 90)))
    assert plan.ratio.value == pytest.approx(17.921, abs=6e-4)
    assert plan.extrapolation == pytest.approx(57.6) and plan.lost == 0
    assert math.isnan(next_run.at(law_of(), 1e20).loss.low)


def test_least_compute_of_a_loss():
    law = law_of(draws=100, spread=0.05)
    plan = next_run.reach(law, 2.0)
    assert plan.flops.value == pytest.approx(2.4307e23, rel=1e-4)
    assert next_run.at(law, plan.flops.value).loss.value == pytest.approx(2.0, abs=1e-12)
    # E of 5 % spread about 1.817 is above 2 in 2 % of draws
    assert plan.lost == np.sum(law.draws[:, 0] >= 2.0) > 0
    with pytest.raises(ValueError, match="loss: 1.8 given; this law never goes below 1.817"):
        next_run.reach(law, 1.8)


def test_what_another_size_costs():
    law = law_of(draws=20)
    twice = next_run.choice(law, 5.76e23, params=2 * 7.319e10)
    assert twice.run.tokens.value * twice.run.params.value * 6 == pytest.approx(5.76e23)
    assert 0 < twice.extra.low < twice.extra.value
    enough = optimum.at("chinchilla", EPOCH, twice.enough.value)
    assert enough.loss == pytest.approx(twice.run.loss.value, abs=1e-12)
    assert twice.wasted.value == pytest.approx(5.76e23 - twice.enough.value)
    best = next_run.choice(law, 5.76e23, tokens=optimum.at("chinchilla", EPOCH, 5.76e23).tokens)
    assert best.extra.value == pytest.approx(0, abs=1e-12)
    assert best.wasted.value / 5.76e23 < 1e-9
    both = next_run.choice(law, params=70e9, tokens=1.4e12)
    assert both.run.flops.value == pytest.approx(5.88e23)
    for wrong in (
        dict(flops=1e20),
        dict(flops=1e20, params=1e9, tokens=1e9),
        dict(params=1.0, tokens=0.0),
    ):
        with pytest.raises(ValueError):
            next_run.choice(law, **wrong)


def test_no_more_different_tokens_than_there_are():
    law = law_of()
    cap = next_run.capped(law, 5.76e23, 1e12)
    assert cap.binds and not cap.repeats and cap.run.tokens.value == 1e12
    assert cap.run.params.value == pytest.approx(9.6e10)
    assert cap.extra.value == pytest.approx(0.000737, abs=1e-6)
    free = next_run.capped(law, 5.76e23, 2e12)
    assert not free.binds and free.extra.value == 0 and free.epochs.value < 1

    law = law_of("data_constrained", draws=5)
    cap = next_run.capped(law, 5.76e23, 1e11)
    assert cap.binds and cap.repeats
    form, theta = loss_laws.LAWS["data_constrained"], THETA["data_constrained"]
    n = np.geomspace(1e9, 1e12, 100_000)
    grid = form.predict(theta, (n, 5.76e23 / (6 * n), np.full_like(n, 1e11)))
    assert cap.run.params.value == pytest.approx(n[np.argmin(grid)], rel=1e-3)
    assert cap.run.loss.value == pytest.approx(grid.min(), abs=1e-9)
    assert cap.epochs.value == pytest.approx(cap.run.tokens.value / 1e11) and cap.epochs.value > 4
    plenty = next_run.capped(law, 1e20, 1e11)
    assert not plenty.binds and plenty.extra == next_run.Range(0.0, 0.0, 0.0)


def test_a_run_of_repeated_tokens_is_judged_by_the_law_that_knows_them():
    with pytest.raises(ValueError, match="does not know what a repeated token is worth"):
        next_run.choice(law_of(), 5.76e23, tokens=2e12, unique=1e12)
    once = next_run.choice(law_of(), 5.76e23, tokens=1e12, unique=1e12)
    assert once == next_run.choice(law_of(), 5.76e23, tokens=1e12)
    law = law_of("data_constrained")
    many, few = (next_run.choice(law, 1e22, tokens=2e11, unique=u) for u in (2e11, 1e10))
    assert few.run.loss.value > many.run.loss.value + 0.01
    assert few.best.loss.value == pytest.approx(next_run.capped(law, 1e22, 1e10).run.loss.value)
    again = optimum.at("data_constrained", law.theta, few.enough.value, unique=1e10)
    assert again.loss == pytest.approx(few.run.loss.value, abs=1e-9)
    assert few.extra.value > 0 and few.enough.value < 1e22


# -- the command


@pytest.fixture
def file(tmp_path):
    study, theta = public.recorded(), dict(zip(loss_laws.LAWS["chinchilla"].names, EPOCH))
    form = dataclasses.replace(study.forms["chinchilla"], theta=theta, draws=law_of(draws=50).draws)
    record = dataclasses.replace(
        study,
        law="chinchilla",
        forms={"chinchilla": form, "offset": study.forms["offset"]},
        per=6.0,
        flops=(1e18, 1e22),
        counting=table.Counting("total", "6ND"),
    )
    return study_record.save(tmp_path, record)


def test_a_studys_parameters_are_taken_by_name(file):
    study = study_record.load(file)
    reverse = dict(reversed(study.theta.items()))
    law = next_run.law(study._replace(theta=reverse, draws=study.draws[:, ::-1]))
    assert tuple(law.theta) == EPOCH
    np.testing.assert_array_equal(law.draws, study.draws)
    assert law.counting.params == "total" and law.flops == (1e18, 1e22) and law.per == 6.0
    with pytest.raises(ValueError, match="theta: .* given; chinchilla has"):
        next_run.law(study._replace(theta={"E": 1.0}))


def run(capsys, file, text):
    assert command.plan_ahead(["--law", str(file), *text.split()]) == 0
    return capsys.readouterr().out


def test_plan_ahead_prints_the_plan_and_a_config(capsys, file):
    text = run(capsys, file, "--flops 5.76e23 --params 1.4e11 --unique-tokens 1e12")
    for line in [
        r"parameters N .* 7.319e\+10 \(",
        r"tokens per parameter .* 17.92 \(",
        r"loss, nats per token .* 1.973914 \(",
        r"extrapolation .* 57.6 times",
        r"nearest Config .* \d+ layers of width \d+",
        r"its N .* total, [+-]\d.\d%",
        r"wasted .* 8.003e\+22 FLOPs",
        r"cap .* chinchilla says nothing of repeated tokens",
    ]:
        assert re.search(line, text), line


def test_plan_ahead_as_json(capsys, file):
    plans = json.loads(run(capsys, file.parent, "--loss 2.0 --inference-tokens 2e12 --json"))
    assert plans["optimum"]["flops"]["value"] == pytest.approx(2.4307e23, rel=1e-4)
    assert plans["served"]["best"]["params"]["value"] < plans["optimum"]["params"]["value"]
    near = plans["nearest"]
    assert near["served"]["params"] == pytest.approx(
        plans["served"]["best"]["params"]["value"], rel=0.05
    )
    small = json.loads(run(capsys, file, "--quality 13e9 --json"))
    assert small["optimum"]["params"]["value"] == pytest.approx(13e9, rel=1e-6)


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "none given"),
        ("--flops 1e20 --loss 2", "both given"),
        ("--loss 2 --quality 1e9", "both given"),
        ("--loss 2 --params 1e9", "go with --flops"),
        ("--loss 2 --unique-tokens 1e9", "without --flops"),
        ("--params 1e9 --tokens 1e10 --inference-tokens 1e9", "without --flops"),
        ("--loss 1.5", "never goes below"),
        ("--flops 5e23 --tokens 2e12 --unique-tokens 1e12", "1e.12 are different"),
        ("--flops 0", "above 0"),
        ("--flops 1e20 --level 1.5", "level: 1.5"),
        ("--flops 1e20 --form offset", "offset is of flops"),
        ("--flops 1e20 --form farseer", "farseer"),
    ],
)
def test_questions_that_cannot_be_answered(file, text, word):
    with pytest.raises(ValueError, match=word):
        command.plan_ahead(["--law", str(file), *text.split()])
