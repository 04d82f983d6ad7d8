"""The known-entropy experiment: its sweeps can run, and its scores say what they claim."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from jaxlm.data import synthetic
from jaxlm.scaling import study_record
from jaxlm.train.sweep import sweep_cells

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "known_entropy"


@pytest.fixture(scope="module")
def score():
    spec = importlib.util.spec_from_file_location("score", FOLDER / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["flat", "steep", "deep"])
def test_sweeps_read_no_token_twice_and_cut_no_document(name):
    plan = sweep_cells.load(f"{FOLDER}:{name}")
    wanted = sweep_cells.trials(plan)
    assert len(wanted) == 21 and wanted[-1].role == "held out"
    cfg = synthetic.parse(plan.base.data.source)
    fresh = cfg.documents * (cfg.length + 1) * (1 - plan.base.data.holdout)
    assert max(t.tokens for t in wanted) < 0.97 * fresh
    assert plan.base.data.seq == cfg.length + 1 == wanted[0].run.model.context
    assert wanted[-1].flops > 4 * max(t.flops for t in wanted[:-1])


def test_the_score_is_the_distance_from_the_truth(score, tmp_path, monkeypatch):
    """A study whose E is one percent above the held-out truth, with draws on both sides of it."""
    plan = score.sweeps().steep()
    name = plan.base.data.source.replace("documents=16384", "documents=600")
    data = dataclasses.replace(plan.base.data, source=name, holdout=0.2)
    plan = dataclasses.replace(plan, base=dataclasses.replace(plan.base, data=data))
    truth = score.scored(plan, _study(tmp_path, 3.0, [3.0]))["held_out"]
    found = score.scored(plan, _study(tmp_path, 1.01 * truth, truth * np.linspace(0.98, 1.02, 41)))
    e = found["forms"]["chinchilla"]
    assert e["error"] == pytest.approx(0.01) and e["covers"]
    assert (e["low"], e["high"]) == pytest.approx((-0.019, 0.019), abs=1e-6)
    assert abs(found["held_out"] - found["entropy"]) < 5 * found["held_out_error"]
    assert found["larger"]["error"] == 0.5
    monkeypatch.setattr(score, "RANGES", ())
    text = score.report({"sweeps": {"steep": found}, "ideal": score.ideal({"steep": found})})
    assert "| **chinchilla** | +1.00% | -1.90% to +1.90% | yes |" in text
    assert "Of 1 intervals 1 hold the truth" in text


def _study(folder, e, draws):
    record = study_record.load(FOLDER / "results" / "deep").record
    theta = {"E": e, "A": 2.0, "B": 3.0, "alpha": 0.3, "beta": 0.3}
    many = np.array([[d, 2.0, 3.0, 0.3, 0.3] for d in draws])
    form = dataclasses.replace(record.forms["chinchilla"], theta=theta, draws=many)
    record = dataclasses.replace(record, law="chinchilla", forms={"chinchilla": form})
    study_record.save(folder, record)
    prediction = {
        "params": 5,
        "tokens": 6,
        "times_largest": 4.0,
        "loss": 3.0,
        "interval": [2.9, 3.1],
    }
    outcome = {"measured": 3.01, "error": 0.5, "inside": True}
    for file, content in (("prediction", prediction), ("outcome", outcome)):
        (folder / f"{file}.json").write_text(json.dumps(content), "utf-8")
    return folder
