"""Two processes of one device each, over the network stack, against one process of two devices."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxlm.core import config
from jaxlm.parallel import multihost
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
    """A function that starts `jaxlm train` of a run over two devices, in one or two processes."""
    run = tiny()
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, data=2), samples=())
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict(run)))
    (tmp_path / "two.py").write_text(CONFIG)

    def begin(name, *overrides, **more):
        # quick compiles, as every test has, and as many devices as the plan asks for
        flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join(flags), **more}
        environment |= {"XDG_CACHE_HOME": str(home), "JAXLM_HUGEPAGES": "0"}
        command = [sys.executable, "-m", "jaxlm", "train", str(tmp_path / "two.py")]
        return subprocess.Popen(
            [*command, "--name", name, *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def pair(name, *overrides):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        peers = [f"localhost:{port}/2/{i}" for i in range(2)]
        return [begin(name, *overrides, JAXLM_DISTRIBUTED=peer) for peer in peers]

    begin.pair, begin.out = pair, pathlib.Path(run.out)
    return begin


def finish(process):
    """What a process printed, once it ended well."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return printed


@pytest.mark.slow
def test_two_processes_train_what_one_does(start):
    """The same losses at every step, and one run directory, written by process 0."""
    finish(start("alone"))
    for peer in start.pair("pair"):
        finish(peer)
    alone, pair = (
        list(metrics.deterministic(start.out / name / metrics.FILE)) for name in ("alone", "pair")
    )
    assert len(alone) == len(pair) > 4
    for a, b in zip(alone, pair, strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1])
def test_a_lost_process_ends_the_other_with_one_line_and_the_same_command_resumes(start, dying):
    """The survivor aborted with a stack dump of C++, once after 85 s: JAX's own reaction to a peer
    without heartbeats. Of a killed one the connections break at once, and who it was is known
    after `multihost.HEARTBEAT` seconds at the latest."""
    length = ("--steps", "4000", "--eval-every", "4000", "--checkpoint.every", "20")
    both = start.pair("cut", *length)
    folder = start.out / "cut" / "checkpoints"
    clock = time.perf_counter()
    while not list(folder.glob("[0-9]*0")) and time.perf_counter() - clock < 400:
        time.sleep(0.1)
    assert list(folder.glob("[0-9]*0"))
    both[dying].kill()
    clock = time.perf_counter()
    printed, _ = both[1 - dying].communicate(timeout=120)
    took = time.perf_counter() - clock
    assert both[1 - dying].returncode == multihost.LOST == 4, printed
    assert took < multihost.VERDICT + 10
    (line,) = [line for line in printed.splitlines() if line.startswith("jaxlm: ")]
    assert line.startswith(f"jaxlm: process {dying}") and "the same command" in line
    assert "Check failure" not in printed and "Traceback" not in printed
    both[dying].wait()
    again = start.pair("cut", *length)
    while not (line := again[0].stdout.readline()).count("parameters"):
        assert line or again[0].poll() is None
    assert "resuming at step" in line
    for process in again:
        process.send_signal(signal.SIGTERM)
    for process in again:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGTERM, printed
