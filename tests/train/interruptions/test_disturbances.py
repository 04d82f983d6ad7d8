"""A sample of random kills, stops and damages over five commands; JAXLM_MATRIX=100 takes more."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.slow
def test_a_disturbed_command_ends_as_it_would_have_or_names_the_damage():
    """The law of docs/robustness.md. In a process of its own, which forks before it has touched a
    device."""
    cases = os.environ.get("JAXLM_MATRIX", "8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.train.interruptions.disturbances",
            "--cases",
            cases,
            "--seed",
            "1",
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert f"{cases}/{cases} " in done.stdout
