"""Rows with some tokens hidden, for an encoder to fill in. Devlin et al. 2019, section 3.1.

Of a row of n tokens, round(rate * n) are chosen: four in five of them become the mask, one in ten
another token, and one in ten stays. A row holds whole documents, their first and last token (bos or
[CLS], eos or [SEP]) among them; those are never chosen.

    document  [CLS] the cat sat on the mat [SEP]
    tokens    [CLS] the [MASK] sat on the mat [SEP]
    targets   [CLS] the cat sat on the mat [SEP]
    weight      0    0   1   0   0  0   0    0
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxlm.core import batch, check
from jaxlm.data import pack
from jaxlm.data.tokenizers import tokenizer as tokenizers


@dataclass(frozen=True)
class Mask:
    """Hide tokens for an encoder to fill in."""

    rate: float = 0.15
    """The fraction of a row's tokens to predict."""
    token: int | None = None
    """The mask's id, one that text never yields; None takes the tokenizer's own."""
    random: float = 0.1
    """The fraction of the chosen tokens that become a random other one."""
    keep: float = 0.1
    """The fraction of the chosen tokens that stay as they are."""

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        yield from check.outside("data.corrupt", self, "rate", above=0, below=1)
        wrong = [*check.outside("data.corrupt", self, "random", "keep", least=0, most=1)]
        yield from wrong
        ok = bool(wrong) or self.random + self.keep <= 1
        fits = f"at most 1 - random = {1 - self.random:g}"
        yield from check.problem("data.corrupt.keep", self.keep, ok, fits)


class Ids(NamedTuple):
    """mask: the mask's id. ordinary int[N]: the ids that text yields: those that may be hidden,
    and that may replace hidden ones."""

    mask: int
    ordinary: np.ndarray


def ids(mask: Mask, tokenizer: tokenizers.Tokenizer) -> Ids:
    """The ids that masking needs.

    Raises: ValueError for a tokenizer without a mask when none is given, and for a mask that is a
    token of text.
    """
    special = set(tokenizer.special.values())
    masks = [tokenizer.special[n] for n in ("mask", "[MASK]", "<mask>") if n in tokenizer.special]
    chosen = masks[0] if mask.token is None and masks else mask.token
    if chosen is None:
        raise ValueError(
            "data.corrupt.token: None given, which takes the tokenizer's mask, and the "
            f"{tokenizer.kind} tokenizer has none; train one with the extra token '<mask>' (a "
            f"wordpiece one has [MASK]), or give an id after its last, such as {tokenizer.vocab}, "
            "with a model.vocab above it"
        )
    if chosen < 0 or (chosen < tokenizer.vocab and chosen not in special):
        raise ValueError(
            f"data.corrupt.token: {chosen} given, a token of text; it must be a special id of the "
            f"tokenizer ({sorted(special)}) or one from {tokenizer.vocab} on"
        )
    ordinary = np.array([i for i in range(tokenizer.vocab) if i not in special | {chosen}])
    return Ids(chosen, ordinary)


class Reader(NamedTuple):
    """Rows of whole documents with tokens hidden in them, at random."""

    whole: pack.Reader
    mask: Mask
    ids: Ids

    @property
    def rows(self) -> pack.Rows:
        """The rows."""
        return self.whole.rows

    def read(self, numbers: np.ndarray, draws: pack.Draws) -> batch.Batch:
        """The batch [len(numbers), seq] of these rows. What is hidden in row r is decided by
        draws[r] alone."""
        shape = (len(numbers), self.rows.seq)
        targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
        column = np.zeros(len(numbers), np.int64)
        for r, segment, start, size, text in self.whole.pieces(numbers):
            place = slice(column[r], column[r] + size)
            targets[r, place] = text[start : start + size]
            segments[r, place] = segment
            positions[r, place] = np.arange(size)
            column[r] += size
        may = (segments > 0) & np.isin(targets, self.ids.ordinary)
        tokens, weight = targets.copy(), np.zeros(shape, np.float32)
        for r, draw in enumerate(draws):
            chosen, tokens[r, chosen] = self._hide(targets[r], np.flatnonzero(may[r]), draw)
            weight[r, chosen] = 1
        return batch.Batch(tokens, targets, weight, segments, positions)

    def _hide(
        self, row: np.ndarray, may: np.ndarray, draw: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (the places chosen, the tokens there now)."""
        rng = np.random.default_rng(draw)
        count = max(1, round(self.mask.rate * len(may))) if len(may) else 0
        chosen = np.sort(rng.permutation(may)[:count])
        fate, other = rng.random(count), rng.choice(self.ids.ordinary, count)
        stays = row[chosen]
        stand_in = np.where(fate < self.mask.random, other, self.ids.mask)
        keep = (fate >= self.mask.random) & (fate < self.mask.random + self.mask.keep)
        return chosen, np.where(keep, stays, stand_in)


def reader(
    lengths: np.ndarray,
    source: pack.Documents,
    seq: int,
    packing: pack.Packing,
    mask: Mask,
    at: Ids,
) -> Reader:
    """The Reader of documents of these lengths in tokens, in rows of `seq`."""
    # a row holds tokens here, not pairs of a token and the next: one more than `pack.pack` counts
    rows = pack.pack(np.asarray(lengths, np.int64) + 1, seq, packing)
    return Reader(pack.Reader(rows, source), mask, at)
