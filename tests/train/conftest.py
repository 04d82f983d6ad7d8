"""A tiny run over a tiny corpus."""

import contextlib
import dataclasses
import io
import json
import random

import jax
import numpy as np
import pytest

from jaxlm.data import pretraining
from jaxlm.models import llama
from jaxlm.train import loop, step
from jaxlm.train.optim import optimizer
from jaxlm.train.run import checkpoint, interrupts, metrics
from jaxlm.train.run import run as runs
from tests import run_programs

WORDS = ("a", "model", "reads", "the", "text", "and", "learns", "what", "follows", "each", "word")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a corpus of 120 short documents and room for caches."""
    folder = tmp_path_factory.mktemp("home")
    draw = random.Random(7)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) + "." for _ in range(120)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def base(home, out):
    """12 steps of a model of 12,208 weights."""
    model = llama.Config(vocab=259, embed=16, layers=2, heads=2, kv=1, head=8, ffn=24, context=32)
    return runs.Run(
        name="tiny",
        model=model,
        data=pretraining.Data(source=str(home / "corpus.jsonl"), seq=32, batch=4, holdout=0.2),
        optim=optimizer.Optim(lr=1e-2, warmup=2),
        steps=12,
        log_every=2,
        eval_every=6,
        eval_batches=2,
        checkpoint=runs.Checkpoint(every=3, keep_last=2),
        out=str(out),
    )


@pytest.fixture
def tiny(home, tmp_path, monkeypatch):
    """A function from changes to a Run of 12 steps that takes a second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    run = base(home, tmp_path / "runs")
    return lambda **changes: dataclasses.replace(run, **changes)


@pytest.fixture
def stopping():
    """A context in which a signal arrives in the n-th step of a run."""

    @contextlib.contextmanager
    def arrive(number, steps):
        count = iter(range(1, 10**6))

        @contextlib.contextmanager
        def caught():
            yield lambda: number if next(count) >= steps else 0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interrupts, "caught", caught)
            yield

    return arrive


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    with run_programs.shared():
        yield


@pytest.fixture(scope="session")
def whole(home):
    """(Run, Result, what was printed) of the tiny run, trained once and never interrupted."""
    run, printed = base(home, home / "runs"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("XDG_CACHE_HOME", str(home))
        with run_programs.shared():
            result = loop.run(run)
    return run, result, printed.getvalue()


@pytest.fixture(scope="session")
def final_state():
    """A function from a Run to every array of its last step's checkpoint, by item."""

    def read(run):
        program = loop.build(run)
        like = checkpoint.items(step.abstract(program.objective, program.tx, run.plan))
        return checkpoint.read(runs.folder(run) / "checkpoints", run.steps, like)

    return read


@pytest.fixture(scope="session")
def assert_same_run(final_state):
    """A function that asserts two Runs' weights, optimiser state, key and metrics equal: every
    bit."""

    def compare(a, b):
        same = jax.tree.map(np.array_equal, final_state(a), final_state(b))
        assert all(jax.tree.leaves(same)), same
        files = [runs.folder(run) / metrics.FILE for run in (a, b)]
        assert metrics.deterministic(files[0]) == metrics.deterministic(files[1])

    return compare
