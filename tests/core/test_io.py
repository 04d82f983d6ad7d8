"""What killed processes leave is removed, and nothing of processes that live."""

import os
import pathlib
import platform
import signal
import subprocess
import sys
import uuid

import pytest

from jaxlm.core import atomic, io

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
