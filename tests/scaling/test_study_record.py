"""A study from a CSV file to its report, record and figures, on runs of a known law."""

import dataclasses
import json
import math

import matplotlib
import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.scaling import figures, study_parts, study_record, table
from jaxlm.scaling.figures import style
from jaxlm.scaling.laws import loss_laws, optimum
from jaxlm.scaling.planning import next_run
from jaxlm.scaling.reading import run_metadata
from jaxlm.scaling.study import analysis, checklist, report
from tests.sources import ROOT

TRUTH = (1.7, 420.0, 900.0, 0.34, 0.31)
LAW = loss_laws.LAWS["chinchilla"]
ABOUT = study_record.About(*(f"stated {i}" for i in range(10)))
OPTIONS = analysis.Options(laws=("chinchilla", "kaplan_params"), replicates=60, target=1e20)


def runs():
    """24 runs: 4 budgets of 6 sizes around the optimum, with noise of 0.2 %."""
    c = np.repeat(np.geomspace(1e17, 2.7e18, 4), 6)
    best = optimum.at("chinchilla", TRUTH, c).params
    n = best * np.tile(np.geomspace(0.2, 5, 6), 4)
    noise = np.random.default_rng(1).normal(0, 0.002, len(c))
    return table.make(n, c / (6 * n), LAW.predict(TRUTH, (n, c / (6 * n))) * np.exp(noise))


@pytest.fixture(scope="module")
def record():
    candidates = (np.array([1e8, 1e9]), np.array([1e10, 1e9]), None)
    return analysis.run(runs(), OPTIONS, ABOUT, "synthetic", candidates)


def test_the_truth_is_inside_the_intervals(record):
    form = record.forms["chinchilla"]
    for name, value in zip(LAW.names, TRUTH):
        low, high = form.intervals[name]
        assert low < value < high
    best = optimum.at("chinchilla", TRUTH, 1e20)
    low, high = form.optimum.params[1]
    assert low < best.params < high
    for side in record.approaches.values():
        assert side.exponent == pytest.approx(0.31 / 0.65, abs=0.08)
    assert set(record.approaches) == {
        "envelope",
        "isoflop parabola",
        "isoflop akima",
        "parametric chinchilla",
    }


def test_forms_that_are_not_identified_are_skipped_with_the_reason(record):
    assert record.law == "chinchilla"
    assert "which the form does not read" in record.skipped["kaplan_params"]


def test_a_saved_record_is_complete_and_comes_back(record, tmp_path):
    """To the last bit: what is loaded is written as the same file and reported as the same text."""
    path = study_record.save(tmp_path, record)
    assert path.name == "study.json"
    for where in (path, tmp_path):
        study = study_record.load(where)
        assert study.law == "chinchilla"
        assert study.record.counting == table.Counting("given", "6ND")
        assert study.theta == record.forms["chinchilla"].theta
        assert study.draws.shape == (60, 5)
        assert report.text(study.record) == report.text(record)
    assert study_record.save(tmp_path / "again", study.record).read_bytes() == path.read_bytes()
    stated = record.checklist
    assert checklist.not_stated(stated) == []
    assert stated.setup.runs == 24 and stated.extraction.points == 24
    kinds = {c.kind for c in record.cautions}
    assert "not stated" not in kinds and "far extrapolation" in kinds


def _set(content, path, value):
    """Sets (or with ... deletes) the value at a path of keys."""
    *outer, last = path
    for key in outer:
        content = content[key]
    if value is ...:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("forms",), ..., "study.json: forms: missing"),
        (("per",), None, "study.json: per: expected float, got None"),
        (("forms", "chinchilla", "draws", 3, 1), "a", "forms.chinchilla.draws: expected a list"),
        (("points", "used", 0), 0.5, r"points.used: expected a list of bool, got \[0.5"),
        (("options", "seed"), "1", "options.seed: expected int, got '1'"),
        (("approaches", "envelope", "r2"), ..., "approaches.envelope: fields .* are needed"),
        (("plan", "loss", "value"), "2", "plan.loss.value: expected float or null, got '2'"),
        (("theta",), [1.7], "theta: expected a mapping"),
        (("sauce",), {}, "sauce: no such field .* did you mean 'source'"),
    ],
)
def test_a_damaged_record_is_refused_by_the_fields_name(record, tmp_path, path, value, text):
    file = study_record.save(tmp_path, record)
    content = json.loads(file.read_text())
    _set(content, path, value)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=text):
        study_record.load(file)


def test_numbers_that_json_does_not_hold_are_null(record, tmp_path):
    """A form without an optimum, least squares: nan and infinity are null, and come back."""
    best = dataclasses.replace(record.forms["chinchilla"].optimum, exponent=(math.nan, None))
    form = dataclasses.replace(record.forms["chinchilla"], optimum=best)
    options = dataclasses.replace(record.options, delta=math.inf)
    odd = dataclasses.replace(record, forms={"chinchilla": form}, options=options)
    file = study_record.save(tmp_path, odd)
    content = json.loads(file.read_text())
    assert content["options"]["delta"] is None
    assert content["forms"]["chinchilla"]["optimum"]["exponent"] == [None, None]
    again = study_record.load(file).record
    assert again.options.delta == math.inf
    assert math.isnan(again.forms["chinchilla"].optimum.exponent[0])
    assert "least squares of log L" in report.text(again)


@pytest.mark.parametrize("name", ["chinchilla", "known_entropy"])
def test_studies_of_version_0_1_still_load(name):
    """Their files have no plan, no rolling back-tests and no notes."""
    (file, *_) = sorted((ROOT / "experiments" / name / "results").rglob("study.json"))
    record = study_record.load(file).record
    assert record.plan is None and len(record.points.loss) >= 20
    assert next_run.at(next_run.law(study_record.load(file)), 1e18).params.value > 0
    with pytest.raises(ValueError, match="plan: jaxlm .* recorded none"):
        report.text(record)


def test_items_that_are_not_stated_are_recorded_and_warned_of(record):
    parts = (record.options, record.source, record.forms, record.backtest)
    assert checklist.not_stated(checklist.make(study_record.About(), runs(), *parts)) == [
        "hypothesis.predicted",
        *(f"setup.{k}" for k in ("architecture", "corpus", "tokenizer", "optimiser")),
        *(f"setup.{k}" for k in ("schedule", "batch", "tuning")),
        *(f"extraction.{k}" for k in ("checkpoints", "smoothing", "loss_set")),
    ]


def test_the_report_says_all_of_it(record):
    text = report.text(record)
    headings = (
        "plan for 1e+20 FLOPs",
        "parameters",
        "optimum at 1e+20 FLOPs",
        "exponent of the optimum, three approaches",
        "back-test on",
        "outliers (chinchilla)",
        "next run",
        "cautions",
    )
    at = [text.index(f"\n{heading}") for heading in headings]
    assert at == sorted(at)  # the plan is first
    assert "chinchilla (plans)" in text and "kaplan_params not fitted" in text
    for format in ("markdown", "latex"):
        other = report.text(record, format)
        assert all(heading in other for heading in headings)
    assert record.backtest.threshold == pytest.approx(2.7e18)
    assert record.backtest.forms["chinchilla"].tested == 6
    assert [r.dropped for r in record.outliers] == [0, 2, 3, 5, 10]
    assert record.next[0].gain_per_flop >= record.next[1].gain_per_flop > 0


def test_the_same_seed_gives_the_same_record_and_figures(record, tmp_path):
    candidates = (np.array([1e8, 1e9]), np.array([1e10, 1e9]), None)
    again = analysis.run(runs(), OPTIONS, ABOUT, "synthetic", candidates)
    assert study_record.plain(again) == study_record.plain(record)
    drawn = ["isoflop", "density"]
    once = [p.read_bytes() for p in figures.draw(record, tmp_path, drawn)]
    assert [p.read_bytes() for p in figures.draw(again, tmp_path, drawn)] == once
    with pytest.raises(ValueError, match="'loss' is none of frontier"):
        figures.draw(record, tmp_path, ["loss"])
    with pytest.raises(ValueError, match="kinds: 'pdf' is none of svg, png"):
        figures.draw(record, tmp_path, drawn, ["pdf"])
    assert [p.name for p in figures.draw(record, tmp_path, drawn, ["svg"])] == [
        "isoflop.svg",
        "density.svg",
    ]
    assert figures.draw(record, tmp_path, drawn, []) == []


def test_figures_say_what_the_record_does(record, tmp_path):
    """Titles give the record's numbers; a plan is drawn where there is one; a form without an
    optimum at the target, whose exponent is null in the record, stops no figure."""
    plan = dataclasses.replace(
        record.plan,
        params=study_parts.Estimate(5e7, (4e7, 6e7)),
        tokens=study_parts.Estimate(3e11, None),
        loss=study_parts.Estimate(3.21, (3.2, 3.3)),
    )
    record = dataclasses.replace(record, plan=plan)
    names = ["frontier", "optimum", "ratio", "density"]
    # svg.fonttype none keeps the texts of an SVG file as texts
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        paths = figures.draw(record, tmp_path, names)
        text = {p.stem: p.read_text() for p in paths if p.suffix == ".svg"}
        form = record.forms["chinchilla"]
        exponent, ends = form.optimum.exponent
        raised = style.superscript(f"{exponent:.2f}")
        assert f"N* grows as C{raised} ({ends[0]:.2f} to {ends[1]:.2f})" in text["optimum"]
        assert "loss of 3.210 at 10²⁰ FLOPs" in text["frontier"]
        assert "6e+03 tokens per parameter" in text["ratio"] and ">plan<" in text["density"]
        assert ">isoFLOP minima<" in text["ratio"] and ">10²⁰<" in text["ratio"]
        best = dataclasses.replace(form.optimum, exponent=(math.nan, ends))
        forms = {"chinchilla": dataclasses.replace(form, optimum=best)}
        paths = figures.draw(dataclasses.replace(record, forms=forms), tmp_path / "none")
    assert {p.stem for p in paths} == {"frontier", "isoflop", "residuals", "profiles", "density"}


def test_ticks_are_few_and_read_well():
    assert [style.power(x) for x in (1e19, 5.76e23, 2e12)] == ["10¹⁹", "5.8 × 10²³", "2 × 10¹²"]
    assert [style.count(x) for x in (7e7, 1.3e9, 9.999e8, 2e12, 250)] == (
        ["70M", "1.3B", "1B", "2T", "250"]
    )
    for low, high in ((3e18, 6e23), (1e17, 2e19), (7e7, 4e8), (2.1, 3.4), (2.55, 2.6), (1, 1e12)):
        major, minor = style.ticks(low, high)
        assert 2 <= len(major) <= 8 and all(low <= v <= high for v in [*major, *minor])
        assert not set(major) & set(minor)


def test_the_command(tmp_path, capsys):
    t = runs()
    lines = ["size,D,val_loss"]
    lines += [
        f"{n!r},{d!r},{loss!r}" for n, d, loss in zip(*map(list, (t.params, t.tokens, t.loss)))
    ]
    file = tmp_path / "runs.csv"
    file.write_text("\n".join(lines).replace("np.float64(", "").replace(")", "") + "\n")
    (tmp_path / "next.csv").write_text("N,D\n1e8,1e10\n1e9,1e9\n")
    args = ["fit", str(file), "--laws", "chinchilla", "--replicates", "60", "--target", "1e20"]
    args += ["--counting", "non-embedding", "6ND", "--about.corpus", "a corpus"]
    args += ["--next", str(tmp_path / "next.csv"), "--out", str(tmp_path / "out")]
    args += ["--figures", "svg", "png"]
    assert main.main(args) == 0
    out = capsys.readouterr().out
    assert "study of runs.csv: 24 points" in out and "next run" in out
    for name in figures.NAMES:
        for ending in ("png", "svg"):
            assert (tmp_path / "out" / f"{name}.{ending}").stat().st_size > 5000
            assert f"{name}.{ending}" in out
    written = study_record.load(tmp_path / "out").record
    assert written.counting.params == "non-embedding"
    assert written.checklist.setup.corpus == "a corpus"
    assert len(written.source.sha256) == 64
    with pytest.raises(ValueError, match="law 'tied': it is no form of this study"):
        study_record.load(tmp_path / "out", "tied")
    assert main.main([*args[:2], "--column", "loss"]) == 2
    assert "NAME=VALUE is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"laws": ("chinchila",)}, "laws: 'chinchila' is none of"),
        ({"law": "tied"}, "leave it out"),
        ({"replicates": 5}, "replicates: 5"),
        ({"level": 95.0}, "level: 95.0"),
        ({"target": -1.0}, "target: -1.0"),
        ({"drop_highest": 24}, "--drop-highest: 24 of 24"),
        ({"laws": ("kaplan_params",)}, "hold no law of parameters and tokens"),
        ({"holdout": 1e30}, "holdout: no run is at or above 1e\\+30"),
    ],
)
def test_options_that_cannot_be_are_refused(changed, text):
    with pytest.raises(ValueError, match=text):
        analysis.run(runs(), dataclasses.replace(OPTIONS, **changed))


def test_one_budget_is_refused():
    with pytest.raises(ValueError, match="column flops: one budget"):
        analysis.run(table.take(runs(), np.arange(6)), OPTIONS)


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "line 1 column 2"), ("[]", "format 1"), ('{"format": 1}', "jaxlm: missing")],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, content, text):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match=text):
        study_record.load(tmp_path)


def test_run_directories_give_their_set_up(tmp_path):
    """What all runs agree on, the range of what they do not; what was stated stays."""
    for name, width, lr in (("a", 64, 0.01), ("b", 128, 0.005)):
        model = {"kind": "llama", "embed": width, "layers": 2, "heads": 4, "ffn": 96, "vocab": 259}
        data = {"source": "pydocs", "tokenizer": "bytes", "batch": 8, "seq": 64, "holdout": 0.05}
        optim = {"name": "adamw", "lr": lr, "schedule": "wsd", "warmup": 10}
        (tmp_path / name).mkdir()
        config = {"model": model, "data": data, "optim": optim}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "result.json").write_text("{}")
    about = run_metadata.fill(study_record.About(corpus="pydocs of 3.11"), tmp_path, False)
    assert about.corpus == "pydocs of 3.11" and about.tokenizer == "bytes"
    assert "kind llama, embed 64 to 128, layers 2" in about.architecture
    assert "lr 0.005 to 0.01" in about.optimiser and about.batch == "512 tokens"
    assert about.schedule.startswith("schedule wsd, warmup 10")
    assert (about.checkpoints, about.smoothing) == ("final", "none")
    assert about.tuning == study_record.NOT_STATED
    assert run_metadata.fill(study_record.About(), tmp_path / "none", True) == study_record.About()
