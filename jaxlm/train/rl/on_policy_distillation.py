"""A student's own responses as a run's batches: on-policy distillation (GKD).

Every step samples responses to data.batch prompts from the student as it is then, and the teacher's
distributions are what they are compared with: the student learns where it goes itself, not only
where the data goes (Agarwal et al. 2024, algorithm 1 with lambda = 1; the data's own responses,
lambda = 0, are a run on chats). No gradient passes through the sampling.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator

import jax
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import param
from jaxlm.core.batch import Batch, Prompts
from jaxlm.data import kinds, tokenizers
from jaxlm.data.records import examples
from jaxlm.data.records import prompts as prompting
from jaxlm.data.templates import template
from jaxlm.eval import heldout
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import transfer
from jaxlm.train.input_types import Arrive, Fed, Judged, Stream, Supply
from jaxlm.train.optim import optimizer
from jaxlm.train.rl import policy_sampling
from jaxlm.train.run.run import Run
from jaxlm.train.step import State

# Purpose of a random number: nothing else draws with the same.
_SAMPLE, _EVALUATE = range(2)


def supply(run: Run, model: Model, objective: Objective, arrive: Arrive) -> Supply:
    """The Supply of an on-policy distillation. Nothing is carried from step to step: a step's
    responses are a function of the state before it and the seed. Several processes sample their
    own rows."""
    assert run.rollout is not None
    assert isinstance(run.data, prompting.Prompts)
    split = kinds.prepare(run.data, run.eval_every is not None, run.model.vocab)
    layout = template.load(run.data.template, run.data.tokenizer)
    stop = template.stops(layout, tokenizers.load(run.data.tokenizer))
    new, samples = run.rollout.max_new, run.rollout.samples
    size = {"max_new": new, "slots": run.rollout.slots}
    sampler = policy_sampling.program(model, objective, stop=stop, **size)
    score = heldout.scorer(objective, run.plan)
    order = examples.Steps(split.train, run.data.batch, run.data.seed, 0, 0, 1)

    def respond(state: State, prompts: Prompts, *draw: int) -> Batch:
        key = np.random.SeedSequence((run.seed, *draw)).generate_state(2)
        repeated = policy_sampling.narrowed(policy_sampling.repeated(prompts, samples))
        arrive("sampling responses")
        local = transfer.batch(run.plan, transfer.own(run.plan, repeated))
        rows = transfer.fetch(sampler(state.params, state.frozen, local, key, 1.0))
        return policy_sampling.fitted(batches.text(rows), policy_sampling.width(rows.segments))

    def following(number: int, state: State) -> Fed:
        jax.block_until_ready(state.step)  # so that sampling is not billed for the step before
        clock = time.perf_counter()
        batch = respond(state, order[number - 1], _SAMPLE, number)
        spent = {"generate": time.perf_counter() - clock}
        length = {"length": np.float32(batch.weight.sum() / len(batch.weight))}
        return Fed(transfer.batch(run.plan, transfer.own(run.plan, batch)), length, spent)

    @contextlib.contextmanager
    def opened(step: int, carry: param.Tree) -> Iterator[Stream]:
        yield Stream(following, dict)

    def evaluate(state: State, batches: int | None) -> Judged:
        assert split.val is not None
        state = state._replace(params=optimizer.ema(state.opt, state.params))
        prompts = itertools.islice(examples.val_batches(split.val, run.data.batch), batches)
        local = (
            transfer.own(run.plan, respond(state, p, _EVALUATE, n)) for n, p in enumerate(prompts)
        )
        record = heldout.evaluate(score, objective, state.params, state.frozen, local, run.plan)
        return Judged(record, record["loss"])

    return Supply(
        facts=split.facts,
        corpus=split.facts | {"source": run.data.source} | split.rows(),
        tally=split.tally,
        open=opened,
        evaluate=None if run.eval_every is None else evaluate,
        positions=lambda step: step * run.data.batch * samples * (run.data.seq + new),
        flops=lambda step: {},
    )
