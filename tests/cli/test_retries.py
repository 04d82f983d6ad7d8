"""The process that starts a run again: when, how often, and with which hosts."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxlm.cli import retries
from jaxlm.data import pretraining
from jaxlm.models import llama
from jaxlm.parallel.plan import Plan
from jaxlm.train.run import directory
from jaxlm.train.run.run import Run

TINY = llama.Config(vocab=259, embed=8, layers=1, heads=1, kv=1, head=8, ffn=16)
RUN = Run(name="x", model=TINY, data=pretraining.Data(source="markov", batch=8))
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def started(tmp_path, monkeypatch, capfd):
    """A function that retries a run whose starts end as listed, (exit code, step of the last
    checkpoint); (exit code, starts, seconds waited, what was printed)."""

    def retry(ends, limit):
        run, waits = dataclasses.replace(RUN, out=str(tmp_path)), []
        remaining = iter(ends)

        def start(args, environ, distributed):
            code, step = next(remaining)
            (tmp_path / "x" / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
            return code, code == 128 + signal.SIGTERM

        monkeypatch.setattr(retries, "_run", start)
        monkeypatch.setattr(time, "sleep", waits.append)
        code = retries.train(run, [], limit, {})
        return code, len(ends) - len([*remaining]), waits, capfd.readouterr().err

    return retry


@pytest.mark.parametrize("code", [0, 2, 3, 143])
def test_an_end_that_a_new_start_would_not_change_is_the_end(started, code):
    assert started([(code, 0), (0, 0)], 3)[:3] == (code, 1, [])


def test_failures_without_a_new_checkpoint_are_counted(started):
    """Crashed, killed and left by a peer; a checkpoint between them begins the count anew."""
    code, starts, waits, printed = started([(1, 5), (-9, 5), (4, 10), (0, 12)], 2)
    assert (code, starts, waits) == (0, 4, [1.0, 2.0, 1.0])
    assert (
        "jaxlm: the run crashed (1) after the checkpoint of step 5; retry 1 of 2 in 1 s" in printed
    )
    assert "ended by SIGKILL after the checkpoint of step 5; retry 2 of 2 in 2 s" in printed
    assert "the run lost a process after the checkpoint of step 10; retry 1 of 2" in printed
    code, starts, _, printed = started([(4, 12)] * 5, 2)
    assert (code, starts) == (4, 3)
    assert "step 12; given up after 2 retries without a new checkpoint" in printed
    assert started([(-9, 12)] * 5, 1)[0] == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    "plan, batch, here, expected",
    [
        (Plan(data=4), 8, 4, (4, Plan(data=4))),
        (Plan(data=4), 12, 3, (3, Plan(data=3))),
        (Plan(data=4), 8, 3, (2, Plan(data=2))),  # 8 rows do not divide by 3
        (Plan(data=4, zero=1), 8, 1, (1, Plan())),
        (Plan(fsdp=8), 8, 2, (2, Plan(fsdp=4))),
        (Plan(data=2, fsdp=4), 8, 3, (2, Plan(data=1, fsdp=4))),
        (Plan(expert=4), 8, 3, None),
    ],
)
def test_the_plan_shrinks_with_the_hosts(plan, batch, here, expected):
    data = dataclasses.replace(RUN.data, batch=batch)
    run = dataclasses.replace(RUN, plan=plan, data=data)
    if expected is None:
        with pytest.raises(ValueError, match="plan: expert=4 given, for 4 processes, of which 3"):
            retries.fewer(run, 4, here)
    else:
        assert retries.fewer(run, 4, here) == expected


def test_hosts_that_come_take_part_and_others_are_left_out(monkeypatch, capfd):
    """Of four hosts number 1 is lost: two go on, and the last waits for the next start."""
    monkeypatch.setattr(retries, "REJOIN", 1.0)
    monkeypatch.setattr(retries, "BACKOFF", 0.05)
    run, parts = dataclasses.replace(RUN, plan=Plan(data=4)), {}

    def meet(index):
        with retries.Meeting(run, {"JAXLM_DISTRIBUTED": f"localhost:29417/4/{index}"}) as meeting:
            try:
                parts[index] = meeting.part()
            except OSError as error:
                parts[index] = str(error)

    threads = [threading.Thread(target=meet, args=(index,)) for index in (2, 3, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    arguments = ["--plan.data", "2", "--plan.fsdp", "1", "--plan.zero", "0"]
    assert parts[0] == retries.Part("localhost:29417/2/0", arguments)
    assert parts[2] == retries.Part("localhost:29417/2/1", arguments)
    assert "localhost:29418: the host of process 0 does not answer" in parts[3]
    assert "going on with 2 of 4 processes, as data=2" in capfd.readouterr().err


def test_the_number_of_retries_is_no_field():
    assert retries.option(["c.py", "--steps", "3"]) == (["c.py", "--steps", "3"], None)
    assert retries.option(["c.py", "--retries", "3", "--steps", "4"]) == (
        ["c.py", "--steps", "4"],
        3,
    )
    assert retries.option(["c.py", "--retries=2"]) == (["c.py"], 2)
    for value in ("0", "-1", "many"):
        with pytest.raises(ValueError, match=f"--retries: '{value}' given; it must be a whole"):
            retries.option(["c.py", "--retries", value])


CONFIG = """
from jaxlm.data import pretraining
from jaxlm.models import llama
from jaxlm.train.optim import optimizer
from jaxlm.train.run.run import Checkpoint, Run


def config():
    model = llama.Config(vocab=259, embed=8, layers=1, heads=1, kv=1, head=8, ffn=16)
    data = pretraining.Data(source="corpus.jsonl", seq=16, batch=4, holdout=0)
    return Run(
        name="run", model=model, data=data, steps=40, eval_every=None,
        optim=optimizer.Optim(warmup=2), checkpoint=Checkpoint(every=4),
    )
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_by_itself(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "corpus.jsonl").write_text('{"text": "a model reads the text"}\n' * 60)
    wrapper = subprocess.Popen(
        [sys.executable, "-m", "jaxlm", "train", "config.py", "--retries", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder, end = tmp_path / "runs" / "run" / "checkpoints", time.monotonic() + 200
    while not list(folder.glob("*[048]")) and time.monotonic() < end:
        time.sleep(0.02)
        assert wrapper.poll() is None, wrapper.communicate()
    children = pathlib.Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children").read_text()
    os.kill(int(children.split()[0]), signal.SIGKILL)
    printed, _ = wrapper.communicate(timeout=240)
    assert wrapper.returncode == 0, printed
    assert "the run was ended by SIGKILL after the checkpoint of step" in printed
    assert "retry 1 of 2" in printed and "resuming at step" in printed
    assert directory.read_result(tmp_path / "runs" / "run").step == 40
