"""The Run: everything that decides a training run, as one frozen value."""

import dataclasses
import functools
import pathlib
from collections.abc import Generator, Iterator

import jax

from jaxlm import models, objectives
from jaxlm.core import check, config, param
from jaxlm.core.remote import objects, staging
from jaxlm.data import kinds, pretraining, tokenizers
from jaxlm.data.records import prompts, records
from jaxlm.data.sources import source
from jaxlm.data.templates import template
from jaxlm.data.tokenized import manifest
from jaxlm.decode import prompt_tokens, token_sampling
from jaxlm.models.layers import stack
from jaxlm.models.model import Model
from jaxlm.objectives import lora as adapters  # the field bears the name
from jaxlm.ops import attention
from jaxlm.parallel.plan import Plan
from jaxlm.train.optim import diloco as replicas  # the field bears the name
from jaxlm.train.optim import mup as mups  # the field bears the name
from jaxlm.train.optim import optimizer  # the field bears the name
from jaxlm.train.rl import rollout as rollouts  # the field bears the name
from jaxlm.train.run import objective_data
from jaxlm.train.run.trackers import weights_biases


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
    diloco: replicas.Replicas | None = None
    """Replicas of the model that train apart and agree every so many steps; None trains one."""
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
    patience: int | None = None
    """Evaluations in a row without an improvement on the best one, after which the run ends early;
    None trains all steps. Judged by what the best checkpoint has least of."""
    min_delta: float = 0.0
    """An evaluation is an improvement if it is below the best one by more than this."""
    samples: tuple[str, ...] = ()
    """Prompts that are continued at every evaluation, into samples/."""
    sample_tokens: int = 64
    """Tokens of each sample."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are written and which are kept."""
    profile: tuple[int, int] | None = None
    """First and last step of a jax.profiler trace, written to profile/; None traces nothing."""
    wandb: str | None = None
    """A project of Weights & Biases, PROJECT or ENTITY/PROJECT, that gets the numbers too; None
    sends nothing."""
    out: str = "runs"
    """The directory that holds run directories: a local one, or the URL of a store, such as
    gs://bucket/runs or s3://bucket/runs."""


# Fields that set where and how, not what is computed: a run may resume with others. A new mesh or
# kernel rounds otherwise; all other fields here leave every bit alone.
EXECUTION = (
    "name",
    "out",
    "checkpoint",
    "profile",
    "trunk",
    "wandb",
    "data.workers",
    *(f"plan.{field.name}" for field in dataclasses.fields(Plan) if field.name != "compute"),
)


def folder(run: Run) -> pathlib.Path:
    """The run directory; of one in a store, the local copy that this process works on."""
    address = objects.url(run.out)
    if address is None:
        return pathlib.Path(run.out).expanduser() / run.name
    return staging.copy_of(f"{address}/{run.name}", f"write-{jax.process_index()}")


def digest(run: Run) -> str:
    """12 hex digits that identify the experiment: all fields but `EXECUTION`."""
    return config.digest(config.without(config.to_dict(run), *EXECUTION))


def validate(run: Run) -> None:
    """Raises: ValueError with `problems`."""
    check.refuse("this run cannot start:", problems(run))


def problems(run: Run) -> Iterator[str]:
    """Everything wrong that can be known before compute, a line for each field."""
    yield from _numbers(run)
    yield from _place(run)
    yield from _data(run)
    yield from _mesh(run)
    yield from _adapter(run)
    yield from _rollout(run)
    yield from mups.problems(run.model, run.mup, run.optim)
    yield from optimizer.problems(run.optim, run.steps)
    yield from replicas.problems(run.diloco, run.plan, run.steps, run.eval_every, run.optim)


def _numbers(run: Run) -> Iterator[str]:
    names = ("steps", "log_every", "eval_every", "eval_batches", "sample_tokens")
    kept = ("checkpoint.every", "checkpoint.keep_last", "checkpoint.keep_every")
    yield from check.outside("", run, *names, *kept, least=1)
    at = run.checkpoint.at
    yield from check.problem("checkpoint.at", at, min(at, default=1) >= 1, "steps of at least 1")
    yield from check.outside("", run, "seed", least=0, below=2**32)
    first, last = (1, 1) if run.profile is None else run.profile
    ok = run.steps < 1 or 1 <= first <= last <= run.steps
    fits = f"two steps with 1 <= first <= last <= steps={run.steps}"
    yield from check.problem("profile", run.profile, ok, fits)
    if run.eval_every is None:
        why = "with eval_every=None: samples are drawn at evaluations"
        yield from check.changed("", run, "samples", why=why)
    yield from check.outside("", run, "patience", least=1)
    yield from check.outside("", run, "min_delta", least=0)
    if run.eval_every is None:
        yield from check.changed("", run, "patience", why="with eval_every=None")
    if run.patience is None:
        yield from check.changed("", run, "min_delta", why="with patience=None")
    if run.plan.devices > 1:
        why = f"with a plan of {run.plan.devices} devices; sample from the run directory instead"
        yield from check.changed("", run, "samples", why=why)


def _place(run: Run) -> Iterator[str]:
    ok = pathlib.PurePath(run.name).name == run.name and run.name[:1] not in ("", ".")
    yield from check.problem("name", run.name, ok, "a directory's name, without '/'")
    if run.wandb is not None:
        yield from weights_biases.problems(run.wandb)
    if objects.url(run.out) is not None:
        yield from check.loaded("out", lambda: objects.check(f"{objects.url(run.out)}"))
        return
    fits = "a local directory without a scheme, or the URL of a store, such as gs://bucket/runs"
    yield from check.problem("out", run.out, "://" not in run.out, fits)
    place = pathlib.Path(run.out).expanduser()
    while not place.exists():
        place = place.parent
    yield from check.problem("out", run.out, place.is_dir(), f"a directory; {place} is a file")


def _data(run: Run) -> Iterator[str]:
    data, vocab = run.data, run.model.vocab
    wrong = [*data.problems()]
    yield from wrong
    model = models.build(run.model)
    yield from objective_data.problems(run.objective, model, data)
    fits = f"at most model.context={model.context}, where the model's learned positions end"
    yield from check.problem("data.seq", data.seq, data.seq <= (model.context or data.seq), fits)
    if not (data.source and data.tokenizer):
        return
    tokenized = yield from _sources(data)
    tokenizer = yield from check.loaded("data.tokenizer", lambda: tokenizers.load(data.tokenizer))
    if tokenizer is None:
        return
    if run.start is None:  # an imported model may come with a tokenizer of more ids
        fits = f"at least {tokenizer.vocab}, the ids of the tokenizer {data.tokenizer!r}"
        yield from check.problem("model.vocab", vocab, tokenizer.vocab <= vocab, fits)
    ok = run.eval_every is None or tokenized is not False or data.holdout != 0
    fits = f"above 0, such as 0.05, with eval_every={run.eval_every}; or set that to None"
    yield from check.problem("data.holdout", data.holdout, ok, fits)
    if isinstance(data, pretraining.Data) and not wrong:
        ids = yield from check.loaded("", lambda: pretraining.added_ids(data, tokenizer))
        least = 1 + max(ids or (), default=-1)
        fits = f"at least {least}, for the ids that data.corrupt or data.infill puts into batches"
        yield from check.problem("model.vocab", vocab, vocab >= least, fits)
    stops = yield from check.loaded("data.template", lambda: _stops(data, tokenizer))
    if stops is not None:
        yield from _samples(run, model, tokenizer)


def _sources(data: kinds.AnyData) -> Generator[str, None, bool | None]:
    """Whether all sources hold shards that were made before; None where one cannot be read."""
    if not isinstance(data, pretraining.Data) or not data.mix:
        return (yield from check.loaded("data.source", lambda: _source(data)))
    known = []
    for i, own in enumerate(pretraining.parts(data).values()):
        known.append((yield from check.loaded(f"data.mix[{i}]", functools.partial(_source, own))))
    return None if None in known else all(known)


def _source(data: kinds.AnyData) -> bool:
    """Whether the source holds shards that were made before. Raises: as reading it would."""
    if not isinstance(data, pretraining.Data):
        records.read(data.source)
        return False
    tokenized = manifest.present(data.source)
    if not tokenized:
        source.documents(data.source, data.field)
    return tokenized


def _stops(data: kinds.AnyData, tokenizer: tokenizers.tokenizer.Tokenizer) -> tuple[int, ...]:
    """The ids that end a turn of conversations; () of text. Raises: as writing one would."""
    layout = prompt_tokens.written(data)
    return () if layout is None else template.stops(layout, tokenizer)


def _samples(run: Run, model: Model, tokenizer: tokenizers.tokenizer.Tokenizer) -> Iterator[str]:
    if model.kind != "decoder":
        why = "with a model that does not continue texts; see `jaxlm sample` of the finished run"
        yield from check.changed("", run, "samples", why=why)
    elif run.samples:
        yield from check.loaded("samples, sample_tokens", lambda: _fit(run, model, tokenizer))


def _fit(run: Run, model: Model, tokenizer: tokenizers.tokenizer.Tokenizer) -> None:
    """Raises: ValueError where a sample's prompt and its tokens do not fit the model."""
    turns = prompt_tokens.turns(run.data, tokenizer, run.samples)
    settings = [sampling(run)] * len(turns)
    token_sampling.check_prompts(model, [turn.tokens for turn in turns], settings)


def _mesh(run: Run) -> Iterator[str]:
    plan, processes = run.plan, jax.process_count()
    yield from check.loaded("", lambda: plan.shard_params(models.spec(run.model)))
    yield from check.loaded("", lambda: stack.check(models.spec(run.model), plan))
    yield from check.loaded("plan.attention", lambda: attention.check_platform(plan.attention))
    if processes > 1 and plan.devices != jax.device_count():
        yield (
            f"plan: {plan} given, {plan.devices} devices; with {processes} processes it must be "
            f"all {jax.device_count()}"
        )
    if plan.row_parts % processes and processes % plan.row_parts:
        yield (
            f"plan: {plan} splits rows into {plan.row_parts} parts; it must be a multiple or a "
            f"divisor of the {processes} processes, each of which reads its own rows"
        )
    if run.rollout is not None or any(run.data.problems()):
        return  # minibatches are what has to divide; or `_data` names what is wrong
    copies = 1 if run.diloco is None else run.diloco.replicas
    parts = plan.multiple * copies
    for stage in kinds.stages(run.data):
        fits = f"a multiple of {parts} from step {stage.first_step} on: plan.microbatches="
        fits += f"{plan.microbatches}, and {parts // plan.microbatches} parts of the rows by {plan}"
        fits += "" if run.diloco is None else f" and diloco.replicas={copies}"
        yield from check.problem("data.batch", stage.batch, stage.batch % parts == 0, fits)
    yield from _sequence(plan, run.data)


def _sequence(plan: Plan, data: kinds.AnyData) -> Iterator[str]:
    """Problems of splitting sequences over the mesh."""
    parts = plan.context * (plan.tensor if plan.sequence else 1)
    fits = f"a multiple of {parts}, the parts of a sequence by {plan}"
    for stage in kinds.stages(data):
        yield from check.problem("data.seq", stage.seq, stage.seq % parts == 0, fits)
    if isinstance(data, pretraining.Data) and (n := pretraining.target_length(data)) is not None:
        name = f"data.seq={data.seq}: tokens of a target"
        yield from check.problem(name, n, n % parts == 0, fits)


def _adapter(run: Run) -> Iterator[str]:
    if run.adapter is None:
        return
    yield from check.changed("", run, "mup", why="with an adapter, for which no rule is known here")
    if run.plan.pipe > 1:
        why = "with plan.pipe: an adapter's draws are of a whole batch"
        yield from check.changed("adapter", run.adapter, "dropout", why=why)
    if run.start is None:
        yield (
            "start: None given with an adapter, which stands on trained weights; name the run "
            "directory that has them (`jaxlm import` makes one)"
        )
    weights = models.spec(run.model)
    new = functools.partial(adapters.spec, weights, run.adapter)
    yield from check.loaded("", lambda: run.plan.shard_params(new()))
    kept = adapters.stored(weights, run.adapter)
    parts = {} if kept is None else param.flatten(kept.spec)
    parts = {p: x for p, x in parts.items() if p not in param.flatten(weights)}
    given = f"adapter.quantise: {run.adapter.quantise!r} given"
    yield from check.loaded(given, lambda: run.plan.shard_params(parts))


def _rollout(run: Run) -> Iterator[str]:
    data = run.data
    if run.rollout is None:
        if isinstance(data, prompts.Prompts):
            yield "rollout: None given with prompts, which need responses; set rollout=Rollout(...)"
        return
    if not isinstance(data, prompts.Prompts):
        why = f"with data of kind {config.kind(type(data))}: responses are sampled to prompts"
        yield from check.changed("", run, "rollout", why=why)
        return
    yield from rollouts.problems(run.rollout, data, run.objective, run.plan)
    yield from check.changed("", run, "diloco", why="with a rollout, which one policy samples")
    context, new = models.build(run.model).context, run.rollout.max_new
    if context is not None:
        fits = f"at most {context - data.seq}, model.context={context} less data.seq={data.seq}"
        yield from check.problem("rollout.max_new", new, data.seq + new <= context, fits)
    if run.adapter is not None:
        why = "with a rollout: only without dropout is a ratio of policies 1 before the first step"
        yield from check.changed("adapter", run.adapter, "dropout", why=why)


def evaluates(run: Run, number: int) -> bool:
    """Whether a run is evaluated after this step."""
    if run.eval_every is None:
        return False
    return number % run.eval_every == 0 or number == run.steps


def saves(run: Run, number: int) -> bool:
    """Whether a checkpoint is written after this step."""
    due = number % run.checkpoint.every == 0 or number in run.checkpoint.at
    return due or number == run.steps


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
