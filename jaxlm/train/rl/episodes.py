"""Responses with their scores: sampled, measured, rewarded and judged.

generate   responses, and their log-probabilities as sampled         one program
measure    policy, reference, value, score of the reward model       one program
rewards    functions of the texts, on the host, while `measure` runs
judge      advantages and returns, over all responses at once        one program
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import objectives
from jaxlm.core import param
from jaxlm.core.batch import Prompts, Rollout
from jaxlm.data import tokenizers
from jaxlm.data.records import examples
from jaxlm.models.model import Model
from jaxlm.objectives import lora
from jaxlm.objectives.objective import Objective
from jaxlm.objectives.preference import reward
from jaxlm.objectives.rl import grpo, ppo
from jaxlm.objectives.rl.policy_terms import Advantages, Measured, Policy
from jaxlm.ops.losses import surrogate
from jaxlm.parallel import transfer
from jaxlm.train import program
from jaxlm.train.input_types import Arrive
from jaxlm.train.rl import policy_sampling, reward_functions
from jaxlm.train.run.run import Run
from jaxlm.train.step import State


class Episodes(NamedTuple):
    """N scored responses, numpy: rows [N, T], without advantages; log_prob float32[N, T] of their
    targets by the forward pass that learns; parts of the score, float32[N] by name; record
    int32[N], what each prompt is from, -1 in rows that are filling."""

    rows: Rollout
    log_prob: np.ndarray
    parts: dict[str, np.ndarray]
    record: np.ndarray


class Phases(NamedTuple):
    """The compiled programs of a run's rollouts; each compiles once per width of its rows.

    measure(params, frozen, responses) -> (Measured, float32[n] of the reward model or None).
    judge(scored responses, the penalty's coefficient) -> (Advantages, the next coefficient).
    """

    generate: policy_sampling.Generate
    measure: Callable[[param.Tree, param.Tree, Rollout], tuple[Measured, jax.Array | None]]
    judge: Callable[[Rollout, Any], tuple[Advantages, jax.Array]]


def policy(run: Run, model: Model) -> Policy:
    """The Policy of a run's objective, over its rollouts."""
    cfg, rollout = run.objective, run.rollout
    assert rollout is not None
    if isinstance(cfg, ppo.Config):
        return ppo.policy(cfg, model, run.plan)
    assert isinstance(cfg, grpo.Config)
    return grpo.policy(cfg, model, run.plan, group=rollout.samples, longest=rollout.max_new)


def phases(run: Run, model: Model, objective: Objective, stop: tuple[int, ...]) -> Phases:
    """The programs of a run; stop: the ids that end a response."""
    assert run.rollout is not None
    size = {"max_new": run.rollout.max_new, "slots": run.rollout.slots}
    generate = policy_sampling.program(model, objective, stop=stop, **size)
    return Phases(generate, _measure(run, model, objective), _judge(policy(run, model)))


def _measure(
    run: Run, model: Model, objective: Objective
) -> Callable[[param.Tree, param.Tree, Rollout], tuple[Measured, jax.Array | None]]:
    plain = objectives.build(run.objective, model, run.plan)  # as it is without an adapter
    judge, read = program.reward_model(run, run.plan), policy(run, model).measure

    def measure(
        params: param.Tree, frozen: param.Tree, rows: Rollout
    ) -> tuple[Measured, jax.Array | None]:
        weights = objective.weights(params, frozen)
        # an adapter's base is where the run began
        held = {}
        for name, part in plain.frozen.items():
            base = name not in frozen
            held[name] = {k: frozen[lora.BASE][k] for k in part.spec} if base else frozen[name]
        measured = read(weights, held, rows)
        return measured, None if judge is None else reward.score(judge, frozen["reward"], rows)

    return jax.jit(measure)


def _judge(policy: Policy) -> Callable[[Rollout, Any], tuple[Advantages, jax.Array]]:
    def judge(rows: Rollout, coefficient: jax.Array) -> tuple[Advantages, jax.Array]:
        estimate = policy.advantages(rows, coefficient)
        responses = jnp.sum(jnp.any(rows.weight > 0, axis=1).astype(jnp.float32))
        adapted = policy.adapt_kl(coefficient, estimate.metrics, responses)
        metrics = jax.tree.map(jnp.float32, estimate.metrics)
        return estimate._replace(metrics=metrics), jnp.float32(adapted)

    return jax.jit(judge)


class Player:
    """Plays the episodes of a run: its programs, its prompts and their records."""

    def __init__(
        self, run: Run, policy: Policy, phases: Phases, split: examples.Split, arrive: Arrive
    ) -> None:
        """arrive: called at every point that all processes come to."""
        assert run.rollout is not None
        self._run, self._rollout, self._phases, self._split = run, run.rollout, phases, split
        self.policy, self._arrive = policy, arrive
        self._tokenizer = tokenizers.load(run.data.tokenizer)
        rows = run.data.batch * run.rollout.samples
        self._chunk = rows // run.rollout.minibatches // run.plan.microbatches

    def play(
        self,
        state: State,
        prompts: Prompts,
        key: np.ndarray,
        temperature: float,
        rewards: reward_functions.Rewards,
        held_out: bool = False,
    ) -> tuple[Episodes, dict[str, float]]:
        """(the Episodes of prompts [N, P], a response each; seconds by phase).

        Rows are measured as many at a time as a micro-batch of learning has. key uint32[2].

        Raises: FloatingPointError for a policy that is not finite; reward.Failed.
        """
        clock = time.perf_counter()
        self._arrive("sampling responses")
        local = transfer.own(self._run.plan, policy_sampling.narrowed(prompts))
        local, generate = transfer.batch(self._run.plan, local), self._phases.generate
        rows = transfer.fetch(generate(state.params, state.frozen, local, key, temperature))
        _check_finite(rows)
        generated = time.perf_counter()
        rows = policy_sampling.fitted(rows, policy_sampling.width(rows.segments))
        running = []
        for start in range(0, len(rows.tokens), self._chunk):
            stop = start + self._chunk
            part = jax.tree.map(lambda x, at=slice(start, stop): x[at], rows)
            part = transfer.batch(self._run.plan, transfer.own(self._run.plan, part))
            running.append(self._phases.measure(state.params, state.frozen, part))
        self._arrive("rewarding responses")
        scored = self._scored(*transfer.own(self._run.plan, (rows, prompts.row)), rewards, held_out)
        rewarded = time.perf_counter()
        self._arrive("measuring responses")
        scored, parts = transfer.joined(self._run.plan, scored), transfer.fetch(running)
        # chunks [chunk, ...] to [rows, ...]
        measured, judged = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        seconds = {
            "generate": generated - clock,
            "reward": rewarded - generated,
            "measure": time.perf_counter() - rewarded,
        }
        return self._summed(rows, prompts.row, measured, judged, scored), seconds

    def samples(
        self, rows: Rollout, records: np.ndarray, held_out: bool
    ) -> list[reward_functions.Sample]:
        """Texts of the rows that are not filling, with what reward functions read of each."""
        prompts: Any = self._split.val if held_out else self._split.train
        samples = []
        for r in np.flatnonzero(records >= 0):
            tokens = rows.targets[r][rows.weight[r] > 0].tolist()
            if rows.finished[r]:
                tokens = tokens[:-1]  # a template's end of turn may have a text
            row = int(records[r])
            sample = reward_functions.Sample(
                prompt=prompts.text(row),
                response=self._tokenizer.decode(tokens),
                record=prompts.record(row),
                finished=bool(rows.finished[r]),
            )
            samples.append(sample)
        return samples

    def _scored(
        self,
        rows: Rollout,
        records: np.ndarray,
        rewards: reward_functions.Rewards,
        held_out: bool,
    ) -> reward_functions.Scored:
        """The scores of rows, float32[N]: 0 for those that are filling."""

        def spread(x: np.ndarray) -> np.ndarray:
            every = np.zeros(len(records), np.float32)
            every[records >= 0] = x
            return every

        return jax.tree.map(spread, rewards.score(self.samples(rows, records, held_out)))

    def _summed(
        self,
        rows: Rollout,
        records: np.ndarray,
        measured: Measured,
        judged: np.ndarray | None,
        scored: reward_functions.Scored,
    ) -> Episodes:
        """The Episodes; rows that are filling have score 0. judged: by the reward model."""
        parts, score = {_short(name): x for name, x in scored.parts.items()}, scored.score
        if judged is not None:
            parts["model"] = np.where(records >= 0, judged, 0).astype(np.float32)
            score = score + np.float32(self._rollout.reward_model_weight) * parts["model"]
        rows = rows._replace(reference=measured.reference, value=measured.value, score=score)
        return Episodes(rows, measured.log_prob, parts, records)

    def judge(self, rows: Rollout, coefficient: Any) -> tuple[Advantages, jax.Array]:
        """(Advantages, coefficient from then on) of all responses of an iteration, groups of
        `samples` consecutive rows."""
        return self._phases.judge(rows, coefficient)

    def uneven(self, played: Episodes) -> np.ndarray:
        """bool[N]: whether the responses of an episode's group scored differently, by the scores
        that `judge` compares: with the objective's score_clip, unfinished and overlong."""
        scores = np.asarray(self.policy.shaped_score(played.rows))
        return differing(scores, self._rollout.samples)

    def metrics(self) -> list[str]:
        """The names of an iteration's metrics that `judge` and the rewards give."""
        rows = self._run.data.batch * self._rollout.samples
        single: Any = jax.ShapeDtypeStruct((rows,), np.float32)
        wide: Any = jax.ShapeDtypeStruct((rows, 2), np.float32)
        ids = jax.ShapeDtypeStruct((rows, 2), np.int32)
        shapes = Rollout(
            tokens=ids, targets=ids, weight=wide, segments=ids, positions=ids,
            behaviour=wide, reference=wide, value=wide, score=single, finished=single,
        )  # fmt: skip
        first = jax.ShapeDtypeStruct((), np.float32)
        estimate, _ = jax.eval_shape(self._phases.judge, shapes, first)
        model = [] if self._rollout.reward_model is None else ["model"]
        names = [*(_short(name) for name in self._rollout.rewards), *model]
        return [*estimate.metrics, *(f"reward_{name}" for name in names)]


def _short(name: str) -> str:
    """Name of a reward function among a run's metrics."""
    return name.rpartition(":")[2]


def joined(parts: Sequence[Episodes], rows: int | None) -> Episodes:
    """Episodes one after the other, all as wide as the widest; with `rows`, the first so many, or
    empty ones after them."""
    columns = max(part.rows.tokens.shape[1] for part in parts)

    def join(*xs: np.ndarray) -> np.ndarray:
        return np.concatenate([policy_sampling.fitted(x, columns) for x in xs])[:rows]

    episodes: Episodes = jax.tree.map(join, *parts)
    missing = 0 if rows is None else rows - len(episodes.record)
    if not missing:
        return episodes

    def fill(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))

    record = np.pad(episodes.record, (0, missing), constant_values=-1)
    return jax.tree.map(fill, episodes)._replace(record=record)


def differing(scores: np.ndarray, group: int) -> np.ndarray:
    """bool[N]: whether the scores [N] of a group, `group` consecutive ones, are not all equal."""
    rows = scores.reshape(-1, group)  # [N / group, group]
    return np.repeat((rows != rows[:, :1]).any(axis=1), group)


def gap(played: Episodes) -> float:
    """max |ratio - 1| of the policy as it trains and as it sampled: 0 but for rounding."""
    apart = np.where(played.rows.weight > 0, played.log_prob - played.rows.behaviour, 0.0)
    apart = np.minimum(apart, surrogate.LARGEST)
    return float(np.abs(np.expm1(apart)).max(initial=0.0))


RATIOS = ("min", "q01", "q50", "q99", "max", "outside")
"""Names of `ratios`."""


def ratios(played: Episodes) -> dict[str, float]:
    """The histogram of the ratio, over all sampled tokens, of the policy as it trains and as it
    sampled: its least and largest, its quantiles at 1, 50 and 99 %, and the share outside
    [0.9, 1.1]. All are 1, and the share 0, but for rounding; 1 without a token."""
    real = played.rows.weight > 0
    apart = (played.log_prob - played.rows.behaviour)[real].astype(np.float64)
    ratio = np.exp(np.clip(apart, -surrogate.LARGEST, surrogate.LARGEST))
    if not ratio.size:
        ratio = np.ones(1)
    outside = np.mean((ratio < 0.9) | (ratio > 1.1))
    numbers = [ratio.min(), *np.quantile(ratio, [0.01, 0.5, 0.99]), ratio.max(), outside]
    return {name: float(x) for name, x in zip(RATIOS, numbers, strict=True)}


def divergence(played: Episodes) -> np.ndarray:
    """float64[N]: log policy - log reference, summed over each response."""
    apart = np.where(played.rows.weight > 0, played.log_prob - played.rows.reference, 0.0)
    return apart.sum(axis=1, dtype=np.float64)


def summary(played: Episodes, reference: bool) -> dict[str, float]:
    """Means over responses: reward, its deviation and its parts; length in tokens; the share that
    ended by itself; with a reference, k1 to it in nats of a response."""
    real, rows = played.record >= 0, played.rows
    score = rows.score[real].astype(np.float64)
    means = {
        "reward": score.mean(),
        "reward_std": score.std(),
        **{f"reward_{n}": x[real].mean(dtype=np.float64) for n, x in played.parts.items()},
        "length": (rows.weight[real] > 0).sum(axis=1).mean(),
        "finished": rows.finished[real].mean(),
        "responses": real.sum(),
    }
    if reference:
        means["kl"] = divergence(played)[real].mean()
    return {name: float(x) for name, x in means.items()}


def _check_finite(rows: Rollout) -> None:
    bad = np.argwhere(~np.isfinite(rows.behaviour))
    if bad.size:
        raise FloatingPointError(
            f"rollout: row {bad[0][0]}, position {bad[0][1]}: the policy's logits are not finite; "
            "are the weights?"
        )
