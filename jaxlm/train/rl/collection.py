"""Rollouts as a run's batches: play episodes, judge them, then learn from them for some steps.

    iteration i   prompts      a stateless function of (data.seed, i)
                  episodes     responses and their scores (`episodes.Player`)
                  judged       advantages and returns, over all of them at once
    its steps     epochs * minibatches parts of them, shuffled by (seed, i, epoch)

Between two steps of an iteration its rows, its numbers and the penalty's coefficient are part of
every checkpoint: a run that was killed there goes on with the same ones.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.core import io, param
from jaxlm.core.batch import Rollout
from jaxlm.data import kinds, tokenizers
from jaxlm.data.records import examples
from jaxlm.data.records import prompts as prompting
from jaxlm.data.templates import template
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import transfer
from jaxlm.train.input_types import Arrive, Fed, Judged, Stream, Supply
from jaxlm.train.optim import optimizer
from jaxlm.train.rl import episodes, policy_sampling, reward_functions
from jaxlm.train.rl.episodes import Episodes
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run
from jaxlm.train.step import State

# Purposes of random numbers: nothing else draws with the same.
_SAMPLE, _SHUFFLE, _EVALUATE = range(3)


class Collected(NamedTuple):
    """An iteration: its rows [N, P + max_new] (numpy), their metrics, and the penalty's coefficient
    from then on."""

    rows: Rollout
    metrics: dict[str, np.ndarray]
    coefficient: np.ndarray


def supply(run: Run, model: Model, objective: Objective, arrive: Arrive) -> Supply:
    """The Supply of a run with a rollout. Several processes sample and reward their own rows, and
    judge all of them alike."""
    assert isinstance(run.data, prompting.Prompts)
    split = kinds.prepare(run.data, run.eval_every is not None, run.model.vocab)
    tokenizer = tokenizers.load(run.data.tokenizer)
    stop = template.stops(template.load(run.data.template, run.data.tokenizer), tokenizer)
    phases = episodes.phases(run, model, objective, stop)
    player = episodes.Player(run, episodes.policy(run, model), phases, split, arrive)
    collector = _Collector(run, player, split)
    return Supply(
        facts=split.facts,
        corpus=split.facts | {"source": run.data.source} | split.rows(),
        tally=split.tally,
        open=collector.open,
        evaluate=None if run.eval_every is None else collector.evaluate,
        positions=lambda step: step * collector.minibatch * collector.width,
        flops=lambda step: {},
        carry=collector.carried(),
    )


class _Collector:
    """Implements `Supply` over one Player."""

    def __init__(self, run: Run, player: episodes.Player, split: examples.Split) -> None:
        assert run.rollout is not None
        self.run, self.rollout, self.player, self.split = run, run.rollout, player, split
        self.rows = run.data.batch * run.rollout.samples
        self.minibatch = self.rows // run.rollout.minibatches
        self.width = run.data.seq + run.rollout.max_new
        self.order = examples.Steps(split.train, run.data.batch, run.data.seed, 0, 0, 1)
        self.referred = "kl" in player.metrics()
        self.clock = time.perf_counter()
        self.rewards: reward_functions.Rewards | None = None

    @contextlib.contextmanager
    def open(self, step: int, carry: param.Tree) -> Iterator[Stream]:
        """`Supply.open`. The reward functions' processes end with the context."""
        at = _received(carry) if carry else self.nothing()
        self.clock = time.perf_counter()

        def following(number: int, state: State) -> Fed:
            nonlocal at
            iteration, part = divmod(number - 1, self.rollout.steps)
            spent = {}
            if part == 0:
                jax.block_until_ready(state.step)  # so that no phase is billed for the step before
            # the first step of a process compiles, which is not learning
            learnt = time.perf_counter() - self.clock if number > step + 2 else 0.0
            if part == 0:
                at, spent = self.collect(state, iteration, at.coefficient)
            rows = transfer.own(self.run.plan, self.part(at.rows, iteration, part))
            batch = transfer.batch(self.run.plan, rows)
            self.clock = time.perf_counter()
            return Fed(batch, at.metrics, {"learn": learnt, **spent})

        with self._rewarding():
            yield Stream(following, lambda: _sent(at))

    @contextlib.contextmanager
    def _rewarding(self) -> Iterator[reward_functions.Rewards]:
        """The reward functions, those in use or others that end with the context."""
        if self.rewards is not None:
            yield self.rewards
            return
        cfg = self.rollout
        with reward_functions.opened(
            cfg.rewards,
            cfg.weights,
            seconds=cfg.reward_seconds,
            retries=cfg.reward_retries,
            folder=runs.folder(self.run),
        ) as self.rewards:
            try:
                yield self.rewards
            finally:
                self.rewards = None

    def collect(
        self, state: State, iteration: int, coefficient: np.ndarray
    ) -> tuple[Collected, dict[str, float]]:
        """(what an iteration learns from, seconds by phase)."""
        played, sampling, seconds = self._played(state, iteration)
        clock = time.perf_counter()
        estimate, then = jax.device_get(self.player.judge(played.rows, coefficient))
        rows = played.rows._replace(
            advantage=estimate.advantage, returns=estimate.returns, score=None, finished=None
        )
        metrics = {n: np.asarray(x, np.float32) for n, x in (estimate.metrics | sampling).items()}
        if iteration % self.rollout.save_every == 0:
            self._save(f"{int(state.step) + 1:08}.jsonl", played, False)
        collected = Collected(policy_sampling.fitted(rows, self.width), metrics, then)
        return collected, seconds | {"judge": time.perf_counter() - clock}

    def _played(
        self, state: State, iteration: int
    ) -> tuple[Episodes, dict[str, float], dict[str, float]]:
        """(the episodes of an iteration, filled up with empty rows where too few are of use;
        metrics of their sampling; seconds by phase, over all rounds)."""
        rounds, group = 1 + self.rollout.resample, self.rollout.samples
        kept, seconds, sampled = [], {}, 0
        temperature = self.player.policy.temperature
        for attempt in range(rounds):
            prompts = policy_sampling.repeated(self.order[iteration * rounds + attempt], group)
            key = _seed(self.run.seed, _SAMPLE, iteration, attempt).generate_state(2)
            with self._rewarding() as rewards:
                played, spent = self.player.play(state, prompts, key, temperature, rewards)
            seconds = {name: seconds.get(name, 0.0) + x for name, x in spent.items()}
            sampled += len(played.record)
            if self.rollout.resample:
                differ = self.player.uneven(played)
                played = jax.tree.map(lambda x, differ=differ: x[differ], played)
            kept.append(played)
            if sum(len(part.record) for part in kept) >= self.rows:
                break
        played = episodes.joined(kept, self.rows)
        real = played.record >= 0
        metrics = {"sampled": sampled, "used": real.sum(), "sampler_gap": episodes.gap(played)}
        metrics |= {f"sampler_ratio_{n}": x for n, x in episodes.ratios(played).items()}
        for name, part in played.parts.items():
            metrics[f"reward_{name}"] = part[real].mean() if real.any() else 0.0
        return played, metrics, seconds

    def part(self, rows: Rollout, iteration: int, part: int) -> Rollout:
        """The minibatch of a step: its rows, as wide as the iteration's longest needs."""
        epoch, number = divmod(part, self.rollout.minibatches)
        draw = np.random.default_rng(_seed(self.run.seed, _SHUFFLE, iteration, epoch))
        chosen = draw.permutation(self.rows)[number * self.minibatch :][: self.minibatch]
        columns = policy_sampling.width(rows.segments)
        return policy_sampling.fitted(jax.tree.map(lambda x: x[chosen], rows), columns)

    def nothing(self) -> Collected:
        """Collection before the first iteration: zeros, in the shapes of all others."""
        shape = (self.rows, self.width)
        ids = np.zeros(shape, np.int32)
        real = np.zeros(shape, np.float32)
        rows = Rollout(ids, ids, real, ids, ids, *[real] * 5)
        names = [*self.player.metrics(), "sampled", "used", "sampler_gap"]
        names += [f"sampler_ratio_{name}" for name in episodes.RATIOS]
        metrics = {name: np.zeros((), np.float32) for name in names}
        first = self.player.policy.kl_coefficient
        return Collected(rows, metrics, np.asarray(first, np.float32))

    def carried(self) -> param.Tree:
        """`Supply.carry`."""
        where = self.run.plan.replicated
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), _sent(self.nothing())
        )

    def evaluate(self, state: State, batches: int | None) -> Judged:
        """`Supply.evaluate`: a response to every held-out prompt, as good as its score."""
        assert self.split.val is not None
        state = state._replace(params=optimizer.ema(state.opt, state.params))
        parts = []
        local = itertools.islice(examples.val_batches(self.split.val, self.rows), batches)
        for number, prompts in enumerate(local):
            record = np.where(prompts.segments[:, 0] > 0, prompts.row, -1)  # -1: filling
            key = _seed(self.run.seed, _EVALUATE, number).generate_state(2)
            with self._rewarding() as rewards:
                played, _ = self.player.play(
                    state,
                    prompts._replace(row=record),
                    key,
                    temperature=self.rollout.eval_temperature,
                    rewards=rewards,
                    held_out=True,
                )
            parts.append(played)
        self.clock = time.perf_counter()
        played = episodes.joined(parts, None)
        self._save(f"{int(state.step):08}.val.jsonl", played, True)
        summary = episodes.summary(played, self.referred)
        return Judged(summary, -summary["reward"])

    def _save(self, name: str, played: Episodes, held_out: bool) -> None:
        """Write the first episodes into samples/, a JSON object a line; process 0 does."""
        if jax.process_index():
            return
        first = jax.tree.map(lambda x: x[: self.rollout.save], played)
        lines = []
        kl = episodes.divergence(first)
        real = np.flatnonzero(first.record >= 0)
        for r, sample in zip(real, self.player.samples(first.rows, first.record, held_out)):
            line: dict[str, Any] = {"prompt": sample.prompt, "response": sample.response}
            line |= {"score": float(first.rows.score[r])}
            line |= {f"reward_{n}": float(x[r]) for n, x in first.parts.items()}
            line |= {"kl": float(kl[r])} if self.referred else {}
            line |= {"tokens": int(first.rows.weight[r].sum()), "finished": sample.finished}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        if lines:
            folder = runs.folder(self.run) / "samples"
            io.make_folder(folder)
            io.write(folder / name, "".join(lines))


def _seed(*numbers: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(numbers)


def _sent(at: Collected) -> param.Tree:
    """The arrays of a checkpoint; "told" is its name for metrics."""
    rows = {name: x for name, x in at.rows._asdict().items() if x is not None}
    return {"rows": rows, "told": at.metrics, "coefficient": at.coefficient}


def _received(carry: param.Tree) -> Collected:
    saved = jax.tree.map(np.asarray, jax.device_get(carry))
    return Collected(Rollout(**saved["rows"]), saved["told"], saved["coefficient"])
