"""What a process sets before JAX starts: programs of its own, since XLA reads its flags once."""

import importlib
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxlm.parallel import devices

ROOT = pathlib.Path(__file__).parents[2]
# The pattern in the sizes that were wrong: (dtype, inner size, rows).
CANARY = """
import jax, numpy as np

def canary():
    jax.config.update("jax_enable_x64", True)
    totals = jax.jit(lambda w, x: jax.vmap(lambda row: (w @ row).sum())(x))
    rng = np.random.default_rng(0)
    for dtype, inner, rows in (("float32", 3, 40_000), ("float64", 5, 20_000)):
        w, x = (rng.normal(size=(n, inner)).astype(dtype) for n in (3, rows))
        wrong = ~np.isclose(totals(w, x), (x @ w.T).sum(1), atol=1e-4)
        print("WRONG", wrong.sum())
    jax.config.update("jax_enable_x64", False)
"""
# A config is Python: what it computes runs as the command line's own programs do.
COMMAND = """
import sys

import canary

def config():
    canary.canary()
    sys.exit(0)
"""
LIBRARY = """
from jaxlm.train import loop
from jaxlm.train.run import run
from jaxlm.models import gpt
try:
    loop.run(run.Run(name="", model=gpt.Config(vocab=8, embed=8, layers=1, heads=1, context=8)))
except ValueError:
    import canary
    canary.canary()
"""


@pytest.mark.parametrize("how", ["command", "library"])
def test_a_product_with_its_reduction_is_right(tmp_path, how):
    """jaxlib 0.10.0 to 0.10.2 computed 7,210 of 40,000 sums wrongly (float32, inner size 3), by as
    much as their own size: YNN's fusion of a product with its reduction. The command line and the
    library turn that fusion off before JAX starts."""
    (tmp_path / "canary.py").write_text(CANARY)
    (tmp_path / "config.py").write_text(COMMAND)
    start = ["-m", "jaxlm", "plan", "config.py"] if how == "command" else ["-c", LIBRARY]
    environ = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environ |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *start], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.stdout.split() == ["WRONG", "0"] * 2, done.stderr


@pytest.fixture
def version(monkeypatch):
    def set_to(text):
        monkeypatch.setattr(importlib.metadata, "version", lambda name: text)

    return set_to


def test_the_flag_is_set_for_the_wrong_versions_alone(monkeypatch, version):
    monkeypatch.setattr(devices, "_started", lambda: False)
    for text, flags in (("0.10.2", f"--a=1 {devices.REDUCE}"), ("0.11.0", "--a=1")):
        monkeypatch.setenv("XLA_FLAGS", "--a=1")
        version(text)
        devices.correct()
        assert os.environ["XLA_FLAGS"] == flags
    # a choice of one's own stands
    monkeypatch.setenv("XLA_FLAGS", f"--{devices.YNN}=")
    version("0.10.2")
    devices.correct()
    assert os.environ["XLA_FLAGS"] == f"--{devices.YNN}="


def test_a_flag_that_comes_too_late_is_a_warning(monkeypatch, version):
    """XLA reads its flags when JAX starts, which a library's user may have done."""
    monkeypatch.setattr(devices, "_started", lambda: True)
    jax.devices()  # of all tests of this process: with the flags of conftest.py
    monkeypatch.setenv("XLA_FLAGS", "")
    version("0.12.0.1")
    devices.correct()
    version("0.10.0")
    with pytest.warns(UserWarning, match="XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type"):
        devices.correct()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.skipif(
    not devices.wrong(importlib.metadata.version("jaxlib")), reason="later versions never ask"
)
def test_whether_jax_has_started_is_known():
    code = (
        "from jaxlm.parallel import devices; print(devices._started()); import jax;"
        "print(devices._started()); jax.devices(); print(devices._started())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["False", "False", "True"]


def test_memory_is_what_the_machine_and_its_control_groups_leave(tmp_path):
    """A container's limit counts, of both versions of control groups, and so does a parent's."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert devices.host_memory(tmp_path) is None
    write("proc/meminfo", "MemTotal: 999 kB\nMemAvailable: 100 kB\n")
    assert devices.host_memory(tmp_path) == 100 << 10
    write("proc/self/cgroup", "3:cpu:/x\n2:memory:/a/b\n0::/a/b\n")
    group = "sys/fs/cgroup/a/b/memory"
    write(f"{group}.max", "max\n")
    write(f"{group}.current", "5\n")
    assert devices.host_memory(tmp_path) == 100 << 10
    write(f"{group}.max", "50000\n")
    write(f"{group}.current", "20000\n")
    write(f"{group}.stat", "anon 5\ninactive_file 1000\n")
    assert devices.host_memory(tmp_path) == 50_000 - 20_000 + 1000
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "9500\n")
    assert devices.host_memory(tmp_path) == 0


def test_more_than_there_is_is_refused_unless_the_user_knows_better(monkeypatch):
    monkeypatch.setattr(devices, "space", lambda: devices.Space(2**30, True, "this machine"))
    devices.check("a cache", 2**30)
    with pytest.raises(ValueError, match="a cache: 2.00 GiB are needed, and this machine has 1.00"):
        devices.check("a cache", 2**31)
    monkeypatch.setenv(devices.UNCHECKED, "0")
    devices.check("a cache", 2**31)
