"""The Run: everything that decides a training run, as one frozen value."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax

from jaxlm import models, objectives
from jaxlm.core import config, param
from jaxlm.data import kinds, pretraining, tokenizers
from jaxlm.data.records import prompts, records
from jaxlm.data.sources import source
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenized import manifest
from jaxlm.decode import prompt_tokens, token_sampling
from jaxlm.models.model import Model
from jaxlm.objectives import lora as adapters  # the field bears the name
from jaxlm.ops import attention
from jaxlm.parallel.plan import Plan
from jaxlm.train.optim import mup as mups  # the field bears the name
from jaxlm.train.optim import optimizer  # the field bears the name
from jaxlm.train.rl import rollout as rollouts  # the field bears the name
from jaxlm.train.run import objective_data


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When checkpoints are written and which are kept. The last step always is."""

    every: int = 500
    """Steps from one checkpoint to the next."""
    keep_last: int = 2
    """Number of the latest that are kept."""
    keep_every: int | None = None
    """Also keep those at multiples of this many steps; None keeps no more."""
    at: tuple[int, ...] = ()
    """Also write one after each of these steps, and keep it: where other runs branch off."""
    keep_best: bool = True
    """Also keep the one with the fewest validation bits per byte (nats with data.corrupt), among
    those at a step that was evaluated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training run. Two Runs that are equal train the same weights, bit for bit (on CPU)."""

    name: str
    """The run directory is out/name."""
    model: models.AnyConfig
    """The model: a family's Config."""
    data: kinds.AnyData = pretraining.Data()
    """The data that is read, and its batches."""
    optim: optimizer.Optim = optimizer.Optim()
    """The optimiser and its schedule."""
    objective: objectives.AnyConfig = objectives.clm.Config()
    """The loss."""
    rollout: rollouts.Rollout | None = None
    """Settings of sampling, rewarding and learning from responses; None for all other data."""
    adapter: adapters.Lora | None = None
    """Train low-rank adapters on frozen weights, those of `start`; None trains all weights."""
    mup: mups.Widths | None = None
    """Widths of a base model, such as (("embed", 64), ("heads", 4)): initial values and learning
    rates follow from it by muP, so that optim.lr means at this width what it means at that one.
    None is the standard parametrisation."""
    plan: Plan = Plan()
    """Execution of the model: mesh, precision, memory."""
    start: str | None = None
    """A run directory whose weights (the averaged ones, where it keeps an average) this run begins
    from, at step 0 and with a fresh optimiser; None begins from random ones. Its model has the same
    weights and the same tokenizer, or one that adds tokens to it; of what is not a weight, context,
    scaling, theta, window, dropout and capacity may differ."""
    trunk: str | None = None
    """A run directory to take the beginning from instead of training it: that of the same run with
    schedule wsd but for its length, at its newest checkpoint before this run's learning rate falls.
    It changes no bit of the result (on CPU); None trains all steps."""
    steps: int = 1000
    """Updates in all."""
    seed: int = 0
    """Decides the initial weights and all randomness of the steps; data.seed decides the order."""
    log_every: int = 10
    """Steps from one line of metrics to the next."""
    eval_every: int | None = 500
    """Steps from one evaluation on the held-out split to the next; the last step is evaluated too.
    None never evaluates."""
    eval_batches: int | None = None
    """Held-out batches read by the evaluations on the way; None reads all. The last reads all."""
    samples: tuple[str, ...] = ()
    """Prompts that are continued at every evaluation, into samples/."""
    sample_tokens: int = 64
    """Tokens of each sample."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are written and which are kept."""
    profile: tuple[int, int] | None = None
    """First and last step of a jax.profiler trace, written to profile/; None traces nothing."""
    out: str = "runs"
    """The local directory that holds run directories."""


# Fields that set where and how, not what is computed: a run may resume with others. A new mesh or
# kernel rounds otherwise; all other fields here leave every bit alone.
EXECUTION = (
    "name",
    "out",
    "checkpoint",
    "profile",
    "trunk",
    "data.workers",
    *(f"plan.{field.name}" for field in dataclasses.fields(Plan) if field.name != "compute"),
)


def folder(run: Run) -> pathlib.Path:
    """The run directory."""
    return pathlib.Path(run.out).expanduser() / run.name


def digest(run: Run) -> str:
    """12 hex digits that identify the experiment: all fields but `EXECUTION`."""
    return config.digest(config.without(config.to_dict(run), *EXECUTION))


def validate(run: Run) -> None:
    """Check everything that can be known before compute.

    Raises: ValueError listing every problem, each with the field, its value and what would fit.
    """
    problems = [*_numbers(run), *_place(run), *_data(run), *_mesh(run), *_adapter(run)]
    problems += [*_rollout(run), *mups.problems(run.model, run.mup, run.optim)]
    try:
        optimizer.validate(run.optim, run.steps)
    except ValueError as error:
        problems += str(error).splitlines()
    if problems:
        raise ValueError("\n".join(["this run cannot start:", *(f"  {text}" for text in problems)]))


def _numbers(run: Run) -> Iterator[str]:
    least = {
        "steps": run.steps,
        "log_every": run.log_every,
        "eval_every": run.eval_every,
        "eval_batches": run.eval_batches,
        "sample_tokens": run.sample_tokens,
        "checkpoint.every": run.checkpoint.every,
        "checkpoint.keep_last": run.checkpoint.keep_last,
        "checkpoint.keep_every": run.checkpoint.keep_every,
        "checkpoint.at": min(run.checkpoint.at, default=None),
    }
    for name, value in least.items():
        if value is not None and value < 1:
            yield f"{name}: {value} given; at least 1 is needed"
    if not 0 <= run.seed < 1 << 32:
        yield f"seed: {run.seed} given; 0 .. 2**32 - 1 is needed"
    first, last = (1, 1) if run.profile is None else run.profile
    if run.steps >= 1 and not 1 <= first <= last <= run.steps:
        yield (
            f"profile: {run.profile} given; two steps with 1 <= first <= last <= steps={run.steps}"
        )
    if run.samples and run.eval_every is None:
        yield "samples: prompts given, and eval_every=None; samples are drawn at evaluations"
    if run.samples and run.plan.devices > 1:
        yield (
            f"samples: prompts given, and the plan has {run.plan.devices} devices; a run samples "
            "on one only: leave them out, and sample from the run directory"
        )


def _place(run: Run) -> Iterator[str]:
    if not run.name or pathlib.PurePath(run.name).name != run.name or run.name.startswith("."):
        yield f"name: {run.name!r} given; a directory's name is needed, without '/'"
    if "://" in run.out:
        yield (
            f"out: {run.out!r} given; a local directory is needed (mount remote storage): "
            "metrics are appended and checkpoints renamed"
        )
        return
    place = pathlib.Path(run.out).expanduser()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        yield f"out: {run.out!r} given, but {place} is a file"


def _data(run: Run) -> Iterator[str]:
    data, vocab = run.data, run.model.vocab
    try:
        data.validate()
        tokenizer = tokenizers.load(data.tokenizer)
        tokenized = _source(data)
    except (ValueError, OSError, ImportError) as error:
        yield str(error)
        return
    if tokenizer.vocab > vocab and run.start is None:  # an imported model may come with such a one
        yield (
            f"model.vocab: {vocab} given, but the tokenizer {data.tokenizer!r} has "
            f"{tokenizer.vocab} ids; set model.vocab to {tokenizer.vocab} or more"
        )
    if run.eval_every is not None and not tokenized and not data.holdout:
        yield (
            f"data.holdout: 0 leaves nothing for eval_every={run.eval_every}; set data.holdout "
            "to a fraction such as 0.05, or eval_every to None"
        )
    model = models.build(run.model)
    yield from objective_data.problems(run.objective, model, data)
    if isinstance(data, pretraining.Data):
        yield from _corrupt(data, vocab, tokenizer)
    longest = model.context
    if longest is not None and data.seq > longest:
        yield (
            f"data.seq: {data.seq} given, but the model's learned positions end at "
            f"model.context={longest}; lower data.seq or raise model.context"
        )
    yield from _samples(run, model, tokenizer)


def _source(data: kinds.AnyData) -> bool:
    """Whether the source holds shards that were made before. Raises: as reading it would."""
    if not isinstance(data, pretraining.Data):
        records.read(data.source)
        return False
    tokenized = manifest.present(data.source)
    if not tokenized:
        source.documents(data.source, data.field)
    return tokenized


def _samples(run: Run, model: Model, tokenizer: tokenizers.tokenizer.Tokenizer) -> Iterator[str]:
    if not run.samples:
        return
    if model.kind != "decoder":
        yield (
            f"samples: {len(run.samples)} prompts given, but this model does not continue texts; "
            "leave them out, and see `jaxlm sample` of the finished run"
        )
        return
    try:
        layout = prompt_tokens.written(run.data)
        turns = [
            prompt_tokens.asked(run.data, layout, tokenizer, [Message("user", p)])
            for p in run.samples
        ]
        token_sampling.check_prompts(
            model, [turn.tokens for turn in turns], [sampling(run)] * len(turns)
        )
    except ValueError as error:
        yield f"samples, sample_tokens: {error}"


def _corrupt(
    data: pretraining.Data, vocab: int, tokenizer: tokenizers.tokenizer.Tokenizer
) -> Iterator[str]:
    try:
        largest = max(pretraining.added_ids(data, tokenizer), default=-1)
    except ValueError as error:
        yield str(error)
        return
    if largest >= vocab:
        yield (
            f"model.vocab: {vocab} given, but data.corrupt or data.infill puts ids up to {largest} "
            f"into batches; set model.vocab to {largest + 1} or more"
        )


def _mesh(run: Run) -> Iterator[str]:
    plan, processes = run.plan, jax.process_count()
    try:
        plan.shard_params(models.spec(run.model))
    except ValueError as error:
        yield str(error)
    try:
        attention.check_platform(plan.attention)
    except ValueError as error:
        yield f"plan.attention: {error}"
    if processes > 1 and plan.devices != jax.device_count():
        yield (
            f"plan: data x fsdp x tensor is {plan.devices}; with {processes} processes it must be "
            f"all {jax.device_count()} devices"
        )
    if run.rollout is not None:
        return  # its minibatches are what has to divide
    try:
        stages = kinds.stages(run.data)
    except (ValueError, ZeroDivisionError):
        return  # data.validate has reported it
    for stage in stages:
        parts = plan.microbatches * plan.data * plan.fsdp
        if stage.batch % parts:
            yield (
                f"data.batch: {stage.batch} rows (from step {stage.first_step} on) do not divide "
                f"into plan.microbatches={plan.microbatches} x plan.data={plan.data} x "
                f"plan.fsdp={plan.fsdp}; choose a multiple of {parts}"
            )
        if stage.batch % processes:
            yield (
                f"data.batch: {stage.batch} rows (from step {stage.first_step} on) do not divide "
                f"over {processes} processes"
            )


def _adapter(run: Run) -> Iterator[str]:
    if run.adapter is None:
        return
    if run.mup is not None:
        yield f"mup: {run.mup} given with an adapter, for which no rule is known here; None fits"
    if run.start is None:
        yield (
            "start: None given with an adapter, which stands on trained weights; name the run "
            "directory that has them (`jaxlm import` makes one)"
        )
    weights = models.spec(run.model)
    try:
        run.plan.shard_params(adapters.spec(weights, run.adapter))
    except ValueError as error:
        yield str(error)
    kept = adapters.stored(weights, run.adapter)
    parts = {} if kept is None else param.flatten(kept.spec)
    try:
        run.plan.shard_params({p: x for p, x in parts.items() if p not in param.flatten(weights)})
    except ValueError as error:
        yield f"adapter.quantise: {run.adapter.quantise!r} given: {error}"


def _rollout(run: Run) -> Iterator[str]:
    data = run.data
    if run.rollout is None:
        if isinstance(data, prompts.Prompts):
            yield "rollout: None given with prompts, which need responses; set rollout=Rollout(...)"
        return
    if not isinstance(data, prompts.Prompts):
        kind = config.kind(type(data))
        yield f"rollout: given with data of kind {kind}; responses are sampled to prompts.Prompts"
        return
    yield from rollouts.problems(run.rollout, data, run.objective, run.plan)
    longest = models.build(run.model).context
    if longest is not None and data.seq + run.rollout.max_new > longest:
        yield (
            f"rollout.max_new: {run.rollout.max_new} given, but with data.seq={data.seq} a text "
            f"has more than the model's {longest} positions; at most {longest - data.seq} fits"
        )
    if run.adapter is not None and run.adapter.dropout:
        yield (
            f"adapter.dropout: {run.adapter.dropout} given with a rollout; a ratio of policies is "
            "1 before the first step only without dropout; use 0"
        )


def evaluates(run: Run, number: int) -> bool:
    """Whether a run is evaluated after this step."""
    if run.eval_every is None:
        return False
    return number % run.eval_every == 0 or number == run.steps


def records_due(run: Run, step: int) -> set[tuple[str, int]]:
    """(split, step) of the records that metrics.jsonl has after a step. The evaluation of that
    step itself is not among them: it is made up for where a signal cut in before it."""
    steps = range(1, step + 1)
    due = {("train", n) for n in steps if n % run.log_every == 0 or n in (1, run.steps)}
    return due | {("val", n) for n in steps[:-1] if evaluates(run, n)}


def sampling(run: Run) -> token_sampling.Sampling:
    """Settings that the run's prompts are continued with: the same at every evaluation."""
    return token_sampling.Sampling(max_new=run.sample_tokens, temperature=0.8, seed=run.seed)


def parameters(run: Run) -> int:
    """The number of trained weights."""
    return param.count(models.spec(run.model))
