"""Proximal policy optimisation of a language model against a reward. Schulman et al. 2017; Ziegler
et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022.

A step of learning reads part of a `batch.Rollout`, whose advantages were estimated once, over all
responses that were sampled together.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.core.batch import Rollout
from jaxlm.models.layers import value_head
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.objectives.objective import Begun, Frozen, Objective, check_kind
from jaxlm.objectives.rl import policy_terms
from jaxlm.objectives.rl.policy_terms import Advantages, Measured, Policy
from jaxlm.ops.losses import advantages, surrogate
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A KL penalty that stays as it is."""

    coefficient: float = 0.05
    """Cost of a nat of divergence, in units of the reward; 0 needs no reference."""


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """A KL penalty that keeps the divergence near a target. Ziegler et al. 2019, section 2.2."""

    coefficient: float = 0.2
    """Cost of a nat at first, in units of the reward."""
    target: float = 6.0
    """The divergence to stay near, in nats of a whole response."""
    horizon: float = 10000.0
    """Responses over which the coefficient can change by a fifth."""


@dataclasses.dataclass(frozen=True)
class Config:
    """PPO with a value head, and a KL penalty to where the policy began, in the reward."""

    KIND = "ppo"

    kl: Fixed | Adaptive = Adaptive()
    """The penalty's coefficient: fixed, or steered towards a target."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """The penalty of a token. k1 makes the reward of a whole response unbiased."""
    clip: float = 0.2
    """Distance from 1 up to which the ratio of policies counts."""
    dual: float | None = None
    """With a negative advantage A, the loss is at most this times -A (Ye et al. 2020 use 3)."""
    value_clip: float | None = 0.2
    """Distance from the former value at which the new one is clipped; None does not clip."""
    value_weight: float = 0.1
    """Weight of the value's loss relative to the policy's (0.1 in Ziegler et al. 2019)."""
    critic: Literal["shared", "own"] = "shared"
    """Input of the value head: the policy's own last layer, or a second model of the same kind,
    initialised with random weights or with those of `critic_start`."""
    critic_start: str | None = None
    """The run directory whose weights an own critic begins from: a reward model's, whose score then
    is the first value (Stiennon et al. 2020; Ouyang et al. 2022), or a language model's of the same
    shape, such as `start`, with a head of 0."""
    gamma: float = 1.0
    """Discount of later rewards, by token."""
    lam: float = 0.95
    """Weight of longer returns in the advantage: 0 trusts the value, 1 the rewards."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1, over all responses sampled together."""
    whiten_rewards: bool = False
    """Scale rewards, penalty included, to variance 1, as Ziegler et al. 2019's code does."""
    score_clip: float | None = None
    """Distance from 0 at which a response's score is clipped; None does not clip."""
    unfinished: float | None = None
    """The score of a response that did not end (Stiennon et al. 2020: -1); None gives its own."""
    entropy: float = 0.0
    """Weight of a bonus for entropy, in nats by token."""
    temperature: float = 1.0
    """The policy is softmax(logits / temperature): in sampling, and in every log-probability."""

    def __post_init__(self) -> None:
        _check(self)


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The clipped surrogate, plus value_weight times the value's loss, less entropy times the
    entropy; means by token. Dropout is off. Reported: `policy_terms.report`, value_loss,
    value_clipped and explained_variance.

    frozen: "reference", the weights that the run began from, unless the penalty is Fixed(0).

    Raises: ValueError for a model that does not continue texts.
    """
    check_kind(model, "decoder", "ppo")

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Rollout, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        terms = policy_terms.read(model, params, batch, plan, cfg.temperature)
        now = values(cfg, model, params, batch, terms.x)
        log_ratio = jnp.where(batch.weight > 0, terms.log_prob - batch.behaviour, 0.0)
        policy, bound = surrogate.clipped(
            log_ratio, batch.advantage, cfg.clip, cfg.clip, dual=cfg.dual
        )
        critic, held = surrogate.value(now, batch.value, batch.returns, cfg.value_clip)
        each = policy + cfg.value_weight * critic
        each = each - cfg.entropy * terms.entropy if cfg.entropy else each
        total, weight = surrogate.total(each, batch.weight, "token")
        sums = policy_terms.watch(batch, terms, log_ratio, policy, bound)
        return total, weight, sums | _value_sums(batch, now, critic, held)

    def report(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return policy_terms.report(sums, penalised(cfg)) | _value_report(sums["value"])

    frozen = {"reference": Frozen(model.spec)} if penalised(cfg) else {}
    begun = {}
    if cfg.critic_start is not None:
        begun["critic"] = Begun(cfg.critic_start, {"value": "score"})
    return Objective(spec(cfg, model), loss, report, frozen=frozen, begun=begun)


def spec(cfg: Config, model: Model) -> param.Tree:
    """The weights trained: the model's, and a value head that begins at 0 (Huang et al. 2024, "The
    N+ Implementation Details of RLHF with PPO"), or a critic: a model without an output matrix, and
    such a head."""
    embed = model.cfg.embed
    head = {"value": param.shaper(embed=embed)("embed", init=param.zeros)}
    if cfg.critic == "shared":
        return model.spec | head
    unread = ("unembed", "unembed_bias", "ahead")
    trunk = {name: part for name, part in model.spec.items() if name not in unread}
    return model.spec | {"critic": trunk | head}


def values(cfg: Config, model: Model, params: param.Tree, rows: Any, x: jax.Array) -> jax.Array:
    """float32[N, T]: the value of the rest of each response before every target. x [N, T, D]
    is the output of the policy's last layer for these rows."""
    if cfg.critic == "shared":
        return value_head.read(params["value"], x)
    own = params["critic"]
    return value_head.read(own["value"], log_probs.forward(model, own, rows).x)


def policy(cfg: Config, model: Model, plan: Plan = Plan()) -> Policy:
    """The Policy of these settings: advantages by `gae_advantages`."""
    return Policy(
        temperature=cfg.temperature,
        kl_coefficient=cfg.kl.coefficient,
        measure=functools.partial(_measure, cfg, model, plan),
        shaped_score=functools.partial(shaped_score, cfg),
        advantages=functools.partial(gae_advantages, cfg),
        adapt_kl=functools.partial(_adapt_kl, cfg),
    )


def _measure(
    cfg: Config, model: Model, plan: Plan, params: param.Tree, frozen: param.Tree, rows: Rollout
) -> Measured:
    seen = policy_terms.read(model, params, rows, plan, cfg.temperature)
    reference = policy_terms.reference(model, frozen, rows, plan, cfg.temperature)
    return Measured(seen.log_prob, reference, values(cfg, model, params, rows, seen.x))


def gae_advantages(cfg: Config, rows: Rollout, coefficient: jax.Array | float) -> Advantages:
    """The Advantages of responses sampled together.

    A token earns -coefficient times its divergence from the reference; a response's last token
    also earns its score (not one position later, as in old TRL). Then `advantages.gae`, and
    advantages whitened over all tokens of all responses; returns are not.
    """
    weight, cost = rows.weight, jnp.zeros_like(rows.weight)
    if penalised(cfg):
        kl = advantages.KL[cfg.kl_estimator](rows.behaviour, rows.reference)
        cost = jnp.where(weight > 0, coefficient * kl, 0.0)
    reward = advantages.at_last(shaped_score(cfg, rows), weight) - cost
    reward = advantages.whiten(reward, weight, keep=1.0) if cfg.whiten_rewards else reward
    advantage, returns = advantages.gae(reward, rows.value, weight, cfg.gamma, cfg.lam)
    metrics = policy_terms.lengths(rows) | {"advantage_std": _std(advantage, weight)}
    if penalised(cfg):
        kl = policy_terms.divergence(rows)
        metrics |= {"kl": kl, "kl_coefficient": jnp.asarray(coefficient)}
        metrics |= {"objective": metrics["score"] - coefficient * kl}
    if cfg.whiten_advantages:
        advantage = advantages.whiten(advantage, weight)
    return Advantages(advantage, returns, metrics)


def shaped_score(cfg: Config, rows: Rollout) -> jax.Array:
    """float32[N]: the scores with `score_clip` and `unfinished`, without a penalty."""
    return policy_terms.scored(rows, cfg.unfinished, cfg.score_clip)


def penalised(cfg: Config) -> bool:
    """Whether there is a penalty, and so a reference."""
    return cfg.kl.coefficient > 0


def _adapt_kl(
    cfg: Config,
    coefficient: jax.Array,
    metrics: dict[str, jax.Array],
    responses: jax.Array | int,
) -> jax.Array:
    if isinstance(cfg.kl, Fixed):
        return coefficient
    return advantages.adapted(coefficient, metrics["kl"], cfg.kl.target, cfg.kl.horizon, responses)


def _value_sums(
    batch: Rollout, now: jax.Array, critic: jax.Array, held: jax.Array
) -> dict[str, jax.Array]:
    error = batch.returns - now
    moments = (batch.returns, batch.returns**2, error, error**2)
    here = batch.weight > 0
    parts = [jnp.sum(jnp.where(here, x, 0.0)) for x in (jnp.ones_like(now), *moments, critic, held)]
    return {"value": jax.lax.stop_gradient(jnp.stack(parts))}


def _value_report(sums: jax.Array) -> dict[str, jax.Array]:
    n, *parts = sums
    first, second, error, squared, loss, held = (x / jnp.maximum(n, 1.0) for x in parts)
    spread = second - first**2
    missed = squared - error**2
    return {
        "value_loss": loss,
        "value_clipped": held,
        "explained_variance": 1.0 - missed / jnp.maximum(spread, 1e-8),
        "return": first,
    }


def _std(x: jax.Array, weight: jax.Array) -> jax.Array:
    n = jnp.maximum(jnp.sum(weight), 1.0)
    mean = jnp.sum(weight * x) / n
    return jnp.sqrt(jnp.sum(weight * jnp.square(x - mean)) / n)


def _check(cfg: Config) -> None:
    check.within("objective", cfg, "clip", "temperature", "value_clip", "score_clip", above=0)
    check.within("objective", cfg, "kl.coefficient", "value_weight", "entropy", least=0)
    check.within("objective", cfg, "gamma", "lam", least=0, most=1)
    check.within("objective", cfg, "dual", above=1)  # Ye et al. 2020 used 3
    if isinstance(cfg.kl, Adaptive):
        names = ("kl.coefficient", "kl.target", "kl.horizon")
        check.within("objective", cfg, *names, above=0)
    if cfg.critic != "own":
        why = "with objective.critic='shared'; objective.critic='own' begins from it"
        check.refuse("", check.changed("objective", cfg, "critic_start", why=why))
