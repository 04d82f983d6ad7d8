"""What killed processes leave is removed, and nothing of processes that live."""

import os
import pathlib
import platform
import signal
import subprocess
import sys
import uuid

import pytest

from jaxlm.convert import pretrained
from jaxlm.core import atomic, io
from jaxlm.data import tokenizers
from jaxlm.data.tokenized import shards

CHILD = """
import os, pathlib, signal, sys, time
from jaxlm.core import io
from jaxlm.core import atomic

place = pathlib.Path(sys.argv[1])

def stop(_):
    print("ready", flush=True)
    time.sleep(60)

with atomic.folder(place / "import") as folder:
    (folder / "half").write_text("x")
    if sys.argv[2] == "folder":
        stop(None)
    io.put(place / "config.json", stop)
"""


@pytest.fixture
def child(tmp_path):
    """A function that starts a process which stands in the middle of its work."""
    running = []

    def begin(what):
        one = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), what], stdout=subprocess.PIPE, text=True
        )
        running.append(one)
        assert one.stdout.readline() == "ready\n"
        return one

    yield begin
    for one in running:
        one.kill()
        one.wait()
        one.stdout.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_leaves_is_swept_by_the_next_in_the_same_place(tmp_path, child):
    """A killed import, export or tokenize left its hidden directory for ever; only the shards'
    cache and a teacher's swept, and only those of the same name."""
    dead, alive = child("file"), child("folder")
    assert len(names(tmp_path)) == 3 and all(n.endswith(".part") for n in names(tmp_path))
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    with atomic.folder(tmp_path / "export") as ours:
        (own,) = [n for n in names(tmp_path) if f".{alive.pid}." in n]
        assert names(tmp_path) == sorted([own, ours.name])
    assert (tmp_path / own / "half").read_text() == "x"
    alive.kill()
    alive.wait()
    io.write(tmp_path / "config.json", "{}")  # a file's writer sweeps too
    assert names(tmp_path) == ["config.json", "export"]


def test_only_what_is_certainly_dead_is_swept(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own, started = os.getpid(), io.start_ticks(os.getpid())
    assert started  # of the tests' system

    def left(node, process, began):
        path = tmp_path / f".x.{node}.{process}.{began}.{uuid.uuid4().hex}.part"
        path.mkdir()
        return path

    here = platform.node()
    kept = [left(here, own, started), left(f"{here}-2", gone.pid, 5), left("other", gone.pid, 5)]
    kept += [tmp_path / ".notes.part", tmp_path / f".x.{here}.{gone.pid}.5.part"]
    for path in kept[3:]:
        path.write_text("somebody's")
    locked = left(here, gone.pid, 5)  # as of a process in another container
    reused = left(here, own, started + 1)  # of a process whose id this one was given later
    with io.held(locked):
        io.sweep(tmp_path)
        assert set(tmp_path.iterdir()) == {*kept, locked}
    assert not reused.exists()
    io.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == set(kept)


def test_a_link_is_removed_and_not_followed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    place = tmp_path / "place"
    place.mkdir()
    link = place / f".x.{platform.node()}.{gone.pid}.5.{uuid.uuid4().hex}.part"
    link.symlink_to(tmp_path / "precious")
    io.sweep(place)
    assert not pathlib.Path(link).is_symlink()
    assert (tmp_path / "precious" / "file").read_text() == "x"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    io.write(tmp_path / "a", "old")
    with pytest.raises(io.WriteError, match="cannot write .*No space left"):

        def full(file):
            file.write(b"ne")
            raise OSError(28, "No space left on device")

        io.put(tmp_path / "a", full)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: io.write(path, "{}"),
        lambda path: io.make_folder(path),
        lambda path: atomic.folder(path).__enter__(),
        lambda path: tokenizers.train("byte_bpe", ["text"], 259, str(path)),
        lambda path: shards.tokenize("x.jsonl", "text", tokenizers.load("bytes"), path, 0.1),
        lambda path: pretrained.export_run("runs/x", path),
    ],
)
def test_a_url_is_no_local_path(tmp_path, monkeypatch, write):
    """pathlib makes the relative path gs:/bucket/x of gs://bucket/x, and a folder `gs:` was made in
    the working directory, with the result in it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="gs://bucket/x given, and a local path is needed here"):
        write(pathlib.Path("gs://bucket/x"))
    assert list(tmp_path.iterdir()) == []
