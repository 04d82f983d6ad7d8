"""Keys and values of prompts' chunks, kept for prompts that begin with the same tokens."""

import collections
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from jaxlm.decode.serve.slots import Entries


class Prefixes:
    """Pages by the hash of all tokens up to their end; the page that was used longest ago goes
    first when there is no room."""

    def __init__(self, room: int, chunk: int):
        """room: bytes. chunk: tokens of a page."""
        self.room = room
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._chunk = chunk
        self._pages: collections.OrderedDict[bytes, Entries] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def find(self, prompt: Sequence[int], most: int) -> list[Entries]:
        """The pages of the prompt's first chunks, as many as are kept without a gap."""
        found: list[Entries] = []
        for key in _keys(prompt, self._chunk, most):
            if key not in self._pages:
                break
            self._pages.move_to_end(key)
            found.append(self._pages[key])
        self.hits += len(found)
        self.misses += most - len(found)
        return found

    def add(self, prompt: Sequence[int], number: int, page: Entries) -> None:
        """Keep the page of the prompt's chunk `number`, if a page has room at all."""
        size = _bytes(page)
        if size > self.room:
            return
        key = list(_keys(prompt, self._chunk, number + 1))[-1]
        if key in self._pages:
            return
        while self.bytes + size > self.room:
            _, old = self._pages.popitem(last=False)
            self.bytes -= _bytes(old)
        self._pages[key] = page
        self.bytes += size


def _keys(prompt: Sequence[int], chunk: int, count: int):
    """The hash of the first chunk, of the first two, and so on."""
    chain = b""
    for i in range(count):
        ids = np.asarray(prompt[i * chunk : (i + 1) * chunk], np.int64)
        chain = hashlib.sha256(chain + ids.tobytes()).digest()
        yield chain


def _bytes(page: Entries) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(page))
