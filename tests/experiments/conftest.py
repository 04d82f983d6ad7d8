"""Runs of an experiment that compute the same are traced once."""

import pytest

from tests import run_programs


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    with run_programs.shared():
        yield
