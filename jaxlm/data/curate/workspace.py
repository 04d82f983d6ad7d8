"""Work folder of curations: files named after what decides them, each whole or absent.

    texts/KEY       texts of a shard, a JSON string a line; KEY is their hash
    read/KEY        shards that a part of a source was cut into, JSON
    scores/KEY      scores of a shard, an object a line, after a line with the texts that result
    arrays/KEY/     arrays of a shard, NAME.npy each

What is there already is never made again, so that a recipe that was killed goes on, and a recipe
with other thresholds scores nothing. Nothing is ever removed: delete the folder to free the disk.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import io


class Workspace(NamedTuple):
    """Files of intermediate results below `root`."""

    root: str

    def path(self, kind: str, key: str) -> pathlib.Path:
        """The path of a file; its folder is there."""
        path = pathlib.Path(self.root, kind, key[:2], key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def has(self, kind: str, key: str) -> bool:
        """Whether a file is there."""
        return pathlib.Path(self.root, kind, key[:2], key).exists()

    def put_texts(self, texts: Sequence[str]) -> str:
        """The key under which the texts are stored. Raises: WriteError."""
        content = _lines(texts)
        key = hashlib.sha256(content).hexdigest()[:24]
        if not self.has("texts", key):
            io.write_bytes(self.path("texts", key), content)
        return key

    def texts(self, key: str) -> list[str]:
        """The texts of a shard."""
        return _values(self.path("texts", key).read_bytes())

    def put_json(self, kind: str, key: str, value: Any) -> None:
        """Store a JSON value. Raises: WriteError."""
        io.write(self.path(kind, key), json.dumps(value, ensure_ascii=False))

    def json(self, kind: str, key: str) -> Any:
        """A JSON value that was stored."""
        return json.loads(self.path(kind, key).read_bytes())

    def put_scores(self, key: str, scores: Sequence[Mapping[str, Any]], texts: str) -> None:
        """Store the scores of a shard, and the key of its texts after the step. Raises:
        WriteError."""
        io.write_bytes(self.path("scores", key), _lines([texts, *scores]))

    def scored_texts(self, key: str) -> str:
        """The key of a shard's texts after the step that made these scores."""
        with self.path("scores", key).open("rb") as file:
            return json.loads(file.readline())

    def scores(self, key: str) -> list[dict[str, Any]]:
        """The scores of a shard, by document."""
        return _values(self.path("scores", key).read_bytes())[1:]

    def put_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the arrays of a shard; the last file to appear says that all are there. Raises:
        WriteError."""
        folder = self.path("arrays", key)
        folder.mkdir(exist_ok=True)
        for name, array in arrays.items():
            if not (folder / f"{name}.npy").exists():
                io.put(folder / f"{name}.npy", lambda file, array=array: np.save(file, array))
        self.put_json("arrays", f"{key}.json", sorted(arrays))

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of a shard, mapped from the disk."""
        folder = self.path("arrays", key)
        names = self.json("arrays", f"{key}.json")
        # an ndarray over the mapped memory: slices of a memmap take ten times as long
        return {n: np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r")) for n in names}


def _lines(values: Sequence[Any]) -> bytes:
    encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would build one a line
    return "".join(f"{encode(value)}\n" for value in values).encode()


def _values(content: bytes) -> list[Any]:
    # one call for all lines takes a third of the time; JSON has no line break within a value
    return json.loads(b"[" + content.rstrip(b"\n").replace(b"\n", b",") + b"]")
