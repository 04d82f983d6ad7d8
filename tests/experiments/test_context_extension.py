"""The experiment runs from the first document to the table."""

import json

import pytest

from experiments.context_extension import stretch

METHODS = ["none", "linear", "ntk", "yarn", "longrope"]


@pytest.mark.slow
def test_quick(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stretch.main(["--quick", "--out", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["methods"]) == METHODS and results["long"] == 4 * results["context"]
    for row in results["methods"].values():
        before, after = (sum(row[when]["nats"]) / 16 for when in ("before", "after"))
        # a fine-tune of three steps, of a model that is hardly trained
        assert 2 < after < before < 6
    factors = results["longrope"]
    assert factors == sorted(factors) and factors[0] >= 1 and factors[-1] <= 5
    assert capsys.readouterr().out.count("| longrope, ") == 2
    assert (tmp_path / "out" / "results.png").stat().st_size > 10_000
