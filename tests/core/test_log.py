"""What a run tells its user."""

import sys

import pytest

from jaxlm.core import log


@pytest.mark.parametrize(
    "orig, argv, told",
    [
        (["python3", "/bin/jaxlm", "train", "a b.py"], ["/bin/jaxlm", "train", "a b.py"],
         "/bin/jaxlm train 'a b.py'"),
        (["/x/python3", "-m", "jaxlm", "train", "c.py"], ["/x/jaxlm/__main__.py", "train", "c.py"],
         "python -m jaxlm train c.py"),
        (["python3", "-m", "jaxlm", "sample", "-m"], ["/x/jaxlm/__main__.py", "sample", "-m"],
         "python -m jaxlm sample -m"),
    ],
)  # fmt: skip
def test_the_command_can_be_typed(monkeypatch, orig, argv, told):
    """`python -m jaxlm` said to resume with `/.../jaxlm/__main__.py train`, which no shell runs."""
    monkeypatch.setattr(sys, "orig_argv", orig)
    monkeypatch.setattr(sys, "argv", argv)
    assert log.command() == told
