"""Two processes of one device each, over the network stack, against one process of two devices."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from jaxlm.core import config
from jaxlm.train import loop
from jaxlm.train.run import metrics

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = """
import json, pathlib
from jaxlm.core import config as configs
from jaxlm.train.run.run import Run


def config() -> Run:
    text = pathlib.Path(__file__).with_name("run.json").read_text()
    return configs.from_dict(Run, json.loads(text))
"""


@pytest.fixture
def start(tiny, home, tmp_path):
    """A function that starts `jaxlm train` of a run over two devices, in two processes; `start.run`
    is the Run."""
    run = tiny()
    # as in tests/train/run/test_remote_runs.py, which finds it compiled
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, fsdp=2), samples=())
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict(run)))
    (tmp_path / "two.py").write_text(CONFIG)

    def begin(name, **more):
        # quick compiles, as every test has, and as many devices as the plan asks for
        flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join(flags), **more}
        environment |= {"XDG_CACHE_HOME": str(home), "JAXLM_HUGEPAGES": "0"}
        command = [sys.executable, "-m", "jaxlm", "train", str(tmp_path / "two.py")]
        return subprocess.Popen(
            [*command, "--name", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def pair(name):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        peers = [f"localhost:{port}/2/{i}" for i in range(2)]
        return [begin(name, JAXLM_DISTRIBUTED=peer) for peer in peers]

    pair.run = run
    return pair


def finish(process):
    """What a process printed, once it ended well."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return printed


@pytest.mark.slow
def test_two_processes_train_what_one_does(start):
    """The same losses at every step, and one run directory, written by process 0."""
    peers = start("pair")
    loop.run(dataclasses.replace(start.run, name="alone"))
    for peer in peers:
        finish(peer)
    out = pathlib.Path(start.run.out)
    alone, pair = (
        list(metrics.deterministic(out / name / metrics.FILE)) for name in ("alone", "pair")
    )
    assert len(alone) == len(pair) > 4
    for a, b in zip(alone, pair, strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.slow
def test_lost_processes_end_the_others_and_the_same_command_resumes():
    """Survivors aborted with a stack dump of C++, once after 85 s: JAX's own reaction to a peer
    without heartbeats. A sample of the hundred cases of lost_processes.py, one of each signal."""
    module = "tests.train.interruptions.lost_processes"
    done = subprocess.run(
        [sys.executable, "-m", module, "--cases", "3", "--processes", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0 and "| SIGTERM | 2 | 1 | 1 |" in done.stdout, done.stdout
