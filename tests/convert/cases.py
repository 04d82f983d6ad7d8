"""Every family's oracles (tests/families), and the random weights that their names decide.

A tensor is a function of the case's name, its own name and its shape, in NumPy: whoever knows these
has the same checkpoint, with transformers or without.
"""

import importlib
import re
import zlib
from typing import Any

import numpy as np

from jaxlm import models
from jaxlm.ops import rope

_FILES = [importlib.import_module(f"tests.families.{name}") for name in models.FAMILIES]
_TABLES = [vars(file)["ORACLES"] for file in _FILES if "ORACLES" in vars(file)]
ORACLES: dict[str, dict[str, Any]] = {case: r for table in _TABLES for case, r in table.items()}
assert len(ORACLES) == sum(map(len, _TABLES)), "two families name a case alike"

# The first case of each model_type.
FIRST = {r["model_type"]: case for case, r in reversed(ORACLES.items())}

NORM = re.compile(r"(norm|ln|ln_\w+)\.weight$", re.IGNORECASE)


def draw(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 weights of a tensor: N(0, 0.15), about 1 for the scale of a norm."""
    rng = np.random.default_rng(zlib.crc32(f"{case}/{name}".encode()))
    return (0.15 * rng.standard_normal(shape) + bool(NORM.search(name))).astype(np.float32)


def tokens(case: str, rows: int, length: int, vocab: int) -> np.ndarray:
    """int32[rows, length] random ids, none of them the special first ones."""
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    return rng.integers(4, vocab, (rows, length)).astype(np.int32)


def by_length(cfg: models.AnyConfig) -> bool:
    """Whether transformers turns positions by the length of each call (Dynamic, LongRope), which
    here the config's context decides: such a case agrees at that length alone."""
    return any(isinstance(v, rope.Dynamic | rope.LongRope) for v in vars(cfg).values())
