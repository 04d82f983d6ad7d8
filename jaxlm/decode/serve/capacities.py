"""Room of an engine, and whether a request fits into it."""

import dataclasses

from jaxlm.core import check
from jaxlm.decode.token_sampling import Sampling
from jaxlm.ops import attention


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Room of an engine."""

    slots: int = 8
    """Requests that are decoded together."""
    length: int = 1024
    """Tokens of a prompt and its continuation together, at most."""
    chunk: int = 64
    """Tokens of a prompt that are read at once; prefixes are shared in whole chunks."""
    steps: int = 4
    """Tokens that are decoded between two looks at the requests."""
    prefix_mib: float = 256.0
    """MiB for the keys and values of prompts that may begin other prompts; 0 keeps none."""

    @property
    def room(self) -> int:
        """Slots a row of the cache when it is largest: of a prompt's last chunk, or the last steps,
        not all are taken. Whole blocks (`ops.attention.BLOCK`), or less than two."""
        tokens = self.length + max(self.chunk, self.steps)
        if self.length <= attention.BLOCK:
            return tokens + (tokens % attention.BLOCK == 0)  # one size, which is no whole block
        return -(-tokens // attention.BLOCK) * attention.BLOCK

    def __post_init__(self) -> None:
        check.within("capacity", self, "slots", "length", "chunk", "steps", least=1)
        check.within("capacity", self, "prefix_mib", least=0)


def check_room(tokens: int, sampling: Sampling, capacity: Capacity) -> None:
    """Raises: ValueError for a request of more tokens than capacity.length, with what fits."""
    total = tokens + sampling.max_new
    if total > capacity.length:
        left = capacity.length - tokens
        fits = f"max_new may be at most {left} here" if left > 0 else "the prompt alone is too long"
        raise ValueError(
            f"sampling.max_new: {tokens} tokens of the prompt and {sampling.max_new} new ones make "
            f"{total}; a slot has {capacity.length}, so {fits}"
        )
