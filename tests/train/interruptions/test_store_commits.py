"""Two machines that write one checkpoint into a store, of which one is killed at any of its files.

A commit of several processes is many objects, and one manifest that makes them a checkpoint.
"""

import dataclasses
import json
import os

import numpy as np
import pytest

from jaxlm.core import config
from jaxlm.core.remote import objects
from jaxlm.train.run import metrics
from tests.train import process_group

# Each process has copies of its own and counts its uploads of the second checkpoint; one of them
# ends at the n-th.
CODE = """
import itertools, os, pathlib, jax
from jaxlm.core.remote import objects

index = jax.process_index()
os.environ["XDG_CACHE_HOME"] = os.path.abspath(f"copies-{index}")
plain, numbers = objects.upload, itertools.count(1)

def upload(file, address):
    if "/checkpoints/6/" in address:
        number = next(numbers)
        if (index, number) == ({victim}, {fatal}):
            os._exit(9)
        pathlib.Path(f"{name}-{index}").write_text(str(number))
    plain(file, address)

objects.upload = upload
"""


@pytest.mark.slow
def test_a_process_that_ends_within_a_commit_leaves_none_or_the_whole(tiny, tmp_path, monkeypatch):
    """At one of its files, a process; JAXLM_MATRIX=1000 takes every file of both."""
    monkeypatch.chdir(tmp_path)
    run = tiny(out="local://store/runs", samples=())
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, fsdp=2))
    environ = {"FSSPEC_LOCAL_AUTO_MKDIR": "true", "JAXLM_HUGEPAGES": "0"}

    def start(name, victim=0, fatal=0):
        here = dataclasses.replace(run, name=name)
        (tmp_path / f"{name}.json").write_text(json.dumps(config.to_dict(here)))
        code = f"import os\nos.chdir({str(tmp_path)!r})\nname = {name!r}\n"
        code += CODE.replace("{victim}", str(victim)).replace("{fatal}", str(fatal))
        return process_group.start([tmp_path / f"{name}.json"], 2, 1, environ, code)

    def records(name):
        return list(metrics.deterministic(tmp_path / "store" / "runs" / name / metrics.FILE))

    process_group.finish(start("right"))
    right = records("right")
    share = int(os.environ.get("JAXLM_MATRIX", 1))
    for victim in (0, 1):
        count = int((tmp_path / f"right-{victim}").read_text())
        assert count > 20
        for fatal in sorted({int(n) for n in np.linspace(1, count, min(count, share) + 2)[1:-1]}):
            name = f"case-{victim}-{fatal}"
            killed, other = (peers := start(name, victim, fatal))[victim], peers[1 - victim]
            printed = killed.communicate(timeout=300)[0]
            assert killed.returncode == 9, printed
            other.kill()
            other.communicate()
            there = objects.listing(f"local://store/runs/{name}/checkpoints")
            whole = {n.split("/")[0] for n in there if n.endswith("/manifest.json")}
            assert whole == {"3"}
            printed = process_group.finish(start(name))
            assert "resuming at step 3" in printed[0]
            assert records(name) == right
