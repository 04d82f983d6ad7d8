"""Runs in an object store: fsspec's in memory, whole or failing at any of its operations."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.cli import main
from jaxlm.cli.commands import listing, train_run
from jaxlm.core import config, io, json_file
from jaxlm.core.remote import lease, objects, staging
from jaxlm.train import initial_weights, loop, trained_weights
from jaxlm.train.optim import optimizer
from jaxlm.train.run import checkpoint, directory, integrity, metrics
from jaxlm.train.run import run as runs

NUMBERS = itertools.count()


@pytest.fixture
def place(tmp_path, home, monkeypatch):
    """The URL of an empty folder in a store, with the local copies in a place of their own."""
    monkeypatch.setattr(staging, "root", lambda: tmp_path / "copies")
    monkeypatch.setattr(lease, "LEASE", 0.0)
    monkeypatch.setattr(lease, "WATCH", 0.0)
    return f"memory://bucket-{next(NUMBERS)}/runs"


class Faulty:
    """A store that answers until its n-th operation, which it does or does not carry out, and then
    no more: as for a machine that is killed, or loses its network."""

    OPERATIONS = ("find", "cat_file", "pipe_file", "put_file", "get_file", "rm_file", "cp_file")

    def __init__(self, monkeypatch, fatal, carried_out=False):
        self.count, self.fatal, self.carried_out = 0, fatal, carried_out
        opened = objects._opened
        monkeypatch.setattr(objects, "_opened", lambda address: self.wrapped(*opened(address)))

    def wrapped(self, system, path):
        self.system = system
        return self, path

    def __getattr__(self, name):
        operation = getattr(self.system, name)
        if name not in self.OPERATIONS:
            return operation

        def act(*args, **named):
            self.count += 1
            if self.count < self.fatal:
                return operation(*args, **named)
            if self.count == self.fatal and self.carried_out:
                operation(*args, **named)
            raise ConnectionResetError("the store does not answer")

        return act


def forget():
    """Remove all local copies: what follows is on another machine."""
    shutil.rmtree(staging.root(), ignore_errors=True)


def fetched(run):
    """The folder of a run in a store, all of it fetched anew."""
    forget()
    folder = runs.folder(run)
    staging.refresh(folder)
    for step in checkpoint.steps(folder / "checkpoints"):
        assert integrity.fault(folder / "checkpoints" / str(step)) is None
    return folder


def test_a_run_in_a_store_is_the_run_on_a_disk(
    whole, tiny, place, assert_same_run, tmp_path, capsys
):
    """It is written, read by commands on another machine, not run again, and not overwritten."""
    run, address = tiny(out=place, samples=("a model",), sample_tokens=4), f"{place}/tiny"
    result = loop.run(run)
    assert result.folder == address and result.val == whole[1].val
    names = objects.listing(address)
    assert {"config.json", "env.json", "metrics.jsonl", "loss.png", "result.json"} <= set(names)
    assert {"samples/00000006.txt", "samples/00000012.txt"} <= set(names)
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert staging.LOCK not in names and not any("tmp" in name for name in names)
    assert checkpoint.steps(fetched(run) / "checkpoints") == [9, 12]
    assert_same_run(whole[0], run)
    forget()
    assert directory.load(address) == train_run._run(f"{address}/config.json") == run
    saved, right = jaxlm.load(address), jaxlm.load(runs.folder(whole[0]))
    same = jax.tree.map(np.array_equal, saved.params, right.params)
    assert saved.step == 12 and all(jax.tree.leaves(same))
    capsys.readouterr()
    assert main.main(["plot", address]) == 0 and f"{address}/loss.png" in capsys.readouterr().out
    assert main.main(["plot", f"{place}/absent"]) == 2
    assert f"{place}/absent is no run directory" in capsys.readouterr().err
    names = objects.listing(address)
    forget()
    assert loop.run(run) == result and objects.listing(address) == names
    assert f"{address} is finished: 12 steps" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds a run with seed=0, this one has seed=3"):
        loop.run(dataclasses.replace(run, seed=3))
    assert initial_weights.check(dataclasses.replace(run, name="next", start=address)) == []


@pytest.mark.slow
def test_commands_read_a_run_in_a_store(tiny, place, tmp_path, capsys):
    run, address = tiny(out=place), f"{place}/tiny"
    loop.run(run)
    forget()
    for command in (
        ["eval", address],
        ["sample", address, "--max-new", "2"],
        ["export", address, str(tmp_path / "hf"), "--no-tokenizer"],
    ):
        assert main.main(command) == 0, capsys.readouterr().err
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    assert loop.run(dataclasses.replace(run, name="next", start=address)).step == 12
    assert trained_weights.begun(f"{place}/next")["folder"] == address


def test_runs_in_a_store_are_listed_as_on_a_disk(whole, place, capsys):
    """`jaxlm list gs://...` took the URL for a folder, and said that no runs are there."""
    folder = runs.folder(whole[0])
    ((_, state),) = [row for row in listing.runs(folder.parent) if row[0] == str(folder)]
    assert state.startswith("finished, ")
    for file in io.files(folder):
        objects.upload(file, f"{place}/deep/tiny/{file.relative_to(folder).as_posix()}")
    objects.upload(folder / "config.json", f"{place}/begun/config.json")
    objects.write(f"{place}/deep/tiny/tokenizer/config.json", b"{}")  # no run's
    objects.write(f"{place}/torn/config.json", b"{")
    assert main.main(["list", f"{place}/"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "runs" and [line.split()[0] for line in lines[1:]] == [
        f"{place}/begun",
        f"{place}/deep/tiny",
        f"{place}/torn",
    ]
    assert lines[2].endswith(state) and "not finished, 12 steps wanted" in lines[1]
    assert f"damaged: {place}/torn/config.json" in lines[3]
    assert main.main(["list", f"{place}/deep/tiny"]) == 0
    assert capsys.readouterr().out.endswith(state + "\n")
    assert main.main(["list", f"{place}/none"]) == 0
    assert capsys.readouterr().out == "runs\n  none here\n"


def attempt(run, monkeypatch, fatal, carried_out):
    """Train with a store that fails at its n-th operation; whether the run ended before that."""
    with monkeypatch.context() as patch:
        Faulty(patch, fatal, carried_out)
        try:
            loop.run(run)
        except (OSError, ValueError) as error:
            assert "memory://" in str(error)
            return False
    return True


def operations(run, monkeypatch):
    """The number of operations of a whole run."""
    with monkeypatch.context() as patch:
        store = Faulty(patch, 10**9)
        loop.run(run)
    return store.count


def recover(tiny, place, monkeypatch, whole, assert_same_run, fatal):
    """Kill a run at an operation, go on with it on another machine or on the same one."""
    run = tiny(out=f"{place}/{fatal}")
    ended = attempt(run, monkeypatch, fatal, carried_out=fatal % 2 == 0)
    if fatal % 3:
        forget()
    assert loop.run(run).val == whole[1].val
    fetched(run)
    assert_same_run(whole[0], run)
    sweepings = [n for n in objects.listing(f"{run.out}/tiny") if "corrupt" in n or "tmp" in n]
    assert not sweepings
    return ended


def test_a_run_recovers_from_a_store_that_fails(tiny, place, monkeypatch, whole, assert_same_run):
    """In the upload of its second checkpoint; the slow test takes every operation."""
    assert not recover(tiny, place, monkeypatch, whole, assert_same_run, 70)


@pytest.mark.slow
def test_a_run_recovers_from_every_operation(tiny, place, monkeypatch, whole, assert_same_run):
    """From 8 of them, evenly; JAXLM_MATRIX=1000 takes all, 4 s of CPU each."""
    count = operations(tiny(out=place), monkeypatch)
    cases = min(count, int(os.environ.get("JAXLM_MATRIX", 8)))
    for fatal in np.linspace(1, count, cases).astype(int):
        recover(tiny, place, monkeypatch, whole, assert_same_run, int(fatal))


@pytest.mark.slow
def test_a_branch_goes_on_from_a_trunk_in_a_store(tiny, place, assert_same_run):
    optim = optimizer.Optim(lr=1e-2, warmup=2, schedule="wsd", decay=0.25)
    kept = runs.Checkpoint(every=100, at=(9,))
    loop.run(tiny(out=place, name="trunk", optim=optim, steps=16, checkpoint=kept))
    whole = tiny(name="whole", optim=optim)
    loop.run(whole)
    forget()
    branch = dataclasses.replace(whole, out=place, name="branch", trunk=f"{place}/trunk")
    assert loop.run(branch).step == 12
    assert "checkpoints/12/manifest.json" in objects.listing(f"{place}/branch")
    fetched(branch)
    assert_same_run(whole, branch)


def test_a_damaged_checkpoint_in_a_store_is_set_aside(whole, tiny, place, capsys, assert_same_run):
    """The one before is gone on from; the damaged one keeps another name, in the store too."""
    run, address = tiny(out=place), f"{place}/tiny"
    loop.run(run)
    part = next(n for n in objects.listing(f"{address}/checkpoints/12/params") if "/d/" in n)
    objects.write(f"{address}/checkpoints/12/params/{part}", b"damaged")
    objects.remove(address, ["result.json"])
    forget()
    loop.run(run)
    printed = capsys.readouterr()
    assert f"{address}/checkpoints/12.corrupt was set aside" in printed.err
    assert "resuming at step 9" in printed.out
    assert objects.read(f"{address}/checkpoints/12.corrupt/params/{part}") == b"damaged"
    fetched(run)
    assert_same_run(whole[0], run)


# --- Several processes, in a store that they share: fsspec's of local files -------------------


@pytest.fixture
def store(tiny, home, tmp_path):
    """A function that starts `jaxlm train` over two devices, on one machine or on two that share a
    store and no files; what it prints, once it has ended well."""
    run = tiny(out="local://store/runs")
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, fsdp=2))
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict(run)))
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    flags += ["--xla_force_host_platform_device_count="]

    def start(name, machine, devices, **more):
        environment = os.environ | {
            "PYTHONPATH": str(pathlib.Path(__file__).parents[3]),
            "XLA_FLAGS": " ".join(flags) + str(devices),
            "XDG_CACHE_HOME": str(tmp_path / machine),
            "JAXLM_HUGEPAGES": "0",
            "FSSPEC_LOCAL_AUTO_MKDIR": "true",
            **more,
        }
        command = [sys.executable, "-m", "jaxlm", "train", "run.json", "--name", name]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(name, *machines):
        if len(machines) == 1:
            processes = [start(name, machines[0], 2)]
        else:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            peers = [f"localhost:{port}/2/{i}" for i in range(2)]
            processes = [
                start(name, machine, 1, JAXLM_DISTRIBUTED=peer)
                for machine, peer in zip(machines, peers, strict=True)
            ]
        printed = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(machines), printed
        return printed[0]

    train.folder = tmp_path / "store" / "runs"
    return train


@pytest.mark.parametrize(
    "shape, chunks, axes, own",
    [
        ((8, 6), (2, 6), ("a", "b"), (0, 1)),  # rows in other parts than they were written
        ((8, 6), (3, 4), ("a", "b"), (5,)),  # that do not divide
        ((8, 6), (8, 1), (None, "b"), (3, 7)),
        ((8, 6), (4, 3), (None, None), (2,)),  # a copy everywhere
        ((), (), (), (4,)),
    ],
)
def test_a_process_fetches_the_files_of_its_devices(tmp_path, shape, chunks, axes, own):
    """Every element says which file it is in; a device's elements name the files it reads."""
    (tmp_path / "params" / "a.b").mkdir(parents=True)
    (tmp_path / "params" / "a.b" / ".zarray").write_text(json.dumps({"chunks": chunks}))
    grids = [range(-(-n // c)) for n, c in zip(shape, chunks, strict=True)]
    names = {".".join(map(str, at)) or "0" for at in itertools.product(*grids)}
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    devices = [jax.devices()[number] for number in own]
    held = {d: index for d, index in where.devices_indices_map(shape).items() if d in devices}
    places = SimpleNamespace(addressable_devices_indices_map=lambda _: held)
    leaf = SimpleNamespace(shape=shape, sharding=places)
    reads = integrity.read_by_this_process(tmp_path, {"params": {"a": {"b": leaf}}})
    element = np.empty(shape, object)
    for at in np.ndindex(*shape):
        element[at] = ".".join(str(i // c) for i, c in zip(at, chunks, strict=True)) or "0"
    want = {name for index in held.values() for name in np.atleast_1d(element[index]).ravel()}
    assert {name for name in names if reads(f"params/a.b/{name}")} == want
    # neither notes nor what is not known are left out
    assert all(map(reads, ["params/a.b/.zarray", "params/_METADATA", "params/d/0", "train/a.b/9"]))


@pytest.mark.slow
def test_two_machines_write_one_checkpoint_and_others_go_on_from_it(store):
    """Each uploads the arrays of its own device. What two wrote one reads, and what one wrote two,
    with the losses of a run that was never moved. Each of two fetches and verifies the parts of its
    own device alone, and both leave a checkpoint of which one of them finds a part damaged."""
    store("pair", "a", "b")
    checkpoints = store.folder / "pair" / "checkpoints"
    files = json_file.read_object(checkpoints / "12" / "manifest.json")["files"]
    assert {f"params/array_metadatas/process_{i}" for i in range(2)} <= set(files)
    for name, (size, digest) in files.items():
        file = checkpoints / "12" / name
        assert file.stat().st_size == size and io.sha256(file) == digest
    assert not (store.folder / "pair" / "lock").exists()
    assert not list(checkpoints.glob("*/manifest.*.json"))
    right = metrics.deterministic(store.folder / "pair" / metrics.FILE)
    listed = json_file.read_object(checkpoints / "9" / "manifest.json")["files"]
    for machines in (["c"], ["d", "e"]):
        (checkpoints / "12" / "manifest.json").unlink()
        (store.folder / "pair" / "result.json").unlink()
        assert "resuming at step 9" in store("pair", *machines)
        again = metrics.deterministic(store.folder / "pair" / metrics.FILE)
        assert len(again) == len(right)
        for a, b in zip(again, right, strict=True):
            assert a.pop("split") == b["split"]
            assert a == pytest.approx({n: x for n, x in b.items() if n != "split"}, rel=1e-6)
    sizes = []
    for machine in ("d", "e"):
        (copy,) = (store.folder.parents[1] / machine).rglob("checkpoints/9")
        files = {f.relative_to(copy).as_posix(): f.stat().st_size for f in io.files(copy)}
        sizes.append(sum(n for name, n in files.items() if integrity.is_part(name)))
    whole = sum(n for name, (n, _) in listed.items() if integrity.is_part(name))
    # all matrices are split in two; the key, the step and the counts of the optimiser are not
    assert all(0 <= size - whole / 2 < 200 for size in sizes)

    (copy,) = (store.folder.parents[1] / "e").rglob("checkpoints/9")
    names = {f.relative_to(copy).as_posix() for f in io.files(copy)}
    (other,) = (store.folder.parents[1] / "d").rglob("checkpoints/9")
    part = next(n for n in sorted(names) if integrity.is_part(n) and not (other / n).exists())
    for folder in (checkpoints / "12", copy.parent / "12"):
        (folder / part).write_bytes(b"damaged")
    (store.folder / "pair" / "result.json").unlink()
    printed = store("pair", "d", "e")
    assert "checkpoints/12.corrupt was set aside; training goes on from step 9" in printed
