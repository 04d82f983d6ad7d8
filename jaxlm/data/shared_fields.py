"""Problems of the fields that every kind of data has."""

from collections.abc import Iterator
from typing import Any

from jaxlm.core import check


def problems(data: Any, shortest: int) -> Iterator[str]:
    """Problems of source, tokenizer, holdout, seq (at least `shortest`), batch, seed and workers,
    and of every field with a list of values."""
    for name in ("source", "tokenizer"):
        value = getattr(data, name)
        yield from check.problem(f"data.{name}", value, bool(value), "a name or path")
    yield from check.choices("data", data)
    yield from check.outside("data", data, "holdout", least=0, below=1)
    yield from check.outside("data", data, "seq", least=shortest)
    yield from check.outside("data", data, "batch", least=1)
    yield from check.outside("data", data, "seed", least=0, below=2**32)
    yield from check.outside("data", data, "workers", least=0)
