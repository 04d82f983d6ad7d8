"""Sweeps: their runs, what becomes of them, the record, and the whole."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.core import config
from jaxlm.models import llama
from jaxlm.scaling import study_record
from jaxlm.scaling.cost import flops
from jaxlm.scaling.planning import forecast
from jaxlm.scaling.reading import tables
from jaxlm.scaling.table import Counting
from jaxlm.train import loop
from jaxlm.train.optim import optimizer
from jaxlm.train.run import branching, directory
from jaxlm.train.run import run as runs
from jaxlm.train.sweep import engines, scheduler, sweep_cells

ROOT = pathlib.Path(__file__).parents[3]


# --- What a sweep is -------------------------------------------------------------------------


SMALL, LARGE = (
    llama.Config(vocab=259, embed=8 * n, layers=1, heads=n, kv=n, head=8, ffn=16 * n)
    for n in (1, 2)
)
BUDGETS = (2e8, 4e8)


@pytest.fixture
def make(tiny):
    """A function from changes to a sweep of two sizes at two budgets."""
    base = tiny(checkpoint=runs.Checkpoint(every=1000), log_every=50)
    base = dataclasses.replace(
        base,
        optim=optimizer.Optim(),
        data=dataclasses.replace(base.data, batch=1, packing="concat"),
    )
    given = {
        "name": "sweep",
        "base": base,
        "cells": sweep_cells.isoflop({c: (SMALL, LARGE) for c in BUDGETS}),
        "speed": sweep_cells.Speed(1e9, 1e5, 5.0),
        "rule": "deepseek",
    }
    return lambda **changes: sweep_cells.Sweep(**(given | changes))


def test_cells_become_runs_of_their_compute_with_the_rules_rate(make):
    found = sweep_cells.trials(make())
    assert len(found) == 4 and len({t.digest for t in found}) == 4
    for t in found:
        c = min(BUDGETS, key=lambda c: abs(c - t.flops))
        assert t.flops == pytest.approx(c, rel=0.02)
        assert t.flops == 6 * t.params * t.tokens
        assert t.tokens == t.run.steps * t.run.data.batch * t.run.data.seq
        # all runs of a size have one rate and batch: the rule's at their geometric mean
        cfg, mean = t.run.model, math.sqrt(BUDGETS[0] * BUDGETS[1]) / 6 / t.params
        each = 6 * (4 * cfg.embed**2 + 3 * cfg.embed * cfg.ffn) + 12 * cfg.embed * 32
        assert t.run.optim.lr == pytest.approx(0.3118 * (each * mean) ** -0.125, rel=5e-3)
    by_size = {t.params: {(o.run.optim, o.run.data) for o in found if o.params == t.params}
               for t in found}  # fmt: skip
    assert all(len({(o.lr, o.warmup, d.batch) for o, d in at}) == 1 for at in by_size.values())


def test_the_longest_run_of_a_size_is_the_trunk_of_the_others(make):
    cells = (*make().cells, sweep_cells.Cell(SMALL, 2e8, seed=1))
    found = sweep_cells.trials(make(cells=cells))
    trunks = [t for t in found if t.trunk is None]
    assert [(t.params, t.seed, t.own == t.run.steps) for t in trunks] == [
        (trunks[0].params, 0, True), (trunks[0].params, 1, True), (trunks[2].params, 0, True)
    ]  # fmt: skip
    for t in (t for t in found if t.trunk is not None):
        trunk = next(o for o in trunks if o.digest == t.trunk)
        assert trunk.run.checkpoint.at == (t.run.steps - t.own,)
        assert (t.cluster, t.run.trunk) == (trunk.run.name, str(runs.folder(trunk.run)))
        assert t.own == round(0.2 * t.run.steps)
        branching.length(t.run)
    # seeds other than the trunk's are runs of their own, with the same rate and batch
    repeat = next(t for t in found if t.seed == 1)
    like = next(t for t in found if t.seed == 0 and t.run.steps == repeat.run.steps)
    assert (repeat.run.seed, repeat.run.data.seed) == (1, 1)
    assert repeat.run.optim == like.run.optim


def test_equal_trials_are_one(make):
    twice = make(cells=make().cells * 2)
    assert [t.digest for t in sweep_cells.trials(twice)] == [
        t.digest for t in sweep_cells.trials(make())
    ]


def test_the_estimate_adds_up(make):
    """On one worker: every run's own tokens and the held-out ones, at the speed that is given."""
    found = make()
    wanted = sweep_cells.trials(found)
    cost = sweep_cells.estimate(found, wanted, 1, frozenset(), 3000)
    assert cost.alone == sum(t.flops for t in wanted)
    want = 0.0
    for t in wanted:
        each = flops.per_token(t.run.model, 32).training
        own = t.tokens * t.own / t.run.steps + 1000
        want += 5.0 + own * (each + 1e5) / 1e9
    assert cost.seconds == pytest.approx(want)
    less = sweep_cells.estimate(found, wanted, 1, frozenset(t.digest for t in wanted), 3000)
    assert less.seconds == 0 and less.alone == cost.alone
    two = sweep_cells.estimate(found, wanted, 2, frozenset(), 3000).seconds
    assert cost.seconds / 2 <= two < cost.seconds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cells": ()}, "cells: 0 given; it must be at least 2"),
        ({"decay": 0.7}, r"decay: 0.7 given; it must be in \(0, 0.5\)"),
        ({"lr_factor": 0}, "lr_factor: 0 given; it must be above 0"),
        (
            {"counting": Counting()},
            r"counting: Counting\(.*\) given; it must be rules that count",
        ),
        (
            {"cells": (sweep_cells.Cell(SMALL, 1e6), sweep_cells.Cell(SMALL, 2e6))},
            "too few with 1 of warm-up",
        ),
    ],
)
def test_sweeps_that_cannot_be_are_refused(make, changes, said):
    with pytest.raises(ValueError, match=said):
        sweep_cells.trials(make(**changes))


def test_a_target_names_a_folder_a_file_or_a_variant(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for target in ("experiments/chinchilla", "experiments/chinchilla/sweep.py:sweep"):
        found = sweep_cells.load(target)
        assert found.name == "chinchilla"
    for variant in ("quick", "gpu", "tpu"):
        assert len(sweep_cells.trials(sweep_cells.load(f"experiments/chinchilla:{variant}"))) > 6
    (tmp_path / "sweep.py").write_text("def sweep():\n    return 3\n")
    with pytest.raises(ValueError, match=r"int returned; a train\.sweep\.Sweep is needed"):
        sweep_cells.load(str(tmp_path))


# --- What becomes of trials ------------------------------------------------------------------


def law(trial):
    """A loss that falls with size and data."""
    return 1.5 + 20 * trial.params**-0.3 + 20 * trial.tokens**-0.3


@pytest.fixture
def pretend():
    """A function from the trials, and {name: exit codes or losses of its attempts}, to (an engine
    that leaves a finished run's files at once, the names of what was started)."""

    def make(wanted, odd):
        begun, odd = [], {name: list(ends) for name, ends in odd.items()}

        def submit(task):
            trial = next(t for t in wanted if t.run.name == task.name)
            begun.append(task.name)
            end = odd[task.name].pop(0) if odd.get(task.name) else law(trial)
            if isinstance(end, int):
                pathlib.Path(task.log).write_text("first line\nValueError: no luck\n", "utf-8")
                return engines.Job(lambda: end, lambda: None)
            run = config.from_dict(runs.Run, json.loads(pathlib.Path(task.spec).read_text()))
            place = runs.folder(run)
            place.mkdir(parents=True, exist_ok=True)
            directory.record(place, run)
            result = directory.Result(str(place), run.steps, run.steps, 1, {"nll": end}, 0)
            directory.finish(place, result)
            return engines.Job(lambda: 0, lambda: None)

        return engines.Engine("inline", submit), begun

    return make


def opened(found, wanted):
    return scheduler.opened(sweep_cells.folder(found), found.counting, wanted, {})


def conducted(found, wanted, engine, retries=1):
    book = opened(found, wanted)
    scheduler.conduct(book, wanted, engine, 2, retries, lambda text: None)
    return book


def test_failed_trials_are_tried_again_kept_and_left_out_and_diverged_ones_are_not_tried(
    make, pretend
):
    found = make()
    wanted = sweep_cells.trials(found)
    names = [t.run.name for t in wanted]
    # a trunk that fails for good, one that fails once, a branch that diverges
    odd = {names[0]: [2, 2, 2], names[2]: [1], names[3]: [math.nan, 1.0]}
    engine, begun = pretend(wanted, odd)
    book = conducted(found, wanted, engine)
    assert [begun.count(n) for n in names] == [2, 1, 2, 1]
    states = [book.entries[t.digest].state for t in wanted]
    assert states == ["failed", "finished", "finished", "diverged"]
    kept = json.loads((runs.folder(wanted[0].run) / "failed.json").read_text())
    assert kept["attempts"] == 2 and "exit code 2" in kept["reason"]
    assert "ValueError: no luck" in kept["reason"]
    # the branch of the trunk that failed was trained whole, and is charged so
    assert directory.load(runs.folder(wanted[1].run)).trunk is None
    assert book.entries[wanted[1].digest].spent == wanted[1].flops
    assert book.entries[wanted[3].digest].spent == pytest.approx(0.2 * wanted[3].flops, rel=0.05)
    record = json.loads((book.folder / "sweep.json").read_text())
    assert [e["name"] for e in record["excluded"]] == [names[0], names[3]]
    assert "held-out nll is nan" in record["excluded"][1]["reason"]
    t = tables.read(book.folder / "runs.csv", counting=found.counting)
    np.testing.assert_allclose(sorted(t.loss), sorted(law(wanted[i]) for i in (1, 2)))
    assert list(t.run) == [e.cluster for e in (book.entries[wanted[i].digest] for i in (1, 2))]


def test_noise_is_what_seeds_differ_by(make, pretend):
    cells = (*make().cells, *(sweep_cells.Cell(SMALL, 2e8, seed) for seed in (1, 2)))
    found = make(cells=cells)
    wanted = sweep_cells.trials(found)
    same = [t for t in wanted if t.params == wanted[0].params and t.flops < 3e8]
    ends = {t.run.name: [loss] for t, loss in zip(same, (2.0, 2.1, 2.3), strict=True)}
    book = conducted(found, wanted, pretend(wanted, ends)[0])
    sd, freedom = scheduler.seed_noise(book)
    assert (sd, freedom) == (pytest.approx(np.std([2.0, 2.1, 2.3], ddof=1)), 2)


def test_a_sweep_that_is_started_again_does_what_is_left(make, pretend):
    """Finished and diverged trials are not run again; failed ones are, with new attempts; one that
    ran when the sweep was killed is, and a new cell is added."""
    found = make()
    wanted = sweep_cells.trials(found)
    names = [t.run.name for t in wanted]
    book = conducted(found, wanted, pretend(wanted, {names[0]: [2, 2], names[3]: [math.nan]})[0])
    book.entries[wanted[2].digest].state = "running"
    scheduler.write(book)
    more = dataclasses.replace(found, cells=(*found.cells, sweep_cells.Cell(LARGE, 4e8, seed=3)))
    again = sweep_cells.trials(more)
    engine, begun = pretend(again, {})
    book = conducted(more, again, engine)
    assert sorted(begun) == sorted([names[0], again[-1].run.name])
    assert [e.state for e in book.entries.values()].count("finished") == 4
    assert not (set(names[1:]) & set(begun))
    assert sweep_cells.estimate(more, again, 1, scheduler.done(book), 0).seconds == 0


# --- The whole -------------------------------------------------------------------------------


TINY = """
import dataclasses
from jaxlm.data import pretraining
from jaxlm.models import llama
from jaxlm.scaling.study import analysis
from jaxlm.train.optim import optimizer
from jaxlm.train.run import run
from jaxlm.train.sweep import sweep_cells as sweeps


def size(n):
    return llama.Config(vocab=259, embed=8 * n, layers=1, heads=n, kv=n, head=8, ffn=16 * n)


def sweep():
    data = pretraining.Data(source=SOURCE, seq=32, packing="concat", holdout=0.2)
    base = run.Run(name="base", model=size(1), data=data, log_every=50, out=OUT)
    sizes = [size(n) for n in (1, 2, 3)]
    return sweeps.Sweep(
        name="tiny", base=base, cells=sweeps.isoflop({5e8: sizes, 1e9: sizes}),
        held_out=sweeps.Cell(size(2), 2e9), speed=sweeps.Speed(1e9, 1e5, 5.0), rule="deepseek",
        options=analysis.Options(laws=("tied",), law="tied", replicates=50),
    )
"""


@pytest.mark.slow
def test_seeds_train_as_a_population_and_end_as_they_do_alone(make):
    """Two seeds and a size of its own; a population that fails leaves its runs to be trained."""
    cells = (*(sweep_cells.Cell(SMALL, 2e7, seed) for seed in (0, 1)), sweep_cells.Cell(LARGE, 2e7))
    losses = []
    for name in ("together", "alone"):
        found = make(name=name, cells=cells)
        wanted = sweep_cells.trials(found)
        book = opened(found, wanted)
        if name == "together":
            scheduler.populate(book, wanted, lambda text: None)
            states = [book.entries[t.digest].state for t in wanted]
            assert states == ["finished", "finished", "waiting"]
        with engines.opened("population", 1, book.folder) as engine:
            scheduler.conduct(book, wanted, engine, 1, 0, lambda text: None)
        assert {e.state for e in book.entries.values()} == {"finished"}
        assert {e.attempts for e in book.entries.values()} == {1}
        losses.append([book.entries[t.digest].loss for t in wanted])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_population_that_fails_leaves_its_runs_to_be_trained(make, pretend, monkeypatch):
    found = make(cells=[sweep_cells.Cell(SMALL, 2e8, seed) for seed in (0, 1)])
    wanted = sweep_cells.trials(found)
    book, said = opened(found, wanted), []

    def fails(members):
        raise MemoryError("no luck")

    monkeypatch.setattr(scheduler.population, "run", fails)
    scheduler.populate(book, wanted, said.append)
    assert len(said) == 1 and "MemoryError: no luck" in said[0]
    assert [e.state for e in book.entries.values()] == ["waiting"] * 2
    scheduler.conduct(book, wanted, pretend(wanted, {})[0], 1, 0, said.append)
    assert [e.state for e in book.entries.values()] == ["finished"] * 2


@pytest.mark.slow
def test_a_sweep_ends_with_a_law_a_prediction_and_its_measure(home, tmp_path, monkeypatch, capsys):
    """Six runs, a law, a prediction that is written before the seventh; again, and nothing runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    text = TINY.replace("SOURCE", repr(str(home / "corpus.jsonl")))
    (tmp_path / "sweep.py").write_text(text.replace("OUT", repr(str(tmp_path / "runs"))))
    line = ["sweep", str(tmp_path), "--engine", "inline", "--record"]
    assert main.main(line) == 0
    place = tmp_path / "runs/tiny"
    record = json.loads((place / "sweep.json").read_text())
    assert [t["state"] for t in record["trials"]] == ["finished"] * 7, capsys.readouterr()
    assert record["cost"]["flops_spent"] < record["cost"]["flops_alone"] * 0.85
    t = tables.read(place / "runs.csv", counting=Counting("matmul-only"), where={"role": "point"})
    assert len(t.loss) == 6 and len(set(t.run)) == 3
    assert (t.loss < math.log(259)).all()
    told = json.loads((place / "prediction.json").read_text())
    held = next(e for e in record["trials"] if e["role"] == "held out")
    assert told["fit"] == forecast.digest(study_record.load(place).record)
    assert told["run"] == held["digest"] and "measured" not in told
    begun = place / "runs" / held["name"] / "metrics.jsonl"
    assert (place / "prediction.json").stat().st_mtime < begun.stat().st_mtime
    outcome = json.loads((place / "outcome.json").read_text())
    assert outcome["measured"] == held["loss"]
    assert outcome["error"] == pytest.approx(100 * math.log(told["loss"] / held["loss"]))
    assert abs(outcome["error"]) < 30
    kept = {p.name for p in (tmp_path / "results").iterdir()}
    assert {"report.txt", "runs.csv", "prediction.json", "outcome.json", "residuals.png"} <= kept
    assert study_record.load(tmp_path / "results").theta == told["theta"]

    monkeypatch.setattr(loop, "build", lambda run: pytest.fail(f"{run.name} is trained again"))
    before = (place / "prediction.json").read_bytes()
    assert main.main(line) == 0
    assert (place / "prediction.json").read_bytes() == before
    assert json.loads((place / "sweep.json").read_text())["trials"] == record["trials"]
