"""jaxlm serve as a process: it says what it takes, answers, and ends when what it has is done."""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest

from jaxlm.cli import main
from tests.cli.test_main import place  # noqa: F401

JSON = {"Content-Type": "application/json"}


@pytest.mark.slow
def test_sigterm_ends_a_server_when_it_has_answered(place):  # noqa: F811
    assert main.main(["train", "tiny.py", "--steps", "2"]) == 0
    command = [sys.executable, "-m", "jaxlm", "serve", "runs/tiny", "--port", "0"]
    command += ["--length", "600", "--slots", "2", "--steps", "1", "--cache", "int8"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )
    try:
        assert "2 slots of 600 tokens, 30.00 KiB of cache" in process.stdout.readline()
        port = None
        while port is None:
            found = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
            port = int(found[1]) if found else None
        answers = []

        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            body = {"model": "tiny", "prompt": "Doc", "max_tokens": 590, "stream": True}
            connection.request("POST", "/v1/completions", json.dumps(body), JSON)
            response = connection.getresponse()
            first = response.readline()
            process.send_signal(signal.SIGTERM)
            answers.append((response.status, first + response.read()))

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(60)
        assert process.wait(60) == 0
        ((status, text),) = answers
        assert status == 200 and text.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason": "' in text
    finally:
        process.kill()


def test_a_run_that_is_not_there_is_named(capsys):
    assert main.main(["serve", "runs/none"]) == 2
    assert "runs/none is no run directory" in capsys.readouterr().err
