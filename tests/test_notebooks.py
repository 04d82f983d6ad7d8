"""Notebooks run, each in a fresh namespace and an empty folder, and compute what they promise.

They are percent scripts, executed in this process: without a kernel, nbconvert or jupytext, which
would be extras, and with the programs that JAX compiled for other tests.
"""

import contextlib
import io
import pathlib
import time

import matplotlib.pyplot as plt
import pytest

from tests import run_programs

ROOT = pathlib.Path(__file__).parent.parent
CPU_SECONDS = 240  # two minutes on two cores

CLAIMS = {
    "size": lambda v, out: out.endswith("changed: [3, 4, 5]\n"),
    "train": lambda v, out: (
        abs(v["result"].val["bits_per_byte"] - 1.96) < 0.1
        and out.endswith("the same result: True\n")
    ),
    "sample": lambda v, out: v["score"]["bits_per_byte"] < 2.1 and "text: " in out,
    "preferences": lambda v, out: (
        v["result"].val["accuracy"] > v["limit"].accuracy - 0.03 and v["correlation"] > 0.8
    ),
    "scaling_law": lambda v, out: (
        0.95 * v["low"] < v["right"].params < 1.05 * v["high"]
        and abs(v["fit"].theta["alpha"] - 0.34) < 0.05
    ),
    "add_family": lambda v, out: (
        v["changed"] == [3, 4, 5]
        and v["own_text"] == v["flax_text"] == [10, 13, 0, 3, 6, 9]
        and min(v["own_loss"], v["flax_loss"]) > 0.08
        and max(v["own_loss"], v["flax_loss"]) < 0.12
    ),
}
FILES = sorted((ROOT / "notebooks").glob("*.py"))
FAST = ("size",)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The cache of all notebooks: a corpus is tokenized once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, id=f.stem, marks=[pytest.mark.slow] * (f.stem not in FAST)) for f in FILES],
)
def test_a_notebook_runs_and_keeps_its_word(file, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    out, values, begun = io.StringIO(), {"__name__": "__main__"}, time.process_time()
    with contextlib.redirect_stdout(out), run_programs.shared():
        exec(compile(file.read_text("utf-8"), str(file), "exec"), values)
    plt.close("all")
    assert CLAIMS[file.stem](values, out.getvalue()), out.getvalue()
    assert time.process_time() - begun < CPU_SECONDS


def test_every_notebook_is_a_percent_script_with_prose():
    assert {f.stem for f in FILES} == set(CLAIMS)
    for file in FILES:
        text = file.read_text("utf-8")
        assert text.startswith("# %% [markdown]\n# # ") and text.count("\n# %%") >= 3, file
