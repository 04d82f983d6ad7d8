"""muP: initial values and rates with which the best learning rate does not move with width.

A weight is compared with the same weight of a base model, which is the run's with other widths.
With r its fan-in over the base's, for Adam and Lion (Yang et al. 2022, Tensor Programs V, table 3):

                                                           std of initial values    learning rate
    fan-in grows, fan-out too: hidden matrices             base std / sqrt(r)       lr / r
    fan-in grows, fan-out not: output matrix, router       base std / r             lr / r
    fan-in does not grow: embeddings, positions,           base std                 lr
        norms, biases

At the base's own width it is the standard parametrisation, bit for bit. No product in the forward
pass is scaled: attention's 1 / sqrt(head) is right as long as `head` is the same at every width,
and another is refused; so are tied embeddings, whose logits would need a multiplier.

Where all widths grow together this is the spectral condition of Yang, Simon and Bernstein 2023,
||W|| and ||change of W|| of sqrt(fan_out / fan_in) in spectral norm: both give the same powers of
width. Muon's updates have a known spectral norm, so its matrices follow that condition directly.

Decoupled decay stays lr * weight_decay a step for every weight: its half-life does not depend on
width (Wang and Aitchison 2024). Adam's eps is not scaled.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jaxlm import models
from jaxlm.core import check, param
from jaxlm.train.optim import optimizer

Widths = tuple[tuple[str, int], ...]
# Axes along which a model may be wider than its base.
WIDE = ("embed", "heads", "kv", "ffn", "rank", "q_rank")


def base(model: models.AnyConfig, widths: Widths) -> models.AnyConfig:
    """The base model: the model with these fields, such as (("embed", 64), ("heads", 4)).

    Raises: ValueError for a field that the model does not have or that is given twice, and what
    the Config raises.
    """
    names = [name for name, _ in widths]
    values = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    have = [name for name, value in values.items() if value is None or type(value) is int]
    for name in names:
        if name not in have:
            raise ValueError(f"mup: {name!r} given, but model has no such width; it has {have}")
        if names.count(name) > 1:
            raise ValueError(f"mup: {name!r} given {names.count(name)} times; once is needed")
    changes: dict[str, Any] = dict(widths)
    try:
        return dataclasses.replace(model, **changes)
    except ValueError as error:
        raise ValueError(f"mup: {widths} make no model: {error}") from error


def problems(
    model: models.AnyConfig, widths: Widths | None, optim: optimizer.Optim
) -> Iterator[str]:
    """Problems of a run's muP, each a line with the field and what fits."""
    if widths is None:
        return
    small = yield from check.loaded("", lambda: models.spec(base(model, widths)))
    fits = "adamw, lion or muon with mup, which has no rule for steps relative to a weight's size"
    yield from check.problem("optim.name", optim.name, optim.name != "adafactor", fits)
    head = param.flatten(models.build(model).head(models.spec(model)))
    if any(p.inputs == 0 and {"vocab", "embed"} <= {*p.axes} for p in head.values()):
        yield (
            f"mup: {widths} given, but the output matrix is the embedding table, whose logits "
            "would need a multiplier; untie them (model.tied=False)"
        )
    if isinstance(model, models.t5.Config):
        fits = "False with mup, which scales logits itself"
        yield from check.problem("model.scaled", model.scaled, not model.scaled, fits)
    if small is not None:
        yield from _shapes(models.spec(model), small)


def _shapes(spec: param.Tree, small: param.Tree) -> Iterator[str]:
    wide, narrow = param.flatten(spec), param.flatten(small)
    if wide.keys() != narrow.keys():
        path = sorted(wide.keys() ^ narrow.keys())[0]
        yield f"mup: weight {path} is in one of model and base alone; widths alone may differ"
        return
    seen = set()
    for path, p in wide.items():
        for axis, ours, theirs in zip(p.axes, p.shape, narrow[path].shape, strict=True):
            if ours == theirs or axis in WIDE or axis in seen:
                continue
            seen.add(axis)
            more = "; attention would need 1/head, not 1/sqrt(head)" if axis == "head" else ""
            yield (
                f"mup: axis {axis!r} of weight {path} is {ours} in the model and {theirs} in its "
                f"base{more}; only {', '.join(WIDE)} may differ"
            )


def spec(spec: param.Tree, small: param.Tree, optimiser: optimizer.Name) -> param.Tree:
    """The spec with muP's initial values and rates, `small` being the base model's.

    Raises: ValueError for a weight that the base has not (an objective's own head).
    """
    theirs = param.flatten(small)

    def scaled(path: str, p: param.Param) -> param.Param:
        if path not in theirs:
            raise ValueError(
                f"mup: weight {path} is not the model's but its objective's, for which no rule is "
                "known here; leave mup None"
            )
        q = theirs[path]
        init = q.init
        if isinstance(init, param.Normal):
            init = param.normal(init.std(q) * spread(p, q))
        return dataclasses.replace(p, init=init, rate=rate(p, q, optimiser))

    return param.nested({path: scaled(path, p) for path, p in param.flatten(spec).items()})


def spread(p: param.Param, q: param.Param) -> float:
    """The standard deviation of p's initial values over that of q, the same weight of the base."""
    if not p.inputs:
        return 1.0
    ratio = p.fan_in / q.fan_in
    return ratio**-0.5 if p.fan_out != q.fan_out else 1 / ratio


def rate(p: param.Param, q: param.Param, optimiser: optimizer.Name) -> float:
    """The learning rate of p over that of q, the same weight of the base."""
    if not p.inputs:
        return 1.0
    if optimiser == "muon" and "vocab" not in p.axes:
        # its updates have norm sqrt(max(fan_in, fan_out)), and sqrt(fan_out / fan_in) is wanted
        ours, theirs = (math.sqrt(w.fan_out / w.fan_in / max(w.fan_in, w.fan_out)) for w in (p, q))
        return ours / theirs
    return q.fan_in / p.fan_in
