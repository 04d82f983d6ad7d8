"""A transformers checkpoint as our Config and weights."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm import convert, models
from jaxlm.convert.fields import Fields
from jaxlm.convert.table import Row
from jaxlm.core import param


def config(folder: pathlib.Path) -> tuple[str, models.AnyConfig]:
    """(model_type, our Config) of a checkpoint's config.json.

    Raises: ValueError for an unknown model_type, and for fields that are not supported.
    """
    record = json.loads((folder / "config.json").read_text("utf-8"))
    kind = record.get("model_type")
    if kind not in convert.ARCHITECTURES:
        raise ValueError(
            f"{folder / 'config.json'}: model_type={kind!r} is not supported; there is "
            f"{sorted(convert.ARCHITECTURES)}"
        )
    fields = Fields(record, str(folder / "config.json"))
    cfg = convert.ARCHITECTURES[kind].read(fields)
    fields.refuse_rest()
    return kind, cfg


def load(folder: pathlib.Path) -> tuple[models.AnyConfig, param.Tree]:
    """(Config, float32 NumPy weights) of a checkpoint."""
    from safetensors import numpy as safetensors

    kind, cfg = config(folder)
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.load_file(file)
    flat = param.flatten(models.spec(cfg))
    made: dict[str, Any] = {}
    table = convert.ARCHITECTURES[kind].names(cfg)
    for row in table.outer:
        _read(row, row.theirs, row.ours, flat, tensors.__getitem__, made)
    for path, stack in table.stacks.items():
        for i, at in enumerate(positions(flat, path)):
            for row in stack.rows:
                theirs = tuple((stack.prefix + n).format(i=i) for n in row.theirs)
                _read(row, theirs, row.ours, flat, tensors.__getitem__, made, at)
    missing = flat.keys() - made.keys()
    if missing:
        raise ValueError(f"{folder}: nothing makes {sorted(missing)}")
    return cfg, nested(
        {path: np.stack(x) if isinstance(x, list) else x for path, x in made.items()}
    )


def positions(flat: dict[str, param.Param], stack: str) -> list[tuple[str, int]]:
    """(path of the layer's kind, index on the layer axis) of every layer of a stack, in order."""
    kinds: dict[str, int] = {}
    for path, p in flat.items():
        if path.startswith(f"{stack}/"):
            kinds["/".join(path.split("/")[: stack.count("/") + 3])] = p.shape[0]
    segments: dict[int, list[str]] = {}
    for kind in kinds:
        segments.setdefault(int(kind.split("/")[-2]), []).append(kind)
    found = []
    for number in sorted(segments):
        names = sorted(segments[number], key=lambda k: int(k.split("/")[-1].partition("_")[0]))
        found += [(name, i) for i in range(kinds[names[0]]) for name in names]
    return found


def _read(
    row: Row,
    theirs: tuple[str, ...],
    ours: tuple[str, ...],
    flat: dict[str, param.Param],
    tensor: Callable[[str], np.ndarray],
    made: dict[str, Any],
    at: tuple[str, int] | None = None,
) -> None:
    paths = ours if at is None else tuple(f"{at[0]}/{name}" for name in ours)
    if not all(path in flat for path in paths):
        return
    params = [flat[path] if at is None else layer(flat[path]) for path in paths]
    arrays = row.read([tensor(name).astype(np.float32) for name in theirs], params)
    for path, array in zip(paths, arrays, strict=True):
        if at is None:
            made[path] = array
        else:
            made.setdefault(path, []).append(array)


def layer(p: param.Param) -> param.Param:
    """One layer's Param, without the layer axis."""
    return param.Param(p.shape[1:], p.axes[1:], p.init, p.copies - 1, p.inputs)


def nested(flat: dict[str, Any]) -> param.Tree:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = value
    return tree
