"""The tests notice small changes to the library: a mutant of each part, drawn by a fixed seed."""

import collections
import json
import subprocess
import sys

import pytest

from tests import mutant_guards, mutants, sources


def test_every_module_has_tests_that_exist():
    """Guards named in the table, and those derived; and every part has modules."""
    known = {str(p.relative_to(sources.ROOT)) for p in sources.EVERYTHING}
    named = {path.removeprefix("jaxlm/").removesuffix(".py") for path in mutants.modules()}
    assert set(mutant_guards.GUARDS) <= named
    for path in mutants.modules():
        files = mutant_guards.files_of(path)
        empty = len((sources.ROOT / path).read_text().splitlines()) < 20
        assert (files or empty) and {file.split()[0] for file in files} <= known, path


@pytest.mark.slow
def test_a_mutant_of_each_part_is_caught(tmp_path):
    """In a process of its own, since a fork must not inherit a started backend. A mutant that
    changes no value survives, so that two may; `python -m tests.mutants` says which."""
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tests.mutants", "--parts", "--out", str(out)]
    run = subprocess.run(command, cwd=sources.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(mutants.PARTS), run.stdout
    results = collections.Counter(row["result"] for row in rows)
    assert results["broken"] == 0 and results["survived"] <= 2, run.stdout
