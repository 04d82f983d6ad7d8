"""The experiment runs from the first document to the table."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
METHODS = ["none", "linear", "ntk", "yarn", "longrope"]


@pytest.mark.slow
def test_quick(tmp_path):
    script = ROOT / "experiments" / "context_extension" / "stretch.py"
    environ = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--out", str(tmp_path / "out")],
        env=environ, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["methods"]) == METHODS and results["long"] == 4 * results["context"]
    for row in results["methods"].values():
        before, after = (sum(row[when]["nats"]) / 16 for when in ("before", "after"))
        assert (
            2 < after < before < 6
        )  # a fine-tune of three steps, of a model that is hardly trained
    factors = results["longrope"]
    assert factors == sorted(factors) and factors[0] >= 1 and factors[-1] <= 5
    assert done.stdout.count("| longrope, ") == 2
    assert (tmp_path / "out" / "results.png").stat().st_size > 10_000
