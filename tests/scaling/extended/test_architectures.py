"""Laws of experts, sparsity, upcycling and vocabulary: known truth, published runs and errors."""

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.scaling.extended import architectures
from tests.scaling import public

TRUTHS = {
    "moe": (-0.083, -0.126, 0.012, 1.111, np.log(1.88), np.log(470.0)),
    "sparsity": (0.9, 1.8, 0.1, 0.25, -0.02),
    "sparsity_tokens": (0.9, 1.2, 0.7, 0.1, 0.25, -0.02, 0.3),
    "upcycling": (2.0, 0.5, 1.5, 0.1, 0.2, 0.02, 0.4),
    "vocabulary": (0.5, 0.3, 0.8, -4.0, 0.3, 0.5, 0.4, 0.2),
}
RANGES = {
    "experts": (1, 512),
    "params": (2e7, 1e9),
    "sparsity": (1.5, 12),
    "active": (0.02, 1),
    "tokens": (1, 100),
    "dense_tokens": (1, 100),
    "vocab": (4e3, 6e4),
    "characters": (1e8, 3e10),
}


def columns(name, n=120, seed=0):
    """Runs of the known law, without noise."""
    form = architectures.FORMS[name]
    random = np.random.default_rng(seed)
    data = {k: np.exp(random.uniform(*np.log(RANGES[k]), n)) for k, _ in form.inputs}
    loss = architectures.predict(form, np.array(TRUTHS[name]), list(data.values()))
    return data | {"loss": loss}


@pytest.mark.parametrize("name", sorted(architectures.FORMS))
def test_known_truth_is_recovered(name):
    form = architectures.FORMS[name]
    data = columns(name)
    x, y = architectures.inputs(form, data, {})
    result = architectures.fit(form, x, y)
    assert result.rmse < 1e-8
    assert result.theta == pytest.approx(TRUTHS[name], rel=1e-3, abs=1e-4)
    draws = architectures.resample(form, result, x, y, 3, 0)
    assert draws == pytest.approx(np.tile(TRUTHS[name], (3, 1)), rel=1e-3, abs=1e-4)


def test_the_moe_law_extrapolates_on_deepminds_runs():
    """Clark et al. 2022 print a -0.083, b -0.126, c 0.012, d 1.111 for RL-R, -0.087, -0.136,
    0.012, 1.157 for hashing; this file mixes the routers. Trained on models up to 370M, it
    predicts those of 870M and 1.3B."""
    data = [
        {k: public.column(rows, k) for k in rows[0] if k != "group"}
        for rows in map(public.rows, ("scalebench_moe_train.csv", "scalebench_moe_test.csv"))
    ]
    result = architectures.run("moe", *data, replicates=20, level=0.95, seed=0)
    values = [result["theta"][k][0] for k in "abcd"]
    assert values == pytest.approx([-0.087, -0.136, 0.012, 1.157], abs=0.02)
    assert result["test"]["rows"] == 28 and result["test"]["mae"] < 0.035
    assert result["test"]["r2"] > 0.7 and result["reached"] == 1.0


def test_the_vocabulary_law_extrapolates_on_the_runs_of_tao():
    """ScaleBench's ten forms reach a test R2 of 0.93 on average."""
    data = [
        {k: public.column(rows, k) for k in rows[0] if k != "group"}
        for rows in map(public.rows, ("scalebench_vocab_train.csv", "scalebench_vocab_test.csv"))
    ]
    result = architectures.run("vocabulary", *data, replicates=2, level=0.95, seed=0)
    assert result["test"]["r2"] > 0.95 and result["theta"]["phi"][0] > 0


@pytest.mark.parametrize(
    ("name", "changed", "mapping", "text"),
    [
        ("experts", {}, {}, "--form 'experts' is none of moe, sparsity"),
        ("moe", {"experts": None}, {}, r"no column for experts \(experts, num_experts, E\)"),
        ("moe", {}, {"experts": "e"}, "no column 'e'; name it, --column experts=NAME"),
        ("moe", {}, {"heads": "e"}, "--column heads: the form reads experts, params, loss"),
        ("moe", {"experts": -1.0}, {}, "row 5, column 'experts': -1; a finite number above 0"),
        ("moe", {"loss": np.nan}, {}, "row 5, column 'loss': nan; a finite number above 0"),
        ("moe", {"params": "all"}, {}, "column 'params': every row has"),
        ("moe", {"experts": "text"}, {}, "column 'experts': 'x' is no number"),
    ],
)
def test_files_that_cannot_be_fitted_are_refused(name, changed, mapping, text):
    data = columns("moe")
    for column, value in changed.items():
        if value is None:
            del data[column]
        elif value == "all":
            data[column] = np.full(120, data[column][0])
        elif value == "text":
            data[column] = np.repeat("x", 120)
        else:
            data[column][3] = value
    with pytest.raises(ValueError, match=text):
        architectures.run(name, data, None, 5, 0.95, 0, mapping)


def test_the_command_replaces_the_study(tmp_path, capsys):
    data = columns("sparsity", 60)
    lines = [",".join(data), *(",".join(map(repr, map(float, r))) for r in zip(*data.values()))]
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    args = ["fit", str(tmp_path / "runs.csv"), "--form", "sparsity", "--replicates", "20"]
    assert main.main([*args, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "sparsity: L = A P^-a" in out and "R2 1.0000" in out
    assert (tmp_path / "out" / "extended.json").stat().st_size > 500
    (tmp_path / "bad.csv").write_text("sparsity,active,loss\n1,2\n")
    args[1] = str(tmp_path / "bad.csv")
    assert main.main(args) == 2
    assert "bad.csv row 2: 2 cells, the header has 3" in capsys.readouterr().err
