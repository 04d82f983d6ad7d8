"""Where trials run: processes that get their cores, may save, and never linger; clusters."""

import json
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

from jaxlm.train.sweep import engines

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def child(tmp_path, monkeypatch):
    """A function from a script to a Task that runs it in place of `jaxlm train`."""

    def make(script, slot=0):
        path = tmp_path / "trial.py"
        path.write_text(script)
        monkeypatch.setattr(engines, "command", lambda spec: [sys.executable, spec])
        return engines.Task("trial", str(path), str(tmp_path / "log"), slot)

    return make


def ended(job, seconds=20):
    end = time.monotonic() + seconds
    while job.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    return job.poll()


CORES = "import os, sys; print(sorted(os.sched_getaffinity(0))); sys.exit(3)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cores are Linux's to give")
def test_a_local_trial_has_its_share_of_the_cores_and_tells_its_exit_code(child, tmp_path):
    own = sorted(os.sched_getaffinity(0))
    with engines.opened("local", 2, tmp_path) as engine:
        shares = []
        for slot in (0, 1, None):
            (tmp_path / "log").unlink(missing_ok=True)
            assert ended(engine.submit(child(CORES, slot))) == 3
            shares.append(json.loads((tmp_path / "log").read_text()))
    assert shares[2] == own
    if len(own) > 1:
        assert sorted(shares[0] + shares[1]) == own


WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("ready", flush=True)
time.sleep(60)
"""


def test_trials_are_stopped_with_the_engine_and_may_save(child, tmp_path):
    with engines.opened("local", 1, tmp_path) as engine:
        job = engine.submit(child(WAITS))
        while "ready" not in (tmp_path / "log").read_text():
            time.sleep(0.02)
    assert job.poll() == 143
    assert (tmp_path / "log").read_text() == "ready\nsaved\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a child")
def test_trials_of_a_killed_sweep_do_not_linger(child, tmp_path):
    """SIGKILL leaves the sweep no time to stop them; the system does."""
    task = child(WAITS)
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import pathlib, sys, time\n"
        "from jaxlm.train.sweep import engines\n"
        "engines.command = lambda spec: [sys.executable, spec]\n"
        f"with engines.opened('local', 1, pathlib.Path({str(tmp_path)!r})) as engine:\n"
        f"    engine.submit(engines.{task!r})\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(parent)], env=environment)
    log = tmp_path / "log"
    while not (log.is_file() and "ready" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while "saved" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.02)
    assert log.read_text() == "ready\nsaved\n"


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_missing_engine_names_its_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, {"slurm": "submitit"}.get(name, name), None)
    with pytest.raises(ImportError, match=r"jaxlm\[cluster\]"), engines.opened(name, 1, tmp_path):
        pass


SAYS = "import sys; print('trained'); sys.exit(5)"


def test_submitit_runs_a_trial_and_tells_its_exit_code(child, tmp_path):
    """Its executor for this machine: pickled and started as SLURM would."""
    pytest.importorskip("submitit")
    task = child(SAYS)
    resources = engines.Resources(cluster="debug", minutes=1)
    with engines.opened("slurm", 1, tmp_path, resources) as engine:
        assert ended(engine.submit(task)) == 5
    assert (tmp_path / "log").read_text() == "trained\n"


def test_ray_is_asked_for_a_trial_and_for_its_end(child, tmp_path, monkeypatch):
    """Against a stand-in for its client: what it is asked for, and what becomes of its answers."""
    asked, ended_ = [], []

    class RayError(Exception):
        """What Ray raises for a task that its host lost."""

    def remote(**options):
        asked.append(options)
        return lambda f: types.SimpleNamespace(
            remote=lambda spec, *rest: None if spec == "lost" else f(spec, *rest)
        )

    def get(reference):
        if reference is None:
            raise RayError("the host died")
        return reference

    fake = types.SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: asked.append(options),
        shutdown=lambda: ended_.append("shutdown"),
        remote=remote,
        wait=lambda references, timeout: (references, []),
        get=get,
        exceptions=types.SimpleNamespace(RayError=RayError),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    task = child(SAYS)
    with engines.opened("ray", 2, tmp_path, engines.Resources(cpus=3, gpus=1)) as engine:
        assert ended(engine.submit(task)) == 5
        assert ended(engine.submit(task._replace(spec="lost"))) == 1
    assert asked[0]["address"] == "auto"
    assert (asked[1]["num_cpus"], asked[1]["num_gpus"], asked[1]["max_retries"]) == (3, 1, 0)
    assert ended_ == ["shutdown"]
    assert (tmp_path / "log").read_text() == "trained\nRayError: the host died\n"
