"""The weights of a run directory, for sampling and evaluation: nothing in it is changed."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models.model import Model
from jaxlm.objectives import adapter
from jaxlm.objectives.objective import Objective
from jaxlm.ops import attention, linear
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.scaling import memory
from jaxlm.train import checkpoint, directory, optim, program, step
from jaxlm.train import run as runs
from jaxlm.train.run import Run

Which = Literal["last", "best"]


class Saved(NamedTuple):
    """A trained model: its Run, the model under `plan`, float32 weights (the averaged ones where
    the run keeps an average; heads of its objective beside the model's own), and the step they are
    from."""

    run: Run
    model: Model
    params: param.Tree
    plan: Plan
    step: int


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def load(
    folder: pathlib.Path,
    which: Which | int = "last",
    plan: Plan | None = None,
    warn: Callable[[str], None] = warn,
) -> Saved:
    """The trained model of a run directory, finished or not.

    which: the last checkpoint, or the one with the fewest validation bits per byte; where it is
    not whole, a warning names it and the last whole one is used. A number is the checkpoint of
    that step and no other. Weights with adapters on them are brought together. plan: how to
    execute the model; None is the run's own plan on one device, with "xla" for a kernel of other
    hardware.

    Raises: FileNotFoundError for a directory without config.json or without a checkpoint, or
    without that of this step; ValueError if none is whole. The same of what adapters stand on.
    """
    devices.correct()
    run, model, objective, plan, params, number = _found(folder, which, plan, warn)
    if run.adapter is not None:
        params = _joined(run, folder, objective, params, plan, warn)
    return Saved(run, model, jax.block_until_ready(params), plan, number)


def trained(folder: pathlib.Path, which: Which = "last") -> param.Tree:
    """What a run trained, as it is in its checkpoint: of a run with adapters, them alone. Raises:
    as `load`."""
    return _found(folder, which, None, warn).params


class _Found(NamedTuple):
    """A checkpoint's weights, and what they are of."""

    run: Run
    model: Model
    objective: Objective
    plan: Plan
    params: param.Tree
    step: int


def _found(
    folder: pathlib.Path, which: Which | int, plan: Plan | None, warn: Callable[[str], None]
) -> _Found:
    run = directory.load(folder)
    if plan is None:
        kernel = run.plan.attention if attention.runs_here(run.plan.attention) else "xla"
        one = {"data": 1, "fsdp": 1, "tensor": 1, "microbatches": 1}
        plan = dataclasses.replace(run.plan, attention=kernel, **one)
    place = folder / "checkpoints"
    wanted = checkpoint.steps(place)
    if which == "best" and (top := checkpoint.best(place)) is not None:
        wanted = [*(s for s in wanted if s != top), top]
    if isinstance(which, int):
        if which not in wanted:
            raise FileNotFoundError(
                f"{folder} no longer has the checkpoint of step {which}, only those of {wanted}"
            )
        wanted = [which]
    name = "params" if run.optim.ema is None else "average"
    number = checkpoint.good(place, warn, wanted, (name,))
    if number is None:
        raise FileNotFoundError(f"{folder} has no checkpoint yet: nothing is in {place}")
    model, objective = program.build(run, plan)
    tx = optim.build(run.optim, objective.spec, run.steps, fp16=False)
    like = checkpoint.items(step.abstract(objective, tx, plan))
    need = memory.spec_bytes(objective.spec, memory.mesh(plan), jnp.float32)
    devices.check(f"the weights of {folder}", need)
    found = checkpoint.read(place, number, {name: like[name]})[name]
    params = found if name == "params" else found.params
    return _Found(run, model, objective, plan, params, number)


def _joined(
    run: Run,
    folder: pathlib.Path,
    objective: Objective,
    params: param.Tree,
    plan: Plan,
    warn: Callable[[str], None],
) -> param.Tree:
    """The weights that adapters and what they stand on make together, as plain arrays."""
    base, told = objective.frozen[adapter.BASE], begun(folder)
    if run.start is None:
        raise ValueError(f"{folder} holds adapters, and its config no `start` they stand on")
    try:
        found = load(pathlib.Path(run.start).expanduser(), told.get("step", "last"), plan, warn)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{folder} holds adapters on the weights of {run.start}: {error}"
        ) from error
    if told and told["run"] != runs.digest(found.run):
        warn(f"{run.start} holds another run now than when the adapters of {folder} began")

    def join(params: param.Tree, below: param.Tree) -> param.Tree:
        below = below if base.stored is None else base.stored.make(below)
        return linear.merged(objective.weights(params, {adapter.BASE: below}))

    heads = {name: part for name, part in objective.spec.items() if name != adapter.ADAPTER}
    places = plan.shard_params(base.spec | heads)
    below = {name: found.params[name] for name in base.spec}
    return jax.jit(join, out_shardings=places)(params, below)


def begun(folder: pathlib.Path) -> dict[str, Any]:
    """What the run in this directory began from ("folder", "step", "run"); {} if from random
    weights."""
    file = folder / "env.json"
    return json.loads(file.read_text("utf-8")).get("start", {}) if file.is_file() else {}


def generation(folder: pathlib.Path) -> dict[str, Any]:
    """The generation settings that an imported model came with; {} for one that was trained."""
    file = folder / "generation_config.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def stop_tokens(folder: pathlib.Path) -> tuple[int, ...]:
    """The ids that end a text, by the generation settings of an imported model; there may be
    several, beside the tokenizer's own."""
    found = generation(folder).get("eos_token_id")
    if found is None:
        return ()
    return (found,) if isinstance(found, int) else tuple(found)
