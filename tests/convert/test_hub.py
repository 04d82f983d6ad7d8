"""Checkpoints of the Hugging Face hub, which here is a function in its place."""

import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import types

import huggingface_hub
import pytest
from huggingface_hub import errors

from jaxlm.cli import main
from jaxlm.convert import read
from jaxlm.data import pretraining
from jaxlm.train import initial_weights, trained_weights
from jaxlm.train.run import checkpoint
from jaxlm.train.run import run as runs
from tests.convert.test_checkpoint import equal
from tests.convert.test_pretrained import CFG, failure, hf, place

__all__ = ["hf", "place"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def requests(hf, place, monkeypatch):
    """What the hub is asked for: it has one repository, org/name, whose only revision is main."""
    requests, snapshot = [], place / "hub" / COMMIT
    shutil.copytree(hf, snapshot)

    def download(repository, revision, allow_patterns, ignore_patterns):
        requests.append((repository, revision))
        answer = types.SimpleNamespace(headers={}, request=None)
        if repository != "org/name":
            raise errors.RepositoryNotFoundError("404", response=answer)
        if revision not in (None, "main"):
            raise errors.RevisionNotFoundError("404", response=answer)
        assert "*.safetensors" in allow_patterns and ignore_patterns == ["*/*"]
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return requests


@pytest.mark.parametrize("name", ["hf://org/name", "hf://org/name@main", "org/name"])
def test_a_checkpoint_on_the_hub_is_imported_and_its_commit_recorded(hf, requests, name):
    assert main.main(["import", name, "runs/given"]) == 0
    assert requests == [("org/name", "main" if "@" in name else None)]
    facts = checkpoint.facts("runs/given/checkpoints", 0)
    assert facts["imported"] == "hf://org/name" and facts["revision"] == COMMIT
    assert json.loads(pathlib.Path("runs/given/env.json").read_text())["revision"] == COMMIT
    assert equal(trained_weights.load("runs/given").params, read.load(hf)[1])


def test_a_name_that_may_be_a_folder_makes_no_request(hf, place, requests, capsys):
    """A folder of that name is taken; where only the folder above it is there, the name is a path
    with a typing error in it, and goes to nobody."""
    shutil.copytree(hf, "org/name")
    assert main.main(["import", "org/name", "runs/given"]) == 0
    assert checkpoint.facts("runs/given/checkpoints", 0)["imported"] == "org/name"
    assert "org/other is not a checkpoint" in failure(capsys, "import", "org/other", "runs/b")
    assert "x/y is not a checkpoint" in failure(capsys, "import", str(place / "x/y"), "b")
    assert requests == []
    assert main.main(["import", "hf://org/name", "runs/hub"]) == 0
    assert requests == [("org/name", None)]


def test_what_the_hub_does_not_have_is_a_line(requests, capsys):
    assert "hf://a/b: no such repository" in failure(capsys, "import", "a/b", "runs/x")
    line = failure(capsys, "import", "hf://org/name@v9", "runs/x")
    assert "hf://org/name@v9: the repository has no revision 'v9'" in line
    assert not pathlib.Path("runs").exists()
    run = dataclasses.replace(
        runs.Run(name="x", model=CFG, data=pretraining.Data("corpus.jsonl")), start="hf://a/b@v1"
    )
    with pytest.raises(ValueError, match="start: hf://a/b@v1 .* `jaxlm import hf://a/b@v1 runs/b`"):
        initial_weights.check(run)


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of the hub that a download asks for: a repository's files, and each of them.
    `folder` has the files."""

    folder: pathlib.Path

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, complete):
        path = self.path.partition("?")[0]
        names = sorted(p.name for p in self.folder.iterdir() if p.is_file())
        if path.startswith("/api/models/org/name/revision/"):
            files = [{"rfilename": name} for name in [*names, "onnx/model.safetensors"]]
            record = {"id": "org/name", "sha": COMMIT, "siblings": files, "private": False}
            return self.send(json.dumps(record).encode(), "application/json", complete)
        if path.startswith("/api/models/org/name/tree/"):
            tree = [
                {"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n}
                for n in names
            ]
            return self.send(json.dumps(tree).encode(), "application/json", complete)
        name = path.rpartition("/")[2]
        if path.startswith("/org/name/resolve/") and name in names:
            return self.send(
                (self.folder / name).read_bytes(), "application/octet-stream", complete
            )
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content, kind, complete):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if complete:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.mark.slow
def test_the_library_itself_fetches_from_a_server(hf, place):
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    handler = type("Handler", (Hub,), {"folder": hf})
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "HF_ENDPOINT": f"http://localhost:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(place / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
        }
        command = [sys.executable, "-m", "jaxlm", "import"]
        given, absent = (
            subprocess.run([*command, *args], env=environment, capture_output=True, text=True)
            for args in (["org/name", "runs/given"], ["hf://org/other", "runs/other"])
        )
        server.shutdown()
    assert given.returncode == 0, given.stderr
    assert checkpoint.facts("runs/given/checkpoints", 0)["revision"] == COMMIT
    assert equal(trained_weights.load("runs/given").params, read.load(hf)[1])
    assert not list((place / "home").rglob("onnx"))
    assert absent.returncode == 2 and "hf://org/other: no such repository" in absent.stderr
