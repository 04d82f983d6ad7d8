"""Responses with their scores: sampled, measured, rewarded and judged.

generate   responses, and their log-probabilities as sampled         one program
measure    policy, reference, value, score of the reward model       one program
rewards    functions of the texts, on the host, while `measure` runs
judge      advantages and returns, over all responses at once        one program
"""

import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import objectives
from jaxlm.core import param
from jaxlm.core.batch import Prompts
from jaxlm.data import tokenizers
from jaxlm.data.records import examples
from jaxlm.models.layers import value_head
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs, lora
from jaxlm.objectives.objective import Objective
from jaxlm.objectives.rl import grpo, policy_terms, ppo
from jaxlm.ops.losses import surrogate
from jaxlm.parallel import transfer
from jaxlm.train import program
from jaxlm.train.rl import policy_sampling, reward_functions
from jaxlm.train.rl.policy_sampling import Responses
from jaxlm.train.run.run import Run
from jaxlm.train.step import State

Told = dict[str, jax.Array]  # float32 scalars by name


class Episodes(NamedTuple):
    """N responses, numpy: rows [N, T]; policy, reference and value float32[N, T] at their targets;
    score float32[N], the weighted sum of its parts float32[N] by name; record int32[N], what each
    prompt is from, -1 in rows that are filling."""

    rows: Responses
    policy: np.ndarray
    reference: np.ndarray
    value: np.ndarray
    score: np.ndarray
    parts: dict[str, np.ndarray]
    record: np.ndarray


class Judged(NamedTuple):
    """advantage and returns float32[N, T], metrics of the responses, and the coefficient of the
    penalty from then on."""

    advantage: jax.Array
    returns: jax.Array
    told: Told
    coefficient: jax.Array


class Phases(NamedTuple):
    """The compiled programs of a run's rollouts; each compiles once per width of its rows.

    measure(params, frozen, Responses) -> {policy, reference, value [n, T]; score [n] of the reward
    model, if there is one}. judge(the arrays of a `policy_terms.Sampled`, coefficient) -> Judged.
    """

    generate: policy_sampling.Generate
    measure: Callable[[param.Tree, param.Tree, Responses], dict[str, jax.Array]]
    judge: Callable[[dict[str, jax.Array], jax.Array], Judged]


def module(run: Run) -> ModuleType:
    """The objective's module: `measure`, `judge`, `coefficient` and `adapt` are in it."""
    return next(m for m in objectives.OBJECTIVES.values() if type(run.objective) is m.Config)


def temperature(run: Run) -> float:
    """Temperature that the logits of a run's responses are divided by."""
    assert isinstance(run.objective, ppo.Config | grpo.Config)
    return run.objective.temperature


def phases(run: Run, model: Model, objective: Objective, stop: tuple[int, ...]) -> Phases:
    """The programs of a run; stop: the ids that end a response."""
    assert run.rollout is not None
    made = policy_sampling.program(model, objective, max_new=run.rollout.max_new, stop=stop)
    return Phases(made, _measure(run, model, objective), _judge(run))


def _measure(
    run: Run, model: Model, objective: Objective
) -> Callable[[param.Tree, param.Tree, Responses], dict[str, jax.Array]]:
    cfg, plan, of = run.objective, run.plan, module(run)
    plain = objectives.build(cfg, model, plan)  # as it is without an adapter
    judge = program.reward_model(run, plan)

    def measure(params: param.Tree, frozen: param.Tree, rows: Responses) -> dict[str, jax.Array]:
        weights = objective.weights(params, frozen)
        # an adapter's base is where the run began
        others = {
            name: {k: frozen[lora.BASE][k] for k in part.spec}
            if name not in frozen
            else frozen[name]
            for name, part in plain.frozen.items()
        }
        policy, reference, value = of.measure(cfg, model, weights, others, rows, plan)
        found = {"policy": policy, "reference": reference, "value": value}
        if judge is not None:
            w = frozen["reward"]
            x = log_probs.forward(judge, w, rows).x
            found["score"] = value_head.at_end(w["score"], x, rows.segments)
        return found

    return jax.jit(measure)


def _judge(run: Run) -> Callable[[dict[str, jax.Array], jax.Array], Judged]:
    cfg, of, rollout = run.objective, module(run), run.rollout
    assert rollout is not None

    def judge(arrays: dict[str, jax.Array], coefficient: jax.Array) -> Judged:
        whole = policy_terms.Sampled(**arrays, group=rollout.samples, longest=rollout.max_new)
        advantage, returns, told = of.judge(cfg, whole, coefficient)
        count = jnp.sum(jnp.any(whole.weight > 0, axis=1).astype(jnp.float32))
        then = of.adapt(cfg, coefficient, told, count)
        told = jax.tree.map(jnp.float32, told)
        return Judged(advantage, returns, told, jnp.float32(then))

    return jax.jit(judge)


class Player:
    """Plays the episodes of a run: its programs, its prompts and their records."""

    def __init__(self, run: Run, made: Phases, found: examples.Split) -> None:
        assert run.rollout is not None
        self._run, self._rollout, self._phases, self._found = run, run.rollout, made, found
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
        asked = transfer.batch(self._run.plan, policy_sampling.narrowed(prompts))
        made = self._phases.generate(state.params, state.frozen, asked, key, temperature)
        rows = Responses(*jax.device_get(made))
        _check_finite(rows)
        generated = time.perf_counter()
        columns = policy_sampling.width(rows.segments)
        rows = Responses(*(policy_sampling.fitted(x, columns) for x in rows))
        running = []
        for at in range(0, len(rows.tokens), self._chunk):
            part = transfer.batch(self._run.plan, Responses(*(x[at:][: self._chunk] for x in rows)))
            running.append(self._phases.measure(state.params, state.frozen, part))
        scored = rewards.score(self.samples(rows, prompts.row, held_out))
        rewarded = time.perf_counter()
        found = [jax.device_get(part) for part in running]
        whole = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        seconds = {
            "generate": generated - clock,
            "reward": rewarded - generated,
            "measure": time.perf_counter() - rewarded,
        }
        return self._summed(rows, prompts.row, whole, scored), seconds

    def samples(
        self, rows: Responses, records: np.ndarray, held_out: bool
    ) -> list[reward_functions.Sample]:
        """Texts of the rows that are not filling, with what reward functions read of each."""
        asked: Any = self._found.val if held_out else self._found.train
        found = []
        for r in np.flatnonzero(records >= 0):
            tokens = rows.targets[r][rows.weight[r] > 0].tolist()
            if rows.finished[r]:
                tokens = tokens[:-1]  # a template's end of turn may have a text
            row = int(records[r])
            said = self._tokenizer.decode(tokens)
            ended = bool(rows.finished[r])
            found.append(reward_functions.Sample(asked.text(row), said, asked.record(row), ended))
        return found

    def _summed(
        self,
        rows: Responses,
        records: np.ndarray,
        whole: dict[str, np.ndarray],
        scored: reward_functions.Scored,
    ) -> Episodes:
        """The Episodes; rows that are filling have score 0."""
        here = records >= 0

        def spread(x: np.ndarray) -> np.ndarray:
            every = np.zeros(len(here), np.float32)
            every[here] = x
            return every

        parts = {_short(name): spread(x) for name, x in scored.parts.items()}
        score = spread(scored.score)
        if "score" in whole:
            parts["model"] = np.where(here, whole["score"], 0).astype(np.float32)
            score = score + np.float32(self._rollout.reward_model_weight) * parts["model"]
        measured = (whole[name] for name in ("policy", "reference", "value"))
        return Episodes(rows, *measured, score, parts, records)

    def judge(self, played: Episodes, coefficient: Any) -> Judged:
        """The Judged of all episodes of an iteration, groups of `samples` consecutive rows."""
        return self._phases.judge(_judged(played), coefficient)

    def uneven(self, played: Episodes) -> np.ndarray:
        """bool[N]: whether the responses of an episode's group scored differently, by the scores
        that `judge` compares: with the objective's score_clip, unfinished and overlong."""
        group = self._rollout.samples
        whole = policy_terms.Sampled(**_judged(played), group=group, longest=self._rollout.max_new)
        scores = np.asarray(module(self._run).shaped_score(self._run.objective, whole))
        return differing(scores, group)

    def told(self) -> list[str]:
        """The names of an iteration's numbers that `judge` and the rewards give."""
        rows = self._run.data.batch * self._rollout.samples
        one: Any = jax.ShapeDtypeStruct((rows,), np.float32)
        wide: Any = jax.ShapeDtypeStruct((rows, 2), np.float32)
        ids = jax.ShapeDtypeStruct((rows, 2), np.int32)
        responses = Responses(ids, ids, wide, ids, ids, wide, one)
        shapes = Episodes(responses, wide, wide, wide, one, {}, one)
        first = jax.ShapeDtypeStruct((), np.float32)
        judged = jax.eval_shape(self._phases.judge, _judged(shapes), first)
        model = [] if self._rollout.reward_model is None else ["model"]
        names = [*(_short(name) for name in self._rollout.rewards), *model]
        return [*judged.told, *(f"reward_{name}" for name in names)]


def _judged(played: Episodes) -> dict[str, Any]:
    """The arrays of the `policy_terms.Sampled` of episodes."""
    return played.rows._asdict() | {
        "reference": played.reference,
        "value": played.value,
        "score": played.score,
    }


def _short(name: str) -> str:
    """Name of a reward function among a run's metrics."""
    return name.rpartition(":")[2]


def joined(parts: Sequence[Episodes], rows: int | None) -> Episodes:
    """Episodes one after the other, all as wide as the widest; with `rows`, the first so many, or
    empty ones after them."""
    columns = max(part.rows.tokens.shape[1] for part in parts)

    def join(*xs: np.ndarray) -> np.ndarray:
        return np.concatenate([policy_sampling.fitted(x, columns) for x in xs])[:rows]

    whole: Episodes = jax.tree.map(join, *parts)
    if rows is None or rows == len(whole.score):
        return whole
    missing = rows - len(whole.score)

    def fill(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))

    record = np.pad(whole.record, (0, missing), constant_values=-1)
    return jax.tree.map(fill, whole)._replace(record=record)


def differing(scores: np.ndarray, group: int) -> np.ndarray:
    """bool[N]: whether the scores [N] of a group, `group` consecutive ones, are not all equal."""
    rows = scores.reshape(-1, group)
    return np.repeat((rows != rows[:, :1]).any(axis=1), group)


def gap(played: Episodes) -> float:
    """max |ratio - 1| of the policy as it trains and as it sampled: 0 but for rounding."""
    apart = np.where(played.rows.weight > 0, played.policy - played.rows.behaviour, 0.0)
    apart = np.minimum(apart, surrogate.LARGEST)
    return float(np.abs(np.expm1(apart)).max(initial=0.0))


def divergence(played: Episodes) -> np.ndarray:
    """float64[N]: log policy - log reference, summed over each response."""
    apart = np.where(played.rows.weight > 0, played.policy - played.reference, 0.0)
    return apart.sum(axis=1, dtype=np.float64)


def summary(played: Episodes, reference: bool) -> dict[str, float]:
    """Means over responses: reward, its deviation and its parts; length in tokens; the share that
    ended by itself; with a reference, k1 to it in nats of a response."""
    here = played.record >= 0
    score = played.score[here].astype(np.float64)
    found = {
        "reward": score.mean(),
        "reward_std": score.std(),
        **{f"reward_{n}": x[here].mean(dtype=np.float64) for n, x in played.parts.items()},
        "length": (played.rows.weight[here] > 0).sum(axis=1).mean(),
        "finished": played.rows.finished[here].mean(),
        "responses": here.sum(),
    }
    if reference:
        found["kl"] = divergence(played)[here].mean()
    return {name: float(x) for name, x in found.items()}


def _check_finite(rows: Responses) -> None:
    bad = np.argwhere(~np.isfinite(rows.behaviour))
    if bad.size:
        raise FloatingPointError(
            f"rollout: row {bad[0][0]}, position {bad[0][1]}: the policy's logits are not finite; "
            "are the weights?"
        )
