"""Checkpoints that are whole, kept, found again, and not harmed by a full disk or a bad one."""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import io, param
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import plan as plans
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from jaxlm.train.run import checkpoint, integrity
from jaxlm.train.run.run import Checkpoint


def made(plan=Plan(), seed=0, layers=0, **changes):
    """(state, abstract state) of two weights, and of one more of so many layers, with every
    optional part of the optimiser's state."""
    p = param.shaper(embed=8, ffn=16)
    spec = {"up": p("embed -> ffn"), "norm": p("embed", init=param.ones)}
    if layers:
        spec["stack"] = param.stacked(layers, {"w": p("embed -> ffn")})
    objective = Objective(spec, None)
    cfg = optimizer.Optim(warmup=0, skip=3.0, ema=0.9, **changes)
    tx = optimizer.build(cfg, objective.spec, 100, True)
    return step.init(objective, tx, plan, seed), step.abstract(objective, tx, plan)


@pytest.fixture(scope="module")
def state():
    return made()


def at(state, number):
    """The state as of another step, with other weights."""
    params = jax.tree.map(lambda x: x + number, state.params)
    return state._replace(step=jnp.int32(number), params=params)


def saved(folder, state, steps, cfg=Checkpoint(), vals=None):
    """A folder of checkpoints at these steps."""
    folder.mkdir(exist_ok=True)
    store = checkpoint.Store(folder, cfg, True)
    for number in steps:
        store.save(at(state, number), {"val": (vals or {}).get(number)}, {})
    store.close()
    return folder


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def damage(folder, number, how):
    """Do something to the largest file of a checkpoint's weights."""
    files = io.files(folder / str(number) / "params")
    path = max(files, key=lambda p: p.stat().st_size)
    raw = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(raw[:-1])
    elif how == "flipped":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif how == "unsealed":
        (folder / str(number) / integrity.FILE).unlink()
    else:
        (folder / str(number) / integrity.FILE).write_text("{}")


def test_every_part_of_the_state_comes_back(state, tmp_path):
    whole, like = state
    folder = saved(tmp_path / "c", whole, [5])
    assert_equal(checkpoint.restore(folder, 5, like, {})[0], at(whole, 5))
    assert checkpoint.facts(folder, 5) == {"val": None}


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
def test_every_optimiser_comes_back(name, tmp_path):
    whole, like = made(name=name)
    folder = saved(tmp_path / "c", whole, [1])
    assert_equal(checkpoint.restore(folder, 1, like, {})[0], at(whole, 1))


def test_it_is_restored_onto_another_mesh(state, tmp_path):
    whole, like = state
    many, many_like = made(Plan(data=2, fsdp=2, tensor=2))
    one = saved(tmp_path / "one", whole, [1])
    eight = saved(tmp_path / "eight", many, [1])
    spread = checkpoint.restore(one, 1, many_like, {})[0]
    assert len(spread.params["up"].sharding.device_set) == 8
    assert spread.params["up"].addressable_shards[0].data.shape == (4, 8)
    assert_equal(spread, at(whole, 1))
    assert_equal(checkpoint.restore(eight, 1, like, {})[0], at(whole, 1))


def test_it_is_restored_onto_more_devices_than_are_gathered_at_once(state, tmp_path, monkeypatch):
    """`fsdp` of 64 devices is two mesh axes; here that of 4. A checkpoint knows neither."""
    whole, like = state
    few, few_like = made(Plan(fsdp=4))
    before = saved(tmp_path / "few", few, [1])
    plans._mesh.cache_clear()
    monkeypatch.setattr(rules, "WIDE", 4)
    many, many_like = made(Plan(fsdp=4))
    assert many.params["up"].sharding.spec[0] == ("fsdp", rules.INNER)
    after = saved(tmp_path / "many", many, [1])
    plans._mesh.cache_clear()
    for folder in (before, after):
        for there in (like, few_like, many_like):
            assert_equal(checkpoint.restore(folder, 1, there, {})[0], at(whole, 1))


@pytest.mark.parametrize("layers, shard", [(4, (2, 4, 8)), (3, (3, 2, 8))])
def test_it_is_restored_with_a_pipeline_and_without(tmp_path, layers, shard):
    """Layers that do not divide into the stages are stored whole, their rows in more parts."""
    one, like = made(layers=layers)
    staged, staged_like = made(Plan(pipe=2, fsdp=2, tensor=2), layers=layers)
    here = checkpoint.restore(saved(tmp_path / "one", one, [1]), 1, staged_like, {})[0]
    assert here.params["stack"]["w"].addressable_shards[0].data.shape == shard
    assert here.params["up"].addressable_shards[0].data.shape == (2, 8)
    assert_equal(here, at(one, 1))
    back = checkpoint.restore(saved(tmp_path / "staged", staged, [1]), 1, like, {})[0]
    assert_equal(back, at(one, 1))


def test_the_memory_of_a_saved_state_may_be_reused_at_once(tmp_path):
    """Writing goes on in the background while the donated buffers are overwritten."""
    x = {"w": jnp.zeros((400, 1000))}
    state = made()[0]._replace(params=x)
    bump = jax.jit(lambda t: jax.tree.map(lambda a: a + 1, t), donate_argnums=0)
    store = checkpoint.Store(tmp_path, Checkpoint(keep_last=9), True)
    for number in (1, 2, 3):
        store.save(state._replace(step=jnp.int32(number)), {"val": None}, {})
        for _ in range(10):
            state = state._replace(params=bump(state.params))
    store.close()
    like = {"params": {"w": jax.ShapeDtypeStruct((400, 1000), jnp.float32, sharding=None)}}
    like = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=Plan().replicated), like
    )
    for number in (1, 2, 3):
        found = checkpoint.read(tmp_path, number, like)["params"]["w"]
        assert np.all(np.asarray(found) == 10 * (number - 1))


@pytest.mark.parametrize(
    ("cfg", "kept"),
    [
        (Checkpoint(keep_last=1, keep_best=False), [10]),
        (Checkpoint(keep_last=3, keep_best=False), [8, 9, 10]),
        (Checkpoint(keep_last=1, keep_every=4, keep_best=False), [4, 8, 10]),
        (Checkpoint(keep_last=1, keep_best=True), [3, 10]),
        (Checkpoint(keep_last=2, keep_every=5, keep_best=True), [3, 5, 9, 10]),
    ],
)
def test_what_is_kept(tmp_path, cfg, kept):
    """Each step in turn is committed and the surplus removed, as a run does it."""
    vals = {2: 2.0, 3: 1.0, 5: 1.5, 6: 1.0}
    for number in range(1, 11):
        (tmp_path / str(number) / "params").mkdir(parents=True)
        integrity.seal(tmp_path / str(number), {"val": vals.get(number)})
        for surplus in checkpoint.surplus(tmp_path, cfg):
            shutil.rmtree(tmp_path / str(surplus))
    assert checkpoint.steps(tmp_path) == kept


def test_surplus_checkpoints_are_removed(state, tmp_path):
    cfg = Checkpoint(keep_last=1)
    folder = saved(tmp_path / "c", state[0], [1, 2, 3], cfg, {1: 1.0, 2: 2.0})
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3"]
    assert all(integrity.fault(folder / name) is None for name in ("1", "3"))


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped", "unsealed", "mangled"])
def test_a_bad_checkpoint_is_named_and_the_one_before_is_used(state, tmp_path, how):
    folder = saved(tmp_path / "c", state[0], [1, 2])
    damage(folder, 2, how)
    warnings = []
    assert checkpoint.good(folder, warnings.append, checkpoint.steps(folder)) == 1
    assert len(warnings) == 1 and f"{folder / '2'} is unusable" in warnings[0]
    assert checkpoint.set_aside(folder, 1) == ["2.corrupt"]
    assert checkpoint.steps(folder) == [1]
    saved(folder, state[0], [2])  # its place is free again
    assert checkpoint.good(folder, warnings.append, [1, 2]) == 2 and len(warnings) == 1


def test_no_good_checkpoint_is_an_error_and_none_at_all_is_a_fresh_start(state, tmp_path):
    folder = saved(tmp_path / "c", state[0], [1, 2])
    damage(folder, 1, "flipped")
    damage(folder, 2, "missing")
    with pytest.raises(ValueError, match=r"no usable checkpoint among \[1, 2\]"):
        checkpoint.good(folder, lambda text: None, [1, 2])
    assert checkpoint.good(folder, lambda text: None, []) is None


def test_only_the_parts_that_are_read_must_be_whole(state, tmp_path):
    folder = saved(tmp_path / "c", state[0], [1])
    damage(folder, 1, "flipped")
    assert checkpoint.good(folder, print, [1], ("train", "average")) == 1
    with pytest.raises(ValueError, match="params/"):
        checkpoint.good(folder, print, [1], ("params",))


def test_what_a_kill_leaves_behind_is_swept(state, tmp_path):
    folder = saved(tmp_path / "c", state[0], [1])
    for name in ("2.orbax-checkpoint-tmp", "0.removed"):
        (folder / name / "params").mkdir(parents=True)
    assert checkpoint.steps(folder) == [1]
    checkpoint.sweep(folder)
    assert [p.name for p in folder.iterdir()] == ["1"]


def assert_survives(folder, state, store):
    """A save that the disk refuses is named with the free bytes; what was there is untouched."""
    before = {p: io.sha256(p) for p in io.files(folder / "1")}
    with pytest.raises(io.WriteError, match=r"cannot write .*/2: .* [\d,]+ bytes are free"):
        store.save(at(state, 2), {"val": None}, {})
        store.wait()
    assert {p: io.sha256(p) for p in io.files(folder / "1")} == before
    assert [p.name for p in folder.iterdir()] == ["1"]
    assert checkpoint.good(folder, print, [1]) == 1


def test_a_disk_that_fills_while_the_manifest_is_written(state, tmp_path, monkeypatch):
    folder = saved(tmp_path / "c", state[0], [1])

    def full(path, text):
        raise io.refused(path, "No space left on device")

    monkeypatch.setattr(io, "write", full)
    assert_survives(folder, state[0], checkpoint.Store(folder, Checkpoint(), True))
    monkeypatch.undo()
    saved(folder, state[0], [2])
    assert checkpoint.good(folder, print, [1, 2]) == 2


@pytest.mark.parametrize("free", [0, 2**40])
def test_an_error_that_hides_a_full_disk(state, tmp_path, monkeypatch, free):
    """Where the arrays did not fit, orbax may raise what another part made of it."""
    folder = saved(tmp_path / "c", state[0], [1])
    store = checkpoint.Store(folder, Checkpoint(), True)

    def hidden(step, args):
        raise ValueError("No ArrayMetadata found")

    monkeypatch.setattr(store._manager, "save", hidden)
    real = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=free))
    if free == 0:
        assert_survives(folder, state[0], store)
    else:
        with pytest.raises(ValueError, match="No ArrayMetadata found"):
            store.save(at(state[0], 2), {"val": None}, {})


LIMITED = """
import resource, sys, test_checkpoint as t
from jaxlm.train.run import checkpoint
folder, kind = t.pathlib.Path(sys.argv[1]), sys.argv[2]
state = t.made()[0]
t.saved(folder, state, [1])
noise = t.np.random.default_rng(0).random((2000, 1000))
big = state._replace(params={"w": t.jnp.asarray(noise)})
if kind == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
store = checkpoint.Store(folder, checkpoint.Checkpoint(), True)
t.assert_survives(folder, big, store)
print("survived")
"""


def limited(folder, kind):
    here = pathlib.Path(__file__).parent
    paths = [str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), kind],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_file_size_limit(tmp_path):
    """The kernel refuses real writes, in the library that writes the arrays."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = limited(tmp_path / "c", "limit")
    assert "survived" in done.stdout, done.stderr[-3000:]


def test_a_disk_that_is_full(tmp_path):
    """A real file system of 2 MB, where this machine lets us mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        done = limited(tmp_path / "c", "disk")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "survived" in done.stdout, done.stderr[-3000:]


def test_the_manifest_lists_what_is_there(state, tmp_path):
    folder = saved(tmp_path / "c", state[0], [1], vals={1: 0.5}) / "1"
    manifest = json.loads((folder / integrity.FILE).read_text())
    assert manifest["facts"] == {"val": 0.5}
    name, (size, digest) = next(iter(manifest["files"].items()))
    assert (folder / name).stat().st_size == size and io.sha256(folder / name) == digest
    assert {n.partition("/")[0] for n in manifest["files"]} == {"params", "train", "average"}
