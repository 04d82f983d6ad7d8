"""Random choices that depend on what they are for, and on nothing before them: a record's draws are
the same in any order, batch or resumed run."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def seed(*parts: Any) -> int:
    """A number in [0, 2**32) that these JSON values decide."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")


def distinct(options: Sequence[T], count: int, *parts: Any) -> list[T]:
    """`count` different options in an order that the parts decide, all orders alike likely.

    Raises: ValueError if there are fewer.
    """
    if count > len(options):
        raise ValueError(f"{count} of {len(options)} options cannot be drawn without repeating")
    ranked = sorted(range(len(options)), key=lambda i: (seed(*parts, i), i))
    return [options[i] for i in ranked[:count]]
