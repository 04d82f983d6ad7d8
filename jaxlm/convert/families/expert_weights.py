"""Rows of a mixture's experts: a tensor for each expert and matrix, or all of them in two.

experts.{e}.gate_proj.weight [F, D], ...up_proj [F, D], ...down_proj [D, F]    on disk
experts.gate_up_proj [E, 2F, D], experts.down_proj [E, D, F]    as transformers 5 computes
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.convert.weight_rows import Arrays, Row
from jaxlm.core import param

Params = Sequence[param.Param]


def rows(ours: str, theirs: str, count: int, matrices: tuple[str, str, str]) -> list[Row]:
    """The rows of `ours`/gate, up, down [E, ...] of `count` experts below their prefix `theirs`.

    matrices: names of gate, up and down in each expert, e.g. ("gate_proj", "up_proj", "down_proj").
    Export writes the first form.
    """
    each = []
    for name, matrix in zip(("gate", "up", "down"), matrices, strict=True):
        tensors = tuple(f"{theirs}{expert}.{matrix}.weight" for expert in range(count))
        each.append(_each(f"{ours}/{name}", tensors))
    return [*each, _gate_up(ours, theirs), _down(ours, theirs)]


def _each(ours: str, theirs: tuple[str, ...]) -> Row:
    return Row(
        (ours,),
        theirs,
        lambda arrays, ps: [np.stack([a.T for a in arrays])],
        lambda arrays, ps: [a.T for a in arrays[0]],
        lambda ps: [ps[0].shape[:0:-1]] * len(theirs),
    )


def _gate_up(ours: str, theirs: str) -> Row:
    def read(arrays: Arrays, ps: Params) -> Arrays:
        return np.split(arrays[0].swapaxes(1, 2), 2, axis=2)  # [E, in, 2 out] as two [E, in, out]

    def write(arrays: Arrays, ps: Params) -> Arrays:
        return [np.concatenate(arrays, axis=2).swapaxes(1, 2)]  # [E, 2 out, in]

    def shapes(ps: Params) -> list[tuple[int, ...]]:
        count, inputs, outputs = ps[0].shape
        return [(count, 2 * outputs, inputs)]

    return Row((f"{ours}/gate", f"{ours}/up"), (f"{theirs}gate_up_proj",), read, write, shapes)


def _down(ours: str, theirs: str) -> Row:
    return Row(
        (f"{ours}/down",),
        (f"{theirs}down_proj",),
        lambda arrays, ps: [arrays[0].swapaxes(1, 2)],
        lambda arrays, ps: [arrays[0].swapaxes(1, 2)],
        lambda ps: [(ps[0].shape[0], ps[0].shape[2], ps[0].shape[1])],
    )
