"""A study from a CSV file to its report, record and figures, on runs of a known law."""

import json

import matplotlib
import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.scaling import figures, study_record, table
from jaxlm.scaling.figures import style
from jaxlm.scaling.laws import loss_laws, optimum
from jaxlm.scaling.reading import run_metadata
from jaxlm.scaling.study import analysis, report

TRUTH = (1.7, 420.0, 900.0, 0.34, 0.31)
LAW = loss_laws.LAWS["chinchilla"]
ABOUT = study_record.About(*(f"told {i}" for i in range(10)))
OPTIONS = analysis.Options(laws=("chinchilla", "kaplan_params"), replicates=60, target=1e20)


def runs():
    """24 runs: 4 budgets of 6 sizes around the optimum, with noise of 0.2 %."""
    c = np.repeat(np.geomspace(1e17, 2.7e18, 4), 6)
    best = optimum.at("chinchilla", TRUTH, c).params
    n = best * np.tile(np.geomspace(0.2, 5, 6), 4)
    noise = np.random.default_rng(1).normal(0, 0.002, len(c))
    return table.make(n, c / (6 * n), LAW.predict(TRUTH, (n, c / (6 * n))) * np.exp(noise))


@pytest.fixture(scope="module")
def made():
    candidates = (np.array([1e8, 1e9]), np.array([1e10, 1e9]), None)
    return analysis.run(runs(), OPTIONS, ABOUT, "synthetic", candidates)


def test_the_truth_is_inside_the_intervals(made):
    form = made["forms"]["chinchilla"]
    for name, value in zip(LAW.names, TRUTH):
        low, high = form["intervals"][name]
        assert low < value < high
    best = optimum.at("chinchilla", TRUTH, 1e20)
    low, high = form["optimum"]["params"][1]
    assert low < best.params < high
    for side in made["approaches"].values():
        assert side["exponent"] == pytest.approx(0.31 / 0.65, abs=0.08)
    assert set(made["approaches"]) == {
        "envelope",
        "isoflop parabola",
        "isoflop akima",
        "parametric chinchilla",
    }


def test_forms_that_are_not_identified_are_skipped_with_the_reason(made):
    assert made["law"] == "chinchilla"
    assert "which the form does not read" in made["skipped"]["kaplan_params"]


def test_the_record_is_whole_and_comes_back(made, tmp_path):
    path = study_record.save(tmp_path, made)
    assert path.name == "study.json"
    for where in (path, tmp_path):
        found = study_record.load(where)
        assert found.law == "chinchilla" and found.counting == table.Counting("given", "6ND")
        assert found.theta == made["forms"]["chinchilla"]["theta"]  # to the last bit
        assert found.draws.shape == (60, 5)
        assert found.flops == tuple(made["flops"])
    headings = made["checklist"]
    assert list(headings) == ["hypothesis", "setup", "extraction", "fitting"]
    assert study_record.untold(headings) == []
    assert headings["setup"]["runs"] == 24 and headings["extraction"]["points"] == 24
    told = {c["kind"] for c in made["cautions"]}
    assert "not stated" not in told and "far extrapolation" in told


def test_what_nobody_told_is_recorded_and_warned_of(made):
    items = study_record.checklist(study_record.About(), runs(), made)
    assert study_record.untold(items) == [
        "hypothesis.predicted",
        *(f"setup.{k}" for k in ("architecture", "corpus", "tokenizer", "optimiser")),
        *(f"setup.{k}" for k in ("schedule", "batch", "tuning")),
        *(f"extraction.{k}" for k in ("checkpoints", "smoothing", "loss_set")),
    ]


def test_the_report_says_all_of_it(made):
    text = report.text(made)
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
        other = report.text(made, format)
        assert all(heading in other for heading in headings)
    assert made["backtest"]["threshold"] == pytest.approx(2.7e18)
    assert made["backtest"]["forms"]["chinchilla"]["tested"] == 6
    assert [r["dropped"] for r in made["outliers"]] == [0, 2, 3, 5, 10]
    assert made["next"][0]["gain_per_flop"] >= made["next"][1]["gain_per_flop"] > 0


def test_the_same_seed_gives_the_same_record_and_figures(made, tmp_path):
    candidates = (np.array([1e8, 1e9]), np.array([1e10, 1e9]), None)
    again = analysis.run(runs(), OPTIONS, ABOUT, "synthetic", candidates)
    assert json.dumps(again) == json.dumps(made)
    drawn = ["isoflop", "density"]
    once = [p.read_bytes() for p in figures.draw(made, tmp_path, drawn)]
    assert [p.read_bytes() for p in figures.draw(again, tmp_path, drawn)] == once
    with pytest.raises(ValueError, match="'loss' is none of frontier"):
        figures.draw(made, tmp_path, ["loss"])
    with pytest.raises(ValueError, match="kinds: 'pdf' is none of svg, png"):
        figures.draw(made, tmp_path, drawn, ["pdf"])
    assert [p.name for p in figures.draw(made, tmp_path, drawn, ["svg"])] == [
        "isoflop.svg",
        "density.svg",
    ]
    assert figures.draw(made, tmp_path, drawn, []) == []


def test_figures_say_what_the_record_does(made, tmp_path):
    """Titles give the record's numbers; a plan is drawn where there is one; a form without an
    optimum at the target, whose exponent is null in the record, stops no figure."""
    record = json.loads(json.dumps(made))
    record["plan"] |= {
        "params": {"value": 5e7, "interval": [4e7, 6e7]},
        "tokens": {"value": 3e11, "interval": None},
        "loss": {"value": 3.21, "interval": [3.2, 3.3]},
    }
    names = ["frontier", "optimum", "ratio", "density"]
    # svg.fonttype none keeps the texts of an SVG file as texts
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        paths = figures.draw(record, tmp_path, names)
        text = {p.stem: p.read_text() for p in paths if p.suffix == ".svg"}
        exponent, ends = made["forms"]["chinchilla"]["optimum"]["exponent"]
        raised = style.superscript(f"{exponent:.2f}")
        assert f"N* grows as C{raised} ({ends[0]:.2f} to {ends[1]:.2f})" in text["optimum"]
        assert "loss of 3.210 at 10²⁰ FLOPs" in text["frontier"]
        assert "6e+03 tokens per parameter" in text["ratio"] and ">plan<" in text["density"]
        assert ">isoFLOP minima<" in text["ratio"] and ">10²⁰<" in text["ratio"]
        record["forms"]["chinchilla"]["optimum"]["exponent"][0] = None
        paths = figures.draw(record, tmp_path / "none")
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
    found = study_record.load(tmp_path / "out")
    assert found.counting.params == "non-embedding"
    assert found.record["checklist"]["setup"]["corpus"] == "a corpus"
    assert len(found.record["source"]["sha256"]) == 64
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
    import dataclasses

    with pytest.raises(ValueError, match=text):
        analysis.run(runs(), dataclasses.replace(OPTIONS, **changed))


def test_one_budget_is_refused():
    with pytest.raises(ValueError, match="column flops: one budget"):
        analysis.run(table.take(runs(), np.arange(6)), OPTIONS)


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "line 1 column 2"), ("[]", "format 1"), ('{"format": 1}', "lacks law, forms")],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, content, text):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match=text):
        study_record.load(tmp_path)


def test_run_directories_tell_their_set_up(tmp_path):
    """What all runs agree on, the range of what they do not; what was stated stays."""
    for name, width, lr in (("a", 64, 0.01), ("b", 128, 0.005)):
        model = {"kind": "llama", "embed": width, "layers": 2, "heads": 4, "ffn": 96, "vocab": 259}
        data = {"source": "pydocs", "tokenizer": "bytes", "batch": 8, "seq": 64, "holdout": 0.05}
        optim = {"name": "adamw", "lr": lr, "schedule": "wsd", "warmup": 10}
        (tmp_path / name).mkdir()
        config = {"model": model, "data": data, "optim": optim}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "result.json").write_text("{}")
    found = run_metadata.fill(study_record.About(corpus="pydocs of 3.11"), tmp_path, False)
    assert found.corpus == "pydocs of 3.11" and found.tokenizer == "bytes"
    assert "kind llama, embed 64 to 128, layers 2" in found.architecture
    assert "lr 0.005 to 0.01" in found.optimiser and found.batch == "512 tokens"
    assert found.schedule.startswith("schedule wsd, warmup 10")
    assert (found.checkpoints, found.smoothing) == ("final", "none")
    assert found.tuning == study_record.UNTOLD
    assert run_metadata.fill(study_record.About(), tmp_path / "none", True) == study_record.About()
