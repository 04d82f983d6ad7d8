"""jaxlm sample --prompts as a process that is killed at random."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxlm.cli import main
from tests.cli.test_main import place  # noqa: F401


@pytest.mark.slow
def test_a_file_of_prompts_survives_kills(place):  # noqa: F811
    """kill -9 at random moments, the same command again: the bytes of a run that was left alone,
    and each prompt decoded once."""
    assert main.main(["train", "tiny.py", "--steps", "2"]) == 0
    draw = random.Random(0)
    rows = [{"prompt": "ab" * draw.randint(0, 9), "id": i} for i in range(900)]
    pathlib.Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--prompts", "p.jsonl", "--max-new", "12", "--slots", "4"]
    assert main.main(["sample", "runs/tiny", *options, "--out", "whole.jsonl"]) == 0
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-m", "jaxlm", "sample", "runs/tiny", *options, "--out", "cut.jsonl"]
    journal, seen, kills = pathlib.Path(".cut.jsonl.journal"), 0, 0
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while kills < 4 and process.poll() is None and time.monotonic() < deadline:
            if lines(journal) > seen + draw.randint(20, 120):
                time.sleep(draw.random() / 20)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        if process.wait(240) == 0:
            break
        kills += 1
        numbers = numbers_in(journal)
        assert len(numbers) == len(set(numbers)) >= seen
        seen = len(numbers)
    assert kills == 4
    assert pathlib.Path("cut.jsonl").read_bytes() == pathlib.Path("whole.jsonl").read_bytes()
    written = [json.loads(line) for line in pathlib.Path("cut.jsonl").read_text().splitlines()]
    assert [row["id"] for row in written] == list(range(900))


def lines(journal):
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def numbers_in(journal):
    """Prompts of the whole lines of a journal."""
    whole = journal.read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    return [json.loads(line)["number"] for line in whole]
