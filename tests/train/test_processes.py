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
from jaxlm.train import metrics

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import json, pathlib
from jaxlm.core import config as configs
from jaxlm.train.run import Run


def config() -> Run:
    text = pathlib.Path(__file__).with_name("run.json").read_text()
    return configs.from_dict(Run, json.loads(text))
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiny, home, tmp_path):
    """The same losses at every step, and one run directory, written by process 0."""
    run = tiny()
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, data=2), samples=())
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict(run)))
    (tmp_path / "two.py").write_text(CONFIG)

    def start(name, **more):
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **more}
        environment |= {"XDG_CACHE_HOME": str(home), "JAXLM_HUGEPAGES": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "jaxlm.cli", "train", str(tmp_path / "two.py"), "--name", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def finish(process):
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed

    finish(start("alone"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    peers = [start("pair", JAXLM_DISTRIBUTED=f"localhost:{port}/2/{i}") for i in range(2)]
    for peer in peers:
        finish(peer)
    out = pathlib.Path(run.out)
    alone, pair = (
        list(metrics.deterministic(out / name / metrics.FILE)) for name in ("alone", "pair")
    )
    assert len(alone) == len(pair) > 4
    for a, b in zip(alone, pair, strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-6)
