"""Runs that go on with another mesh and another number of processes, and peers that are slow or
hang."""

import dataclasses
import json
import re
import signal

import pytest

from jaxlm.core import config
from jaxlm.parallel import multihost
from jaxlm.parallel.plan import Plan
from jaxlm.train import loop
from jaxlm.train.run import checkpoint, metrics
from jaxlm.train.run import run as runs
from tests.train import process_group

pytestmark = pytest.mark.slow
RING = Plan(fsdp=2, context=2)
# A signal that reaches process 1 alone, while it is in step 5.
SIGNALLED = """
import contextlib, itertools, jax
from jaxlm.train.run import interrupts

@contextlib.contextmanager
def caught():
    steps = itertools.count(1)
    yield lambda: 15 if next(steps) >= 5 and jax.process_index() == 1 else 0

interrupts.caught = caught
"""
# Process 1 reads its 5th batch slowly, and its 10th for ever.
SLOW = """
import jax, time
from jaxlm.parallel import transfer

plain, read = transfer.batch, []

def batch(plan, local):
    read.append(None)
    if jax.process_index() == 1:
        time.sleep({5: 15, 10: 10**6}.get(len(read), 0))
    return plain(plan, local)

transfer.batch = batch
"""


@pytest.fixture
def start(home, tmp_path):
    """A function that starts a Run in two processes of two devices each."""

    def begin(run, code="", **environ):
        file = tmp_path / f"{run.name}.json"
        file.write_text(json.dumps(config.to_dict(run)))
        environ |= {"XDG_CACHE_HOME": str(home), "JAXLM_HUGEPAGES": "0"}
        return process_group.start([file], 2, 2, environ, code)

    return begin


def losses(run):
    """[step, its loss or evaluation] of a run."""
    seen = metrics.deterministic(runs.folder(run) / metrics.FILE)
    return [[r["step"], r.get("loss", r.get("nll"))] for r in seen]


def test_a_run_moves_between_meshes_and_numbers_of_processes(tiny, start, stopping):
    """Two processes of two devices, from there one of four, and back: the losses are those of a run
    on one device that never moved. A signal to one process has all save the same step."""
    whole = tiny(name="whole", samples=())
    loop.run(whole)
    want = losses(whole)

    first = dataclasses.replace(whole, name="gathered", plan=RING)
    group = start(first, SIGNALLED)
    printed = [process.communicate(timeout=300)[0] for process in group]
    assert [p.returncode for p in group] == [128 + signal.SIGTERM] * 2, printed
    assert checkpoint.steps(runs.folder(first) / "checkpoints")[-1] == 6
    loop.run(dataclasses.replace(first, plan=Plan(data=4)))
    assert losses(first) == [[n, pytest.approx(x, rel=1e-5)] for n, x in want]

    second = dataclasses.replace(whole, name="spread", plan=Plan(data=2, fsdp=2))
    with stopping(15, 6):
        assert loop.run(second).signal == 15
    # a ring over both processes, which read the same rows
    process_group.finish(start(dataclasses.replace(second, plan=Plan(context=4))))
    assert losses(second) == [[n, pytest.approx(x, rel=1e-5)] for n, x in want]


def test_a_slow_process_is_a_line_and_one_that_hangs_ends_the_run(tiny, start):
    """A collective waited for ever for a process that was alive and stuck, and a slow loader was
    not to be told from it."""
    run = tiny(name="stuck", samples=(), plan=RING, eval_every=None)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, holdout=0.2))
    first, second = start(run, SLOW, JAXLM_TIMEOUT="40")
    try:
        printed = first.communicate(timeout=300)[0]
        assert first.returncode == multihost.LOST, printed
        line = r"warning: waiting for process 1, for \d+ s at the batch of step 5"
        assert re.search(line, printed), printed
        last = [line for line in printed.splitlines() if line.startswith("jaxlm: ")]
        assert len(last) == 1, printed
        assert last[0].startswith(
            "jaxlm: process 1 of this run has not moved on from the batch of step 10 for 4"
        )
        # the thread of the process that hangs ends it, too
        assert second.wait(60) == multihost.LOST
    finally:
        second.kill()
    assert checkpoint.steps(runs.folder(run) / "checkpoints")[-1] == 9
