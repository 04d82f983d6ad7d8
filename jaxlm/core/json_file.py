"""JSON on the disk: errors that name the file, numbers that are not finite, checksums.

JSON has no NaN and no infinity. Such a number is stored as null, and its record names
the value it had, so that it is never mistaken for one that is absent:

    {"nll": null, "tokens": 64, "not_finite": {"nll": "nan"}}
"""

import hashlib
import json
import math
import pathlib
from typing import Any

Record = dict[str, Any]

NOT_FINITE, SEAL = "not_finite", "sha256"

# The most that a JSON file may have; large vocabularies take 40 MB.
BYTES = 300_000_000


class Damaged(ValueError):
    """A file is there and does not hold what was written. The message names it and the reason."""


def parse(content: str | bytes, where: str) -> Any:
    """The value of a JSON text. Raises: Damaged naming `where` it is from and what is wrong."""
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise Damaged(
            f"{where}: not UTF-8 text (byte 0x{error.object[error.start]:02x})"
        ) from error
    except ValueError as error:
        if not content.strip():
            raise Damaged(f"{where}: empty, where JSON is needed") from error
        raise Damaged(f"{where}: not JSON ({error})") from error
    except RecursionError as error:
        raise Damaged(f"{where}: JSON nested too deeply to be read") from error


def read(path: pathlib.Path) -> Any:
    """The value in a JSON file.

    Raises: Damaged naming it, also where it has more than BYTES; OSError if it cannot be opened.
    """
    if (size := path.stat().st_size) > BYTES:
        raise Damaged(f"{path} has {size} bytes; at most {BYTES} are read")
    return parse(path.read_bytes(), str(path))


def read_object(path: pathlib.Path) -> Record:
    """The object in a JSON file, its checksum verified if it has one and left out. Raises: as
    `read`."""
    value = read(path)
    if not isinstance(value, dict):
        raise Damaged(f"{path}: a JSON {type(value).__name__}, where an object is needed")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != digest(value):
        raise Damaged(f"{path}: not what was written (its SHA-256 differs)")
    return value


def sealed(record: Record) -> str:
    """A JSON text with a checksum of itself, which `read_object` verifies."""
    record = plain(record)
    return json.dumps(record | {SEAL: digest(record)}, indent=1, allow_nan=False) + "\n"


def digest(record: Record) -> str:
    """The SHA-256 of a record, in hex, whatever the order of its fields."""
    # through JSON: a tuple and the list that is read back are the same
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def plain(record: Record) -> Record:
    """The record with only what JSON can hold: see above."""
    odd = {
        name: str(float(value))
        for name, value in record.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    finite = {name: None if name in odd else _plain(value) for name, value in record.items()}
    return finite | ({NOT_FINITE: odd} if odd else {})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    # a list has no names to say which it was
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(record: Record, name: str) -> float | None:
    """A number of a record that `plain` made or not, NaN and infinities as they were; None for one
    that is absent. A null of unknown meaning, as earlier versions wrote it, is NaN for `nll` and
    `loss`, which are never left out."""
    value = record.get(name)
    if value is not None:
        return float(value)
    if name in record.get(NOT_FINITE, {}):
        return float(record[NOT_FINITE][name])
    return math.nan if name in record and name in ("nll", "loss") else None
