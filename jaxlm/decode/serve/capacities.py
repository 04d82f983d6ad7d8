"""Room of an engine, and whether a request fits into it."""

import dataclasses

from jaxlm.core import check
from jaxlm.decode import sampling_settings
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models.layers import cache_kinds
from jaxlm.models.model import Model
from jaxlm.ops import attention


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Room of an engine."""

    slots: int = 8
    """Requests that are decoded together."""
    length: int = 1024
    """Tokens of a prompt and its continuation together, at most."""
    short_slots: int = 0
    """Slots beside those, in which texts begin that have at least two tokens less than `short`; one
    that outgrows its short slot goes on in one of the others. They take less memory, and less is
    read of them at every token."""
    short: int = 256
    """Entries of a short slot's cache."""
    together: int = 1
    """Prompts of one chunk that are read together; their products are so large even for one."""
    chunk: int = 64
    """Tokens of a prompt that are read at once; prefixes are shared in whole chunks."""
    steps: int = 4
    """Tokens that are decoded between two looks at the requests."""
    prefix_mib: float = 256.0
    """MiB for the keys and values of prompts that may begin other prompts; 0 keeps none."""
    fixed: int = 0
    """Entries of a cache up to which every program is compiled once: caches have at least so many,
    and chunks are read whole. 0 compiles smaller programs for texts that are shorter, when they
    come."""

    @property
    def room(self) -> int:
        """Entries of a slot's cache when it is largest: of a prompt's last chunk, or the last
        steps, not all are taken."""
        return self._whole(self.length + max(self.chunk, self.steps))

    @property
    def short_room(self) -> int:
        """Entries of a short slot's cache."""
        return self._whole(-(-self.short // self.chunk) * self.chunk)

    def _whole(self, entries: int) -> int:
        """Whole blocks (`ops.attention.BLOCK`), or less than two where no text is longer than
        one."""
        if self.length <= attention.BLOCK:
            return entries + (entries % attention.BLOCK == 0)  # one size, which is no whole block
        return -(-entries // attention.BLOCK) * attention.BLOCK

    def sized(self, entries: int, most: int) -> int:
        """Entries of a cache for so many, in few sizes up to `most`: whole blocks, so that sums
        over entries are the same bits in each size, or one size that is less."""
        blocks = sampling_settings.bucket(-(-max(entries, self.fixed) // attention.BLOCK), 1)
        return most if most % attention.BLOCK else min(attention.BLOCK * blocks, most)

    def columns(self, tokens: int) -> int:
        """Columns of a chunk of so many tokens."""
        whole = self.fixed or tokens == self.chunk
        return self.chunk if whole else sampling_settings.bucket(tokens)

    def width(self, tokens: int) -> int:
        """Columns of a prompt of so many tokens."""
        return sampling_settings.bucket(max(tokens, min(self.fixed, self.length)))

    def __post_init__(self) -> None:
        check.within("capacity", self, "slots", "length", "chunk", "steps", "together", least=1)
        check.within("capacity", self, "prefix_mib", "short_slots", "fixed", least=0)
        if self.short_slots:
            check.within("capacity", self, "short", least=2, most=self.length)


def cached(model: Model, capacity: Capacity) -> Model:
    """The model with the cache that an engine keeps: rings that take a chunk at once."""
    return cache_kinds.windowed(
        model, max(sampling_settings.bucket(capacity.chunk), capacity.steps)
    )


def check_room(tokens: int, sampling: Sampling, capacity: Capacity) -> None:
    """Raises: ValueError for a request of more tokens than capacity.length, with what fits."""
    total, left = tokens + sampling.max_new, capacity.length - tokens
    if left <= 0:
        raise ValueError(
            f"prompt 0: {tokens} tokens given; a slot has {capacity.length}, a new token's place "
            "among them, so the prompt alone is too long"
        )
    if total > capacity.length:
        raise ValueError(
            f"sampling.max_new: {tokens} tokens of the prompt and {sampling.max_new} new ones make "
            f"{total}; a slot has {capacity.length}, so max_new may be at most {left} here"
        )
