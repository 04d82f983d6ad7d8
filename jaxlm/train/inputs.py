"""The batches of a run and its evaluation: of text, of examples, or (rl/collection.py) of the
model's own samples. The loop calls these functions alone."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import numpy as np

from jaxlm.core import check, param
from jaxlm.core.batch import Batch
from jaxlm.data import kinds, pack, pretraining, tally
from jaxlm.data.records import examples
from jaxlm.data.rows import mix_plan
from jaxlm.data.tokenized import shard_cache, shards, texts
from jaxlm.eval import heldout, perplexity
from jaxlm.models.model import Model
from jaxlm.objectives import distill
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import transfer
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import flops
from jaxlm.train import stored_targets
from jaxlm.train.input_types import Arrive, Fed, Judged, Stream, Supply, unwatched
from jaxlm.train.optim import optimizer
from jaxlm.train.rl import collection, on_policy_distillation
from jaxlm.train.run.run import Run
from jaxlm.train.step import State


def of(run: Run, model: Model, objective: Objective, arrive: Arrive = unwatched) -> Supply:
    """The Supply of a run; its data is tokenised now, if that was not done before. arrive: called
    with each point by name that all processes come to within a step or an evaluation."""
    if isinstance(run.data, pretraining.Data):
        return _text(run, model, objective, arrive)
    if run.rollout is not None and isinstance(run.objective, distill.Config):
        return on_policy_distillation.supply(run, model, objective, arrive)
    if run.rollout is not None:
        return collection.supply(run, model, objective, arrive)
    return _examples(run, model, objective, arrive)


def _noted(score: Callable[..., Any], arrive: Arrive) -> Callable[..., Any]:
    """A scorer that notes every held-out batch."""

    def noted(*args: Any) -> Any:
        arrive("a held-out batch")
        return score(*args)

    return noted


# --- Text ------------------------------------------------------------------------------------


def open_text(
    data: pretraining.Data, val: bool, vocab: int
) -> tuple[texts.Text, texts.Text | None]:
    """(training split, held-out split or None) for a model of `vocab` ids, tokenised first if that
    was not done before."""
    train = shard_cache.opened(data, "train", vocab)
    return train, shard_cache.opened(data, "val", vocab) if val else None


def planned(run: Run, train: texts.Text) -> mix_plan.MixPlan | None:
    """The plan of a run's mixture; None without one."""
    data = run.data
    assert isinstance(data, pretraining.Data)
    return pretraining.plan(data, train, run.steps) if data.mix else None


def _text(run: Run, model: Model, objective: Objective, arrive: Arrive) -> Supply:
    data = run.data
    assert isinstance(data, pretraining.Data)
    train, val = open_text(data, run.eval_every is not None, run.model.vocab)
    notes: list[str] = []
    if (mixture := planned(run, train)) is not None:
        notes = mix_plan.table(mixture)
        check.refuse("\n".join([*notes, "this run cannot start:"]), mix_plan.problems(mixture))
    score = _noted(perplexity.scorer(model, run.plan), arrive)

    def evaluate(state: State, batches: int | None) -> Judged:
        assert val is not None
        params = objective.weights(optimizer.ema(state.opt, state.params), state.frozen)
        record = perplexity.scores(score, params, data, val, run.plan, batches)
        bits = record["bits_per_byte"]
        return Judged(record, record["nll"] if bits is None else bits)

    stored = isinstance(run.objective, distill.Config) and run.objective.read == "stored"
    return Supply(
        facts=texts.facts(train),
        corpus=texts.corpus(train),
        tally=tally.documents(train, val, data.seq),
        open=_opener(
            run.plan, _taught(run, train) if stored else partial(pretraining.batches, data, train)
        ),
        evaluate=None if val is None else evaluate,
        positions=lambda step: pretraining.tokens_before(data, step),
        flops=lambda step: (
            {} if objective.frozen else _flops(run, pretraining.stage_at(data, step).seq)
        ),
        notes=tuple(notes),
    )


def _taught(run: Run, train: texts.Text) -> Callable[[int, int, int], Generator[Any]]:
    """The batches of text with a teacher's answers, in the order of `pretraining`."""
    data = run.data
    assert isinstance(data, pretraining.Data)
    assert isinstance(train, shards.Shards)  # `objective_data.problems` refuses a mixture
    facts = train.manifest
    plain = pretraining.reader(data, train)
    assert isinstance(plain, pack.Reader)
    identity = [facts.fingerprint, facts.tokenizer, facts.holdout]
    rows = stored_targets.taught(run, examples.Packed(plain), identity)
    return partial(_stream, data, rows)


# --- Examples --------------------------------------------------------------------------------


def examples_of(run: Run, model: Model, objective: Objective) -> examples.Split:
    """The examples of a run, along with what its objective needs stored."""
    split = kinds.prepare(run.data, run.eval_every is not None, run.model.vocab)
    return stored_targets.attach(run, model, objective, split)


def _examples(run: Run, model: Model, objective: Objective, arrive: Arrive) -> Supply:
    data = run.data
    split = examples_of(run, model, objective)
    first = split.train.read(np.zeros(1, np.int64))
    width = int(np.prod(first.tokens.shape[1:]))
    score = _noted(heldout.scorer(objective, run.plan), arrive)

    def evaluate(state: State, batches: int | None) -> Judged:
        assert split.val is not None
        params = optimizer.ema(state.opt, state.params)
        local = examples.val_batches(split.val, data.batch, *transfer.reader(run.plan))
        record = heldout.evaluate(score, objective, params, state.frozen, local, run.plan, batches)
        return Judged(record, record["loss"])

    plain = isinstance(first, Batch) and not objective.frozen
    return Supply(
        facts=split.facts,
        corpus=split.facts | {"source": data.source} | split.rows(),
        tally=split.tally,
        open=_opener(run.plan, partial(_stream, data, split.train)),
        evaluate=None if run.eval_every is None else evaluate,
        positions=lambda step: step * data.batch * width,
        flops=lambda step: _flops(run, data.seq) if plain else {},
    )


def _stream(
    data: kinds.AnyData, rows: examples.Rows, step: int, process: int, processes: int
) -> Generator[Any]:
    """The batches of rows from a step on, of one process."""
    return examples.batches(
        rows,
        data.batch,
        data.seed,
        start_step=step,
        process_index=process,
        process_count=processes,
        workers=data.workers,
    )


def _opener(
    plan: Plan, batches: Callable[[int, int, int], Generator[Any]]
) -> Callable[[int, param.Tree], contextlib.AbstractContextManager[Stream]]:
    """`Supply.open` of batches(step, process index, processes) that depend on no state."""

    @contextlib.contextmanager
    def opened(step: int, carry: param.Tree) -> Iterator[Stream]:
        with contextlib.closing(batches(step, *transfer.reader(plan))) as local:

            def following(number: int, state: State) -> Fed:
                clock = time.perf_counter()
                batch = next(local)
                waited = time.perf_counter() - clock
                return Fed(transfer.batch(plan, batch), {}, {"data_wait": waited})

            yield Stream(following, dict)

    return opened


def _flops(run: Run, seq: int) -> dict[str, float]:
    targets = (
        pretraining.target_length(run.data) if isinstance(run.data, pretraining.Data) else None
    )
    return {
        name: flops.per_token(run.model, seq, causal=causal, targets=targets).training
        for name, causal in (("causal", True), ("full", False))
    }
