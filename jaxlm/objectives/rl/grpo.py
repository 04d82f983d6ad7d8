"""Policy gradients without a critic: a response is judged by the others of its group.

Variants are values of one field; each is an advantage, a surrogate and a mean, with its source:

    grpo          (r - mean) / deviation of the group; clip by token; mean by response, then over
                  responses. Shao et al. 2024 (DeepSeekMath), eq. 3.
    dr_grpo       r - mean; the sum of tokens by a constant: neither easy prompts nor short right
                  and long wrong responses count for more. Liu et al. 2025, eq. 2.
    dapo          as grpo, mean by token over the whole batch, clip further up than down; groups
                  that scored alike are not counted. Yu et al. 2025, eq. 8 to 13. No penalty there.
    gspo          one ratio for a response, the geometric mean of its tokens', and a narrow clip.
                  Zheng et al. 2025, eq. 5 to 7.
    cispo         as dapo, but the ratio is capped instead, and every token keeps its gradient.
                  MiniMax 2025 (M1), eq. 4.
    sapo          a soft gate in place of the clip. Gao et al. 2025, eq. 5.
    luspo         gspo weighted by length. "Length-Unbiased Sequence Policy Optimization" 2026.
    vespo         a smooth weight of the response's ratio in place of the clip. 2026.
    rloo          r - mean of the others; the ratio of whole responses' probabilities. Kool et al.
                  2019; Ahmadian et al. 2024. Its penalty is in the reward.
    reinforce     r, less what later tokens cost, whitened over the whole batch; clip by token, mean
                  by token. Hu 2025 (REINFORCE++), eq. 3 to 5. Its penalty is in the reward.
    reinforce_baseline   as reinforce, with the group's mean subtracted first. Hu 2025, section 3.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.core.batch import Rollout
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Frozen, Objective, check_kind
from jaxlm.objectives.rl import policy_terms
from jaxlm.objectives.rl.policy_terms import Advantages, Measured, Policy
from jaxlm.ops.losses import advantages, surrogate
from jaxlm.parallel.plan import Plan

Name = Literal[
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "sapo",
    "luspo",
    "vespo",
    "rloo",
    "reinforce",
    "reinforce_baseline",
]


class Variant(NamedTuple):
    """advantage: of a response in its group. surrogate: by token, of `level`: the ratio of a token,
    of a response by mean or by sum of its tokens' logarithms. low, high: the clip of the source;
    None where nothing is clipped that way. counts_ties: whether groups in which all responses
    scored alike count; where they do not, `loss` detects them by an advantage of exactly 0."""

    advantage: Literal["standardised", "centred", "left_out", "whitened", "whitened_centred"]
    surrogate: Literal["clipped", "capped", "gated", "shaped"]
    level: Literal["token", "mean", "sum"]
    aggregate: surrogate.Aggregate
    low: float | None = 0.2
    high: float | None = 0.2
    counts_ties: bool = True


VARIANTS: dict[str, Variant] = {
    "grpo": Variant("standardised", "clipped", "token", "sequence"),
    "dr_grpo": Variant("centred", "clipped", "token", "constant"),
    "dapo": Variant("standardised", "clipped", "token", "token", 0.2, 0.28, counts_ties=False),
    "gspo": Variant("standardised", "clipped", "mean", "sequence", 3e-4, 4e-4),
    "cispo": Variant("standardised", "capped", "token", "token", None, 5.0),
    "sapo": Variant("standardised", "gated", "token", "sequence", None, None),
    "luspo": Variant("standardised", "clipped", "mean", "sequence_sum", 3e-4, 4e-4),
    "vespo": Variant("standardised", "shaped", "sum", "token", None, None),
    "rloo": Variant("left_out", "clipped", "sum", "sequence"),
    "reinforce": Variant("whitened", "clipped", "token", "token"),
    "reinforce_baseline": Variant("whitened_centred", "clipped", "token", "token"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Group-relative policy optimisation, and its relatives."""

    KIND = "grpo"

    variant: Name = "grpo"
    """Which, with its source, in the module's text."""
    clip_low: float | None = None
    """Distance below 1 up to which the ratio counts; None is the variant's own."""
    clip_high: float | None = None
    """Distance above 1; for cispo the largest ratio itself. None is the variant's own."""
    most: float | None = None
    """The largest ratio that counts also with a negative advantage; None bounds none."""
    dual: float | None = None
    """With a negative advantage A, the loss is at most this times -A (Ye et al. 2020 use 3)."""
    beta: float = 0.0
    """Coefficient of the KL penalty to where the policy began; 0 needs no reference (GRPO used
    0.04)."""
    kl: Literal["loss", "reward"] = "loss"
    """Place of the penalty: a term of the loss, or (its k1) taken off the reward."""
    kl_estimator: Literal["k2", "k3", "k3_ratio"] = "k3"
    """The penalty of a token in the loss. The gradient of k2, and of k3 times the ratio of policies
    (DeepSeek V3.2, eq. 7), is that of KL(policy || reference); that of k3, which GRPO has, is that
    of KL(reference || policy). k1's is 0, so it is not on offer."""
    divisor: float = 64.0
    """Constant by which dr_grpo divides a response's sum over tokens. It scales the whole gradient;
    usual is the most tokens of a response, rollout.max_new."""
    overlong: int = 0
    """Last tokens of a response's room, over which its reward falls by up to 1 (Yu et al. 2025,
    eq. 13); 0 does nothing."""
    gamma: float = 1.0
    """Discount of later rewards, by token: of reinforce."""
    score_clip: float | None = None
    """Distance from 0 at which a response's score is clipped; None does not clip."""
    unfinished: float | None = None
    """The score of a response that did not end; None gives it its own."""
    entropy: float = 0.0
    """Weight of a bonus for entropy, in nats by token."""
    temperature: float = 1.0
    """The policy is softmax(logits / temperature): in sampling, and in every log-probability."""

    def __post_init__(self) -> None:
        _check(self)


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The variant's surrogate, plus beta times the KL penalty where that is in the loss, less
    entropy times the entropy, in the variant's mean. Dropout is off. Reported:
    `policy_terms.report`.

    frozen: "reference", the weights that the run began from, where beta is above 0.

    Raises: ValueError for a model that does not continue texts.
    """
    check_kind(model, "decoder", "grpo")
    variant = VARIANTS[cfg.variant]

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Rollout, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        terms = policy_terms.read(model, params, batch, plan, cfg.temperature)
        here = batch.weight > 0
        now = jnp.where(here, terms.log_prob, 0.0)
        before, reference = (jnp.where(here, x, 0.0) for x in (batch.behaviour, batch.reference))
        policy, bound = policy_loss(cfg, now, before, batch.advantage, batch.weight)
        each = policy
        if cfg.beta and cfg.kl == "loss":
            each = each + cfg.beta * _kl_loss(cfg, now, before, reference, batch.weight)
        each = each - cfg.entropy * terms.entropy if cfg.entropy else each
        weight = batch.weight
        if not variant.counts_ties:
            # 0 where the whole group scored alike, and there alone (`group_advantages`)
            weight = weight * jnp.any(batch.advantage != 0, axis=1, keepdims=True)
        total, count = surrogate.total(each, weight, variant.aggregate, cfg.divisor)
        return total, count, policy_terms.watch(batch, terms, now - before, policy, bound)

    def report(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return policy_terms.report(sums, cfg.beta > 0)

    frozen = {"reference": Frozen(model.spec)} if cfg.beta else {}
    return Objective(model.spec, loss, report, frozen=frozen)


def policy_loss(
    cfg: Config, now: jax.Array, before: jax.Array, advantage: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(loss, whether clipping bound it), which broadcast to [N, T], of log-probabilities [N, T]
    under the policy now and the one that sampled."""
    variant = VARIANTS[cfg.variant]
    ratio = _log_ratio(variant.level, now - before, weight)
    low = variant.low if cfg.clip_low is None else cfg.clip_low
    high = variant.high if cfg.clip_high is None else cfg.clip_high
    if variant.level == "mean":  # one advantage for a response, as there is one ratio
        advantage = _of_response(advantage, weight)
    if variant.surrogate == "clipped":
        assert low is not None and high is not None
        return surrogate.clipped(ratio, advantage, low, high, cfg.most, cfg.dual)
    if variant.surrogate == "capped":
        assert high is not None
        return surrogate.capped(ratio, advantage, now, high)
    if variant.surrogate == "gated":
        return surrogate.gated(ratio, advantage)
    return surrogate.shaped(ratio, advantage, now)


def _log_ratio(level: str, log_ratio: jax.Array, weight: jax.Array) -> jax.Array:
    if level == "token":
        return log_ratio
    return surrogate.of_response(log_ratio, weight, level == "mean")


def _of_response(advantage: jax.Array, weight: jax.Array) -> jax.Array:
    count = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)
    return jnp.sum(weight * advantage, axis=1, keepdims=True) / count


def _kl_loss(
    cfg: Config, now: jax.Array, before: jax.Array, reference: jax.Array, weight: jax.Array
) -> jax.Array:
    if cfg.kl_estimator == "k2":
        return advantages.k2(now, reference)
    penalty = advantages.k3(now, reference)
    if cfg.kl_estimator == "k3":
        return penalty
    level = "mean" if VARIANTS[cfg.variant].level == "mean" else "token"  # as in TRL
    return penalty * surrogate.ratio(_log_ratio(level, now - before, weight))


def policy(cfg: Config, model: Model, plan: Plan = Plan(), *, group: int, longest: int) -> Policy:
    """The Policy of these settings: advantages by `group_advantages`; the penalty's coefficient
    stays as it is."""
    return Policy(
        temperature=cfg.temperature,
        kl_coefficient=cfg.beta,
        measure=functools.partial(_measure, cfg, model, plan),
        shaped_score=functools.partial(shaped_score, cfg, longest=longest),
        advantages=functools.partial(group_advantages, cfg, group=group, longest=longest),
        adapt_kl=lambda coefficient, metrics, responses: coefficient,
    )


def _measure(
    cfg: Config, model: Model, plan: Plan, params: param.Tree, frozen: param.Tree, rows: Rollout
) -> Measured:
    seen = policy_terms.read(model, params, rows, plan, cfg.temperature)
    reference = policy_terms.reference(model, frozen, rows, plan, cfg.temperature)
    return Measured(seen.log_prob, reference, jnp.zeros_like(seen.log_prob))


def group_advantages(
    cfg: Config, rows: Rollout, coefficient: jax.Array | float, *, group: int, longest: int
) -> Advantages:
    """The Advantages of responses sampled together. group: responses to each prompt, in consecutive
    rows. longest: the most tokens a response may have.

    All tokens of a response have its advantage; in reinforce each has that of what comes after it,
    too. returns are the response's reward: nothing is learnt from them. coefficient is beta.
    Where groups that scored alike do not count (dapo), an advantage is 0 in those groups alone: a
    response that scored its group's mean has the smallest float32 instead, so that its tokens and
    its penalty stay. ties: the share of groups that scored alike, of those with any response.

    Raises: ValueError for groups of one response, but for reinforce.
    """
    variant = VARIANTS[cfg.variant]
    score = shaped_score(cfg, rows, longest=longest)
    weight, sampled = rows.weight, rows.weight > 0
    metrics = policy_terms.lengths(rows)
    cost = jnp.zeros_like(weight)
    if cfg.beta:
        metrics |= {"kl": policy_terms.divergence(rows)}
        metrics |= {"kl_coefficient": jnp.asarray(coefficient)}
    if cfg.beta and cfg.kl == "reward":
        cost = jnp.where(sampled, coefficient * advantages.k1(rows.behaviour, rows.reference), 0.0)
    reward = score - jnp.sum(cost, axis=1)  # [N]
    if group > 1:
        metrics |= {"ties": _ties(score, jnp.any(sampled, axis=1), group)}
    if variant.advantage in ("whitened", "whitened_centred"):
        centred = variant.advantage == "whitened_centred"
        last = advantages.centred(score, group) if centred else score
        to_go = advantages.to_go(advantages.at_last(last, weight) - cost, weight, cfg.gamma)
        advantage = advantages.whiten(to_go, weight)
    else:
        by_row = _ADVANTAGES[variant.advantage](reward, group)  # [N]
        if not variant.counts_ties:
            at_mean = (by_row == 0) & ~advantages.alike(reward, group)
            by_row = jnp.where(at_mean, _SMALLEST, by_row)
        advantage = jnp.where(sampled, by_row[:, None], 0.0)  # [N, T]
    return Advantages(advantage, jnp.where(sampled, reward[:, None], 0.0), metrics)


def shaped_score(cfg: Config, rows: Rollout, *, longest: int) -> jax.Array:
    """float32[N]: what responses of a group are compared by, without a penalty: their scores with
    `score_clip`, `unfinished` and `overlong`."""
    score = policy_terms.scored(rows, cfg.unfinished, cfg.score_clip)
    if not cfg.overlong:
        return score
    length = jnp.sum((rows.weight > 0).astype(jnp.int32), axis=1)
    return score + advantages.overlong(length, longest, cfg.overlong)


def _ties(score: jax.Array, responded: jax.Array, group: int) -> jax.Array:
    """The share of groups that scored alike, of those with a response (`responded` bool[N])."""
    real = jnp.repeat(jnp.any(responded.reshape(-1, group), axis=1), group)  # [N]
    return jnp.sum(real & advantages.alike(score, group)) / jnp.maximum(jnp.sum(real), 1)


# An advantage that moves nothing and is not 0: the smallest normal float32.
_SMALLEST = 2.0**-126

_ADVANTAGES = {
    "standardised": advantages.standardised,
    "centred": advantages.centred,
    "left_out": advantages.left_out,
}


def _check(cfg: Config) -> None:
    names = ("clip_low", "clip_high", "most", "score_clip", "temperature", "divisor")
    check.within("objective", cfg, *names, above=0)
    check.within("objective", cfg, "beta", "overlong", "entropy", least=0)
    check.within("objective", cfg, "gamma", least=0, most=1)
    check.within("objective", cfg, "dual", above=1)  # Ye et al. 2020 used 3
    check.refuse("", _unread(cfg))


def _unread(cfg: Config) -> Iterator[str]:
    """A line for each field that is given and that the variant does not read."""
    variant = VARIANTS[cfg.variant]
    bounds = {"clip_low": variant.low is None, "clip_high": variant.high is None}
    bounds |= dict.fromkeys(("most", "dual"), variant.surrogate != "clipped")
    names = [name for name, unread in bounds.items() if unread]
    why = f"with {cfg.variant}, which has nothing that it would bound"
    yield from check.changed("objective", cfg, *names, why=why)
    if variant.aggregate != "constant":
        why = f"with {cfg.variant}: only dr_grpo divides by a constant"
        yield from check.changed("objective", cfg, "divisor", why=why)
    if not variant.advantage.startswith("whitened"):
        why = f"with {cfg.variant}, which rewards whole responses"
        yield from check.changed("objective", cfg, "gamma", why=why)
