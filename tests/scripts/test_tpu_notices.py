"""Notices of a VM's metadata server, played by one of this machine, become SIGTERM of a command."""

import http.server
import subprocess
import sys
import threading

import pytest

from scripts.tpu import notices

# Says that it runs, and on SIGTERM that it saves.
RUN = """
import signal, sys, time
def save(number, frame):
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
print("runs", flush=True)
time.sleep(60)
"""


@pytest.fixture
def metadata():
    """(URL, {key: value} of what it answers, a semaphore that every answer releases)."""
    values = {"maintenance-event": "NONE", "preempted": "FALSE"}
    asked = threading.Semaphore(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = values.get(self.path.removeprefix("/instance/"))
            google = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if value is not None and google else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())
            asked.release()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/instance", values, asked
    server.shutdown()
    server.server_close()


def start(url, *command):
    options = [sys.executable, notices.__file__, "--server", url, "--every", "0.05", "--"]
    return subprocess.Popen(
        [*options, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def looks(asked, count=4):
    """Wait for so many answers: two are one look at both keys."""
    for _ in range(count):
        assert asked.acquire(timeout=30)


@pytest.mark.parametrize(
    "key, value",
    [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")],
)
def test_a_notice_is_sigterm(metadata, key, value):
    url, values, asked = metadata
    run = start(url, sys.executable, "-c", RUN)
    assert run.stdout.readline() == "runs\n"
    values["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
    looks(asked, 6)
    assert run.poll() is None  # which ends no VM
    values[key] = value
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out) == (143, "saved\n")
    assert err == f"notices.py: {key} is {value}: SIGTERM, so that the run saves\n"


def test_a_notice_that_stands_already_ends_nothing(metadata):
    """A run that is started again on a VM with an hour left would be ended at once, every time."""
    url, values, asked = metadata
    values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    run = start(url, sys.executable, "-c", RUN)
    assert run.stdout.readline() == "runs\n"
    looks(asked, 6)
    assert run.poll() is None
    values["maintenance-event"] = "NONE"  # it was put off
    looks(asked, 6)
    values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    assert run.wait(timeout=30) == 143


def test_signals_and_exit_codes_are_the_commands(metadata):
    """Also where no server answers, as on a machine that is no VM."""
    url, values, asked = metadata
    values.clear()
    run = start(url, sys.executable, "-c", RUN)
    assert run.stdout.readline() == "runs\n"
    looks(asked)
    run.terminate()
    assert (run.wait(timeout=30), run.stdout.read()) == (143, "saved\n")
    closed = "http://127.0.0.1:9/instance"
    assert start(closed, sys.executable, "-c", "raise SystemExit(5)").wait(timeout=30) == 5
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert start(closed, sys.executable, "-c", killed).wait(timeout=30) == 137
