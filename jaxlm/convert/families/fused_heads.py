"""Rows for tensors whose heads are laid out differently from ours: queries, keys and values fused
head by head, rotary pairs side by side, norms of single heads."""

from collections.abc import Sequence

import numpy as np

from jaxlm.convert.weight_rows import Arrays, Row
from jaxlm.core import param


def grouped(ours: tuple[str, str, str], theirs: str) -> Row:
    """Queries, keys and values fused group by group, as GPT-NeoX, BLOOM and Falcon have them.

    Their rows are [K, (G queries, key, value), head]: with a key for each query [heads, 3, head],
    with one key for all [heads + 2, head]. Columns are the inputs; a bias has none.
    """

    def rows(ps: Sequence[param.Param]) -> tuple[int, ...]:
        """(K, G, inputs...)."""
        heads, kv = ps[0].shape[-2], ps[1].shape[-2]
        return kv, heads // kv, *ps[0].shape[:-2]

    def read(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        kv, group, *inputs = rows(ps)
        a = arrays[0].reshape(kv, group + 2, -1, *inputs)  # [K, G + 2, head, inputs...]
        parts = a[:, :group], a[:, group : group + 1], a[:, group + 1 :]
        parts = [x.reshape(-1, *a.shape[2:]) for x in parts]  # [heads, head, inputs...]
        return [np.moveaxis(x, -1, 0) if inputs else x for x in parts]  # [inputs..., heads, head]

    def write(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        kv, _, *inputs = rows(ps)
        parts = [np.moveaxis(x, 0, -1) if inputs else x for x in arrays]  # [heads, head, inputs...]
        parts = [x.reshape(kv, -1, *x.shape[1:]) for x in parts]  # [K, G or 1, head, inputs...]
        return [np.concatenate(parts, axis=1).reshape(-1, *inputs)]

    def shapes(ps: Sequence[param.Param]) -> list[tuple[int, ...]]:
        kv, group, *inputs = rows(ps)
        return [(kv * (group + 2) * ps[0].shape[-1], *inputs)]

    return Row(ours, (theirs,), read, write, shapes)


def interleaved(row: Row, rotary: int) -> Row:
    """A row of weights that end in the head's dimension, of a file that rotates the pairs
    (2i, 2i + 1) of its first `rotary` dimensions: here they are (i, i + rotary / 2), which
    changes no product of a query and a key.
    """

    def order(size: int) -> np.ndarray:
        """Their dimension that corresponds to each of ours."""
        pairs = np.arange(rotary).reshape(-1, 2).T.ravel()  # 0 2 4 ... 1 3 5 ...
        return np.concatenate([pairs, np.arange(rotary, size)])

    def read(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        return [x[..., order(x.shape[-1])] for x in row.read(arrays, ps)]

    def write(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        return row.write([x[..., np.argsort(order(x.shape[-1]))] for x in arrays], ps)

    return row._replace(read=read, write=write)


def per_head(ours: str, theirs: str) -> Row:
    """A weight [heads, head] that is one in their file too."""
    return Row(
        (ours,),
        (theirs,),
        lambda arrays, ps: [arrays[0]],
        lambda arrays, ps: [arrays[0]],
        lambda ps: [ps[0].shape],
    )
