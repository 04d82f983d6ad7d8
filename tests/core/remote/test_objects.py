"""URLs, objects of fsspec's store in memory, local copies, and the lock that is renewed."""

import json
import os
import pathlib
import threading
import time

import fsspec
import pytest

from jaxlm.core import io
from jaxlm.core.remote import lease, objects, staging
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from tests.train.run.test_problems import BASE


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The URL of a run directory in an empty store."""
    monkeypatch.setattr(staging, "root", lambda: tmp_path / "copies")
    return f"memory://{tmp_path.name}/runs/first"


@pytest.mark.parametrize(
    "place, url",
    [
        ("gs://bucket/runs", "gs://bucket/runs"),
        ("s3://bucket/runs/", "s3://bucket/runs"),
        (pathlib.Path("gs://bucket/runs"), "gs://bucket/runs"),
        ("runs/first", None),
        ("/runs/first", None),
        ("~/runs", None),
        ("a:b/c", None),
        ("C:/runs", None),
        ("file:///runs", None),
    ],
)
def test_urls_are_told_from_paths(place, url):
    """pathlib takes one of the slashes out of gs://, and such a run was written to ./gs:/."""
    assert objects.url(place) == url


def test_a_path_and_its_url_are_one(place):
    folder = staging.copy_of(place, "read")
    assert staging.origin(folder) == place and staging.named(f"in {folder}: x") == f"in {place}: x"
    assert staging.origin(pathlib.Path("runs/first")) is None


def test_an_object_is_created_once_and_replaced_whole(place):
    assert objects.read(f"{place}/a") is None and objects.listing(place) == {}
    assert objects.create(f"{place}/a", b"1") and not objects.create(f"{place}/a", b"2")
    objects.write(f"{place}/b/c", b"345")
    assert objects.listing(place) == {"a": 1, "b/c": 3} and objects.read(f"{place}/a") == b"1"
    objects.copy(place, f"{place}/d", ["b/c"])
    objects.remove(place, ["a", "b/c", "never there"])
    assert objects.listing(place) == {"d/b/c": 3}


@pytest.mark.parametrize(
    "address, error, words",
    [
        ("s3://bucket/x", ImportError, r"s3:// needs s3fs: pip install 'jaxlm\[s3\]'"),
        ("gs://bucket/x", ImportError, r"gs:// needs gcsfs: pip install 'jaxlm\[gcs\]'"),
        ("gone://bucket/x", ValueError, "gone://bucket/x: fsspec knows no such scheme"),
        ("https://bucket/x", ValueError, "https:// cannot be written; gs:// or s3:// can"),
    ],
)
def test_what_is_missing_is_named_before_compute(address, error, words, monkeypatch):
    def absent(*args, **named):
        raise ImportError("Install it")

    if error is ImportError:
        monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(error, match=words):
        objects.listing(address)
    with pytest.raises(ValueError, match=f"out: .*{words}"):
        runs.validate(runs.dataclasses.replace(BASE, out=address))


def test_a_bucket_that_is_not_there_is_named(place, monkeypatch):
    def absent(*args, **named):
        raise FileNotFoundError("The specified bucket does not exist")

    for name in ("find", "pipe_file"):
        monkeypatch.setattr(fsspec.get_filesystem_class("memory"), name, absent)
    words = f"{place}/lock: FileNotFoundError: The specified bucket does not exist"
    with (
        pytest.raises(objects.StoreError, match=words),
        directory.held(staging.copy_of(place, "write-0"), True),
    ):
        pass


def test_errors_of_a_store_are_a_line_with_its_url(place, monkeypatch):
    """Each library has exceptions of its own, which are no OSError."""

    class NoCredentialsError(Exception):
        pass

    def refuse(*args, **named):
        raise NoCredentialsError("Unable to locate credentials\nmore")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", refuse)
    file = staging.copy_of(place, "write-0") / "config.json"
    file.parent.mkdir(parents=True)
    with pytest.raises(io.WriteError) as error:
        io.write(file, "{}")
    assert str(error.value) == (
        f"cannot write {place}/config.json: {place}/config.json: NoCredentialsError: Unable to "
        "locate credentials"
    )


def test_a_copy_is_what_the_store_has(place):
    """Arrays of checkpoints are fetched when they are wanted; what the store no longer has, or
    never had, goes."""
    manifest = b'{"files": {"params/a": [2, ""]}}'
    for name, content in {
        "config.json": b"{}",
        "samples/1.txt": b"s",
        "checkpoints/3/manifest.json": manifest,
        "checkpoints/3/params/a": b"aa",
        "checkpoints/6/params/a": b"never committed",
    }.items():
        objects.write(f"{place}/{name}", content)
    folder = staging.copy_of(place, "write-0")
    for name in ("result.json", "checkpoints/9/manifest.json", "checkpoints/9/params/b", "lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left")
    staging.refresh(folder)
    names = {p.relative_to(folder).as_posix() for p in io.files(folder)}
    assert names == {"config.json", "checkpoints/3/manifest.json", "lock"}
    assert not (folder / "checkpoints/9").exists()
    staging.complete(folder / "checkpoints/3", {"params/a": 2})
    assert (folder / "checkpoints/3/params/a").read_bytes() == b"aa"
    staging.refresh(folder)
    assert (folder / "checkpoints/3/params/a").is_file()
    staging.sweep(folder / "checkpoints")
    assert "checkpoints/6/params/a" not in objects.listing(place)
    staging.withdraw(folder / "checkpoints/3")
    assert set(objects.listing(place)) == {"config.json", "samples/1.txt"}


def test_a_checkpoint_is_withdrawn_manifest_first(place, monkeypatch):
    removed, remove = [], objects.remove
    monkeypatch.setattr(objects, "remove", lambda a, n: (removed.extend(n), remove(a, n)))
    for name in ("a/x", "manifest.json", "z"):
        objects.write(f"{place}/checkpoints/3/{name}", b"")
    staging.withdraw(staging.copy_of(f"{place}/checkpoints/3", "write-0"))
    assert removed[0] == "manifest.json" and objects.listing(place) == {}


# --- The lock --------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.02)
    monkeypatch.setattr(lease, "WATCH", 0.05)
    monkeypatch.setattr(lease, "LEASE", 0.3)


def test_two_writers_are_refused_and_the_second_gets_it_afterwards(place, quick):
    folder = staging.copy_of(place, "write-0")
    with lease.held(folder) as confirm:
        confirm()
        used = pytest.raises(BlockingIOError, match=f"{place} is in use by process {os.getpid()} ")
        with used, lease.held(folder):
            pass
        confirm()
    assert objects.listing(place) == {}
    with lease.held(folder):
        pass


def test_a_lock_without_a_sign_of_life_is_taken_over(place, quick):
    """Of another machine's process nothing is known but that it no longer renews its lock."""
    objects.write(f"{place}/lock", b'{"owner": "x", "host": "other", "process": 7}')
    clock = time.monotonic()
    with lease.held(staging.copy_of(place, "write-0")) as confirm:
        confirm()
    assert time.monotonic() - clock >= 0.3


def test_a_dead_process_of_this_machine_is_known_at_once(place, quick, monkeypatch):
    monkeypatch.setattr(lease, "LEASE", 1000.0)
    dead = {"owner": "x", "processes": lease._processes(), "process": 2**22 + 1, "started": 1}
    objects.write(f"{place}/lock", json.dumps(dead).encode())
    with lease.held(staging.copy_of(place, "write-0")):
        pass


def test_an_owner_that_was_stopped_too_long_commits_no_more(place, quick, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 1000.0)
    with lease.held(staging.copy_of(place, "write-0")) as confirm:
        objects.write(f"{place}/lock", b'{"owner": "y", "host": "other", "process": 7}')
        with pytest.raises(objects.StoreError, match="taken over by process 7 on other"):
            confirm()
    assert "lock" in objects.listing(place)  # the other's, which is not ours to remove
    assert threading.active_count() < 20


def test_a_local_folder_has_no_such_lock(tmp_path):
    with lease.held(tmp_path) as confirm:
        confirm()
    assert list(tmp_path.iterdir()) == []
