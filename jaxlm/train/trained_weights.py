"""The weights of a run directory, for sampling and evaluation: nothing in it is changed."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import config, io, json_file, param
from jaxlm.core.remote import staging
from jaxlm.data import kinds, pretraining, tokenizers
from jaxlm.data.records import preferences
from jaxlm.data.templates import template
from jaxlm.eval import reward_model
from jaxlm.models import packed_weights
from jaxlm.models.layers import cache_kinds
from jaxlm.models.model import Model
from jaxlm.objectives import lora
from jaxlm.objectives.objective import Objective
from jaxlm.objectives.preference import reward
from jaxlm.ops import attention, linear
from jaxlm.ops.quant.cache_entries import Numbers
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import memory
from jaxlm.train import program, step
from jaxlm.train.optim import optimizer
from jaxlm.train.run import checkpoint, directory, integrity
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

Which = Literal["last", "best"]


class Saved(NamedTuple):
    """A trained model: its run directory and Run, the model under `plan`, float32 weights (the
    averaged ones where the run keeps an average; heads of its objective along with the model's
    own; matrices in few bits as `jaxlm quantize` wrote them), and the step they are from."""

    folder: pathlib.Path
    run: Run
    model: Model
    params: param.Tree
    plan: Plan
    step: int

    @property
    def tokenizer(self) -> tokenizers.tokenizer.Tokenizer:
        """The tokenizer of its data."""
        return directory.tokenizer(self.folder, self.run)

    @property
    def length(self) -> int:
        """Tokens that it reads at once: the model's context, where positions end; else `data.seq`,
        the longest that it was trained on."""
        return self.model.context or self.run.data.seq


def load(
    folder: str | os.PathLike[str],
    which: Which | int = "last",
    plan: Plan | None = None,
    warn: Callable[[str], None] = directory.warn,
    cache: Numbers | None = None,
) -> Saved:
    """The trained model of a run directory, finished or not.

    which: the last checkpoint, or the one with the fewest validation bits per byte; where it is
    not whole, a warning names it and the last whole one is used. A number is the checkpoint of
    that step and no other. Weights with adapters on them are brought together. plan: how to
    execute the model; None is the run's own plan on one device, with "xla" for a kernel of other
    hardware. cache: "int8" or "fp8" keeps what texts are decoded from in 8 bits
    (`layers.cache_kinds`); None, in the dtype that the plan computes in.

    Raises: FileNotFoundError for a directory without config.json or without a checkpoint, or
    without that of this step; ValueError if none is whole, and for a cache that the model has not.
    The same of the base of adapters.
    """
    devices.correct()
    folder = staging.local(folder)
    run, model, objective, plan, params, number = _checkpoint(folder, which, plan, warn)
    if run.adapter is not None:
        params = _joined(run, folder, objective, params, plan, warn)
    model = cache_kinds.quantised(model, cache)
    return Saved(folder, run, model, jax.block_until_ready(params), plan, number)


def judge(folder: str | os.PathLike[str], which: Which = "last") -> reward_model.Judge:
    """The reward model of a run directory, with the tokenizer, template and length of its data.

    Raises: ValueError for a run of another objective; else as `load`.
    """
    saved = load(folder, which)
    data = saved.run.data
    if not isinstance(saved.run.objective, reward.Config) or not isinstance(
        data, preferences.Preferences
    ):
        name = config.kind(type(saved.run.objective))
        raise ValueError(f"{folder}: objective {name}; a run with objective reward scores texts")
    tokenizer = directory.tokenizer(saved.folder, saved.run)
    return reward_model.judge(saved.model, saved.params, saved.run.model.vocab, data, tokenizer)


def trained(folder: str | os.PathLike[str], which: Which = "last") -> param.Tree:
    """Weights that a run trained, as in its checkpoint: of a run with adapters, only the adapters.
    Raises: as `load`."""
    folder = staging.local(folder)
    return _checkpoint(folder, which, None, directory.warn).params


class _Checkpoint(NamedTuple):
    """A checkpoint's weights, and what they are of."""

    run: Run
    model: Model
    objective: Objective
    plan: Plan
    params: param.Tree
    step: int


def _checkpoint(
    folder: pathlib.Path, which: Which | int, plan: Plan | None, warn: Callable[[str], None]
) -> _Checkpoint:
    run, result = directory.load(folder), directory.ended(folder)
    if result is not None and result.diverged is not None:
        warn(f"{folder} diverged at step {result.step} ({result.diverged})")
    if plan is None:
        kernel = run.plan.attention if attention.runs_here(run.plan.attention) else "xla"
        plan = dataclasses.replace(run.plan.alone, attention=kernel)
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
    few = checkpoint.facts(place, number).get(program.PACKED)
    if few is not None:
        params = _packed(folder, number, objective, few, plan)
        return _Checkpoint(run, model, objective, plan, params, number)
    tx = optimizer.build(run.optim, objective.spec, run.steps, fp16=False)
    like = checkpoint.items(step.abstract(objective, tx, plan))
    need = memory.spec_bytes(objective.spec, memory.mesh(plan), jnp.float32)
    devices.check(f"the weights of {folder}", need)
    items = checkpoint.read(place, number, {name: like[name]})[name]
    params = items if name == "params" else items.params
    return _Checkpoint(run, model, objective, plan, params, number)


def _packed(
    folder: pathlib.Path, number: int, objective: Objective, few: dict[str, Any], plan: Plan
) -> param.Tree:
    """The weights of a checkpoint with matrices in few bits.

    Raises: ValueError for a plan of several devices.
    """
    if plan.devices > 1:
        raise ValueError(
            f"{folder} holds matrices in {few['name']}, which one device reads: {plan} given, "
            f"{plan.devices} devices"
        )
    like = packed_weights.abstract(objective.spec, few["layout"])
    size = packed_weights.size(like)
    need = size.packed_bytes + size.others_bytes
    devices.check(f"the weights of {folder}", need)

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=plan.replicated)

    arrays = jax.tree.map(place, packed_weights.arrays(like))
    saved = checkpoint.read(folder / "checkpoints", number, {"params": arrays})["params"]
    return packed_weights.restored(saved, like)


def refuse_packed(folder: str | os.PathLike[str], use: str) -> None:
    """Raises: ValueError if the newest checkpoint of a run directory has matrices in few bits. use:
    what these cannot be, such as "exported"."""
    few = program.packed(folder)
    if few is not None:
        raise ValueError(
            f"{folder} holds matrices in {few['name']}, which cannot be {use}; they were made from "
            f"{few['source']}: give that"
        )


def _joined(
    run: Run,
    folder: pathlib.Path,
    objective: Objective,
    params: param.Tree,
    plan: Plan,
    warn: Callable[[str], None],
) -> param.Tree:
    """The weights of adapters merged into their base, as plain arrays."""
    base, origin = objective.frozen[lora.BASE], begun(folder)
    if run.start is None:
        raise ValueError(f"{folder} holds adapters, and its config has no `start` that they adapt")
    try:
        saved = load(run.start, origin.get("step", "last"), plan, warn)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{folder} holds adapters on the weights of {run.start}: {error}"
        ) from error
    if origin and origin["run"] != runs.digest(saved.run):
        warn(f"{run.start} holds another run now than when the adapters of {folder} began")

    def join(params: param.Tree, below: param.Tree) -> param.Tree:
        if base.stored is not None and base.stored.make is not None:
            below = base.stored.make(below)
        return linear.merged(objective.weights(params, {lora.BASE: below}))

    heads = {name: part for name, part in objective.spec.items() if name != lora.ADAPTER}
    places = plan.shard_params(base.spec | heads)
    below = {name: saved.params[name] for name in base.spec}
    return jax.jit(join, out_shardings=places)(params, below)


def begun(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Source of this run's initial weights ("folder", "step", "run"); {} if they were random. It is
    recorded in its checkpoints, or in env.json before there are any. Raises: json_file.Damaged."""
    folder = staging.local(folder)
    sealed = directory.proof(folder)
    if sealed is not None:
        return sealed["start"]
    try:
        return json_file.read_object(pathlib.Path(folder, "env.json")).get("start", {})
    except FileNotFoundError:
        return {}
    except json_file.Damaged:
        if not checkpoint.steps(pathlib.Path(folder, "checkpoints")):
            return {}  # nothing was saved: the run begins anew
        raise


def identity(saved: Saved) -> dict[str, Any]:
    """The facts by which results of a model are known to be of these weights: the run's digest, the
    step, and the SHA-256 of the checkpoint's manifest, which has those of all its files."""
    manifest = saved.folder / "checkpoints" / str(saved.step) / integrity.FILE
    start = begun(saved.folder) if saved.run.adapter is not None else {}
    weights = {"step": saved.step, "sha256": io.sha256(manifest), "start": start}
    return {"run": runs.digest(saved.run), "weights": weights}


def generation(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The generation settings that an imported model came with; {} for one that was trained.
    Raises: json_file.Damaged."""
    try:
        return json_file.read_object(staging.local(folder) / "generation_config.json")
    except FileNotFoundError:
        return {}


def refuse_template(folder: str | os.PathLike[str], run: Run, layout: str | None) -> None:
    """Raises: ValueError if conversations in this layout, a template's name or file, are not what
    the run was trained on. A run of text has none, and takes any; None is the run's own."""
    if layout is None or isinstance(run.data, pretraining.Data):
        return
    given, own = (template.load(n, run.data.tokenizer) for n in (layout, run.data.template))
    if given.source != own.source:
        raise ValueError(
            f"template: {layout!r} given, and {folder} was trained on conversations written with "
            f"{run.data.template!r}; leave it out"
        )


# Fields that `jaxlm eval` may be given: the data that is read, and its rows.
READ = ("source", "field", "format", "tree", "long", "holdout", "seq", "batch", "packing", "seed")
READ += ("workers", "mix")


def refuse_changes(folder: str | os.PathLike[str], run: Run, data: kinds.AnyData) -> None:
    """Raises: ValueError naming the first field of `data`, which the run's weights are to be scored
    on, that would make the score one of something else; all but `READ` may not differ. Another path
    to the same tokenizer or template is no difference."""
    if type(data) is not type(run.data):
        raise ValueError(f"data: {type(data).__name__} given, {folder} read {type(run.data)}")
    theirs, ours = tokenizers.load(data.tokenizer).hash, directory.tokenizer(folder, run).hash
    if theirs != ours:
        raise ValueError(
            f"data.tokenizer: {data.tokenizer!r} given (hash {theirs[:12]}), and {folder} was "
            f"trained with {run.data.tokenizer!r} (hash {ours[:12]}); leave it out"
        )
    if not isinstance(data, pretraining.Data):
        refuse_template(folder, run, data.template)
    for field in dataclasses.fields(data):
        given, own = getattr(data, field.name), getattr(run.data, field.name)
        if field.name not in (*READ, "tokenizer", "template") and given != own:
            raise ValueError(
                f"data.{field.name}: {given!r} given, and {folder} was trained with {own!r}: the "
                f"score would be of something else; leave it out (what may be given: data."
                f"{', data.'.join(n for n in READ if n in _names(data))})"
            )


def _names(data: kinds.AnyData) -> list[str]:
    return [field.name for field in dataclasses.fields(data)]


def stop_tokens(folder: str | os.PathLike[str]) -> tuple[int, ...]:
    """The ids that end a text, by the generation settings of an imported model; there may be
    several, along with the tokenizer's own."""
    eos = generation(folder).get("eos_token_id")
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)
