"""Coordinate check: how the size of activations, and of their change in training, goes with width.

Yang et al. 2022, section D.1 and figure 5. Under muP the entries of the residual stream and of the
logits change by as much at every width; under the standard parametrisation they change the more the
wider a model is, so that a learning rate fit for one width is none for another. The slope of
log size against log width says it in one number: 0 where the width does not matter.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.models.layers import stack
from jaxlm.models.model import Model
from jaxlm.ops.attention import At
from jaxlm.train import inputs as supplies
from jaxlm.train import loop, step
from jaxlm.train.run.run import Run

Sizes = dict[int, dict[str, float]]


def sizes(run: Run, steps: Sequence[int] = (0, 1, 10)) -> Sizes:
    """{step: {place: root mean square}} on the run's first batch: of activations at step 0, and
    then of how much they differ from those.

    Places, in order: "embed", the residual stream after "layer 1", "layer 2", ..., and "logits".
    The run is trained up to the last of the steps, without evaluations and without a directory.

    Raises: ValueError for steps that do not rise from 0 on within the run's, and for a run that
    does not train on batches of rows through a decoder.
    """
    wanted = list(steps)
    if wanted != sorted({*wanted}) or wanted[:1] != [0] or wanted[-1] > run.steps:
        raise ValueError(f"steps: {wanted} given; rising numbers from 0 to steps={run.steps} fit")
    run = dataclasses.replace(run, eval_every=None)
    program = loop.build(run)
    if program.model.kind == "encoder_decoder" or run.rollout is not None:
        raise ValueError("model: a decoder that trains on rows is needed for a coordinate check")
    state = step.init(program.objective, program.tx, run.plan, run.seed)
    look = jax.jit(lambda params, rows: _activations(program.model, params, rows))
    found: Sizes = {}
    with supplies.of(run, program.model, program.objective).open(0, {}) as stream:
        first = before = None
        for number in range(wanted[-1] + 1):
            batch = stream.next(number + 1, state).batch
            first = batch if first is None else first
            if number in wanted:
                now = look(state.params, first)
                before = now if before is None else before
                found[number] = {
                    name: _rms(x if number == 0 else x - before[name]) for name, x in now.items()
                }
            state, _ = program.step(state, batch)
    return found


def _rms(x: jax.Array) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


def _activations(model: Model, params: param.Tree, rows: Any) -> dict[str, jax.Array]:
    """{place: float32 array}: the model cut off after each layer, without its last norm."""
    at = At(rows.segments, rows.positions)
    layers = stack.unstacked(params["stack"])
    bare = {name: w for name, w in params.items() if name != "norm"}
    found = {}
    for number in range(len(layers) + 1):
        kept = {str(i): layers[str(i)] for i in range(number)}
        place = f"layer {number}" if number else "embed"
        found[place] = model.hidden(bare | {"stack": kept}, rows.tokens, at).x
    x = model.hidden(params, rows.tokens, at).x
    found["logits"] = model.unembed(model.head(params), x)
    return {place: x.astype(jnp.float32) for place, x in found.items()}


def slopes(found: Mapping[int, Sizes]) -> dict[int, dict[str, float]]:
    """{step: {place: slope of log size against log width}} by least squares, of {width: sizes}.

    A place whose size is 0 at some width has the slope NaN.

    Raises: ValueError for fewer than 2 widths.
    """
    if len(found) < 2:
        raise ValueError(f"widths: {sorted(found)} given; a slope needs at least 2")
    widths = sorted(found)
    x = np.log(np.asarray(widths, float))

    def slope(number: int, place: str) -> float:
        y = [found[width][number][place] for width in widths]
        if min(y) <= 0 or not all(map(math.isfinite, y)):
            return math.nan
        return float(np.polyfit(x, np.log(y), 1)[0])

    first = found[widths[0]]
    return {number: {place: slope(number, place) for place in first[number]} for number in first}
