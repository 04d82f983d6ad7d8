"""Tokenised text of a run, by split: of one source, or of all sources of a mixture."""

import hashlib
from collections.abc import Sequence
from typing import Any

from jaxlm.core import check
from jaxlm.data.tokenized import shards

# One split of a source; of a mixture, of each source by name.
Text = shards.Shards | dict[str, shards.Shards]


def parts(text: Text) -> dict[str, shards.Shards]:
    """The sources by name; one that is no mixture has the name ""."""
    return text if isinstance(text, dict) else {"": text}


def refuse_copies(text: Text) -> None:
    """Raises: ValueError if two sources of a mixture hold the same."""
    seen: dict[str, str] = {}
    for name, split in parts(text).items():
        other = seen.setdefault(split.manifest.fingerprint, name)
        fits = f"another text: it holds what {other!r} holds, and both weights would be of one"
        check.field(f"data.mix: {name!r}", split.manifest.source, other == name, fits)


def facts(train: Text) -> dict[str, Any]:
    """JSON that decides the rows of a split, along with the run's data."""
    if isinstance(train, dict):
        return {"mix": {name: facts(split) for name, split in train.items()}}
    return {
        "fingerprint": train.manifest.fingerprint,
        "tokenizer": train.manifest.tokenizer,
        "holdout": train.manifest.holdout,
        "documents": train.documents,
        "tokens": train.tokens,
    }


def corpus(train: Text) -> dict[str, Any]:
    """The source of a split, as env.json records it. A mixture has the sums and a fingerprint of
    its sources, and these under "mix"."""
    if not isinstance(train, dict):
        return {
            "source": train.manifest.source,
            "fingerprint": train.manifest.fingerprint,
            "python": train.manifest.python,
            "tokenizer": train.manifest.tokenizer,
            "tokenizer_kind": train.manifest.tokenizer_kind,
            "train_tokens": train.tokens,
            "train_bytes": train.bytes,
        }
    of = {name: corpus(split) for name, split in train.items()}
    first = next(iter(of.values()))
    return {
        "source": f"mix of {', '.join(of)}",
        "fingerprint": _together([part["fingerprint"] for part in of.values()]),
        "python": next((part["python"] for part in of.values() if part["python"]), None),
        "tokenizer": first["tokenizer"],
        "tokenizer_kind": first["tokenizer_kind"],
        "train_tokens": sum(part["train_tokens"] for part in of.values()),
        "train_bytes": sum(part["train_bytes"] for part in of.values()),
        "mix": of,
    }


def _together(fingerprints: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(fingerprints).encode()).hexdigest()
