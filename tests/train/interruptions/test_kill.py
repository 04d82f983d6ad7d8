"""Processes that are killed or stopped and started again (test_disturbances.py: at random)."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxlm.core import config
from jaxlm.train import loop
from jaxlm.train.run import run as runs

CHILD = """
import json, sys
from jaxlm.core import config
from jaxlm.train import loop
from jaxlm.train.run import run

if __name__ == "__main__":
    found = config.from_dict(run.Run, json.loads(sys.argv[1]))
    raise SystemExit(loop.run(found).exit_code)
"""
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def start(home, tmp_path):
    """A function that starts a Run in a process of its own."""
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XDG_CACHE_HOME": str(home),
    }

    def begin(run):
        return subprocess.Popen(
            [sys.executable, str(child), json.dumps(config.to_dict(run))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    return begin


def finish(process):
    """What a process printed, once it ended well."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return printed


def interrupt(process, number, delay, after="parameters"):
    """(return code, output) of a process sent a signal `delay` seconds after it printed a line with
    this text: "parameters" when it begins to compile, " lr " after its first steps."""
    lines, begun = [], threading.Event()

    def read():
        for line in process.stdout:
            lines.append(line)
            if after in line:
                begun.set()
        begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(120)
    time.sleep(delay)
    process.send_signal(number)
    code = process.wait(120)
    reader.join()
    return code, "".join(lines)


@pytest.fixture
def busy(tiny):
    """A Run of 150 steps that saves every fifth: most moments are in the middle of something."""
    return tiny(
        steps=150, log_every=3, eval_every=50, checkpoint=runs.Checkpoint(every=5, keep_every=50)
    )


def _committed(run):
    folder = runs.folder(run) / "checkpoints"
    return max((int(p.name) for p in folder.glob("*") if p.name.isdecimal()), default=0)


@pytest.mark.slow
def test_the_number_of_data_workers_changes_nothing(busy, start, assert_same_run):
    """Read in threads, in this process; then by one process, killed; then by two."""
    short = dataclasses.replace(busy, steps=40)
    whole = dataclasses.replace(short, name="whole")
    loop.run(whole)
    one, two = (
        dataclasses.replace(short, name="cut", data=dataclasses.replace(busy.data, workers=n))
        for n in (1, 2)
    )
    process = start(one)
    while _committed(one) < 5 and process.poll() is None:
        time.sleep(0.05)
    code, printed = interrupt(process, signal.SIGKILL, 0)
    assert code == -9, printed
    printed = finish(start(two))
    assert "changed since the last start: data.workers: 1 -> 2" in printed
    assert "resuming at step" in printed
    assert_same_run(whole, two)


@pytest.mark.slow
def test_sigterm_saves(busy, start):
    process = start(dataclasses.replace(busy, steps=5000))
    code, printed = interrupt(process, signal.SIGTERM, 1.0, after=" lr ")
    assert code == 143, printed
    assert "SIGTERM: stopped after step" in printed and "everything is saved" in printed
    assert _committed(busy) > 0


STUBBORN = """
import os, signal
from jaxlm.train.run import interrupts

with interrupts.caught() as arrived:
    arrived()
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here after", arrived(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("not ended", flush=True)
"""


def test_a_second_signal_ends_the_process_at_once():
    command = [sys.executable, "-c", STUBBORN]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (130, "still here after 15\n"), done.stderr


COMPILING = """
import hashlib, os, signal, threading
from jaxlm.train.run import interrupts

with interrupts.caught() as arrived:
    if {begun}:
        arrived()
    for i in range({count}):
        # apart: two equal signals that are pending at once are one
        threading.Timer(0.1 + i, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize("begun, count", [(False, 1), (True, 2)])
def test_a_signal_is_heard_while_compiled_code_runs(begun, count):
    """A run whose init or first compilation took minutes could not be stopped: Python's handlers
    wait until compiled code returns. pbkdf2 stands for XLA's compiler: minutes without the GIL."""
    code = COMPILING.format(begun=begun, count=count)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 143, done.stderr
    assert ("SIGTERM: stopped before the first step" in done.stderr) is not begun


def test_a_signal_before_the_first_step_is_not_lost():
    """Ctrl-C while a run was starting was once raised in a callback of JAX's garbage collection,
    printed there as ignored, and the run went on."""
    code = (
        "import gc, os, signal\nfrom jaxlm.train.run import interrupts\ninterrupts.at_start()\n"
        "gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGINT))\n"
        "gc.collect()\nprint('still here')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.count("SIGINT: stopped before the first step") == 1
