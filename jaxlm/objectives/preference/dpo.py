"""Learning from preferences without a reward model: DPO and its relatives.

The losses are in ops/losses/preference.py, each with its source; here are their inputs. A
batch is `Choices`. Every ordered pair of a prompt's responses is a pair, and pairs are averaged per
prompt, so a ranking of K weighs as much as one of two (Ouyang et al. 2022, section 3.5, for
rewards). Of a preference that holds with probability p, both orders are learnt from, with p and 1 -
p.

The policy is read without dropout, as the reference is, whatever the model's own rate.
"""

import dataclasses
import inspect
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check, param, precision
from jaxlm.core.batch import Choices
from jaxlm.models.layers import moe
from jaxlm.models.model import Model
from jaxlm.objectives import load_balancing
from jaxlm.objectives.objective import Frozen, Objective, check_kind
from jaxlm.objectives.preference import kto, responses
from jaxlm.ops.losses import preference
from jaxlm.parallel.plan import Plan

Name = Literal[
    "dpo", "dpo_mean", "cdpo", "robust", "hinge", "ipo_sum", "ipo_mean", "exo", "discopop", "rpo",
    "nca", "bco", "sppo", "apo_zero", "apo_down", "cpo", "simpo", "orpo", "kto_pair", "aot",
    "aot_unpaired", "kto",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Raise the preferred response over the other, held to a reference. A field that the loss does
    not read must be left as it is."""

    KIND = "dpo"

    loss: Name = "dpo"
    """Which loss (ops/losses/preference.py). kto reads labelled responses, all others read
    preferences."""
    beta: float = 0.1
    """Strength of the tie to the reference: the weight of the KL term whose optimum DPO finds
    (Rafailov et al. used 0.1 to 0.5). For simpo the scale of its averages (Meng et al. used
    2 to 10), for orpo the weight lambda of the odds ratio (0.1)."""
    reference: Literal["frozen", "stored"] = "frozen"
    """`frozen` holds the weights that this run begins from and computes their log-probabilities at
    every step; `stored` computes them once for all examples, before the first step, and keeps them
    on the disk. cpo, simpo and orpo read none."""
    divergence: preference.Divergence = "reverse_kl"
    """From what the policy is held to the reference by (f-DPO)."""
    alpha: float = 0.5
    """Parameter of divergence="alpha", which is the reverse KL at 1."""
    smoothing: float = 0.1
    """Probability that a preference is the wrong way round: cdpo, robust, exo."""
    gamma: float = 1.0
    """The margin that simpo requires, after beta (Meng et al. used 0.3 to 1.6 times beta)."""
    tau: float = 0.05
    """Temperature of discopop's mixture."""
    nll: float = 1.0
    """Weight of the chosen response's negative log-likelihood, nats per token: rpo, cpo, orpo."""
    nll_over: Literal["response", "text"] = "response"
    """Tokens of that term: the response alone, or the prompt with it, as in ORPO's code."""
    desirable: float = 1.0
    """Weight of desirable responses: kto, kto_pair."""
    undesirable: float = 1.0
    """Weight of undesirable ones. Ethayarajh et al. 2024, eq. 9: desirable / undesirable times the
    ratio of their numbers should be in [1, 4/3]."""
    balance: float = 0.0
    """Weight of the experts' load-balancing loss, as for clm."""
    router_z: float = 0.0
    """Weight of the routers' z-loss, as for clm."""
    bias_speed: float = 0.0
    """Step of the bias by which a router selects, as for clm."""

    def __post_init__(self) -> None:
        known = f"one of {sorted(LOSSES)}"
        check.field("objective.loss", self.loss, self.loss in LOSSES, known)
        positive = ("beta", "tau", "nll", "desirable", "undesirable")
        check.within("objective", self, *positive, above=0)
        check.within("objective", self, "smoothing", above=0, below=0.5)
        check.within("objective", self, "gamma", "balance", "router_z", "bias_speed", least=0)
        read = fields(self.loss, self.divergence)
        unread = [field.name for field in dataclasses.fields(self) if field.name not in read]
        why = f"with loss={self.loss!r}, which does not read it"
        check.refuse("", check.changed("objective", self, *unread, why=why))


LOSSES = preference.PAIRS | preference.BATCHES | {"kto": preference.kto}


def fields(loss: Name, divergence: preference.Divergence) -> set[str]:
    """The fields of a Config that a loss reads: its keyword arguments, and what all read."""
    read = {"loss", "balance", "router_z", "bias_speed", *_settings(loss)}
    read |= {"nll_over"} if "nll" in read else set()
    read |= {"reference"} if loss not in preference.FREE else set()
    return read if divergence == "alpha" else read - {"alpha"}


def _settings(loss: Name) -> list[str]:
    """The keyword arguments of a loss. Raises: ValueError for one that is no field of Config."""
    parameters = inspect.signature(LOSSES[loss]).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if missing := [name for name in names if name not in Config.__dataclass_fields__]:
        raise ValueError(
            f"objective.loss: {loss!r} reads {missing}, and dpo.Config has no such field; add one"
        )
    return names


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The loss summed over prompts that have a pair (kto: over labelled responses). Its weight is
    their number, so that a pair weighs the same in every batch.

    Reported, of chosen and rejected responses (kto: of desirable and undesirable ones), each an
    average over pairs, averaged per prompt: the log-probability, the implicit reward (beta times
    the log-ratio to the reference; of cpo, simpo and orpo beta times the log-probability, for the
    latter two per token), and tokens; margin, the difference of the rewards; accuracy, how often it
    is positive, where a tie counts 1/2; nll, nats per token, where the loss has it. Both
    log-probabilities may fall while the margin grows: that is usual. kto also: baseline.

    Raises: ValueError for models that are no decoders, and as `clm.build` for fields of experts.
    """
    _check_model(cfg, model)
    routed = moe.has(model.spec)
    settings = {name: getattr(cfg, name) for name in _settings(cfg.loss)}
    held = cfg.loss not in preference.FREE and cfg.reference == "frozen"

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Choices, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        del key  # dropout stays off
        reference = _reference(cfg, model, frozen, batch, plan)
        if reference is not None and cfg.loss == "kto":
            labelled = kto.read(model, params, reference, batch, plan)
            stats = labelled.stats
            total, weight, sums = kto.loss(labelled, settings)
        else:
            pair = responses.read(model, params, batch, reference, plan, cfg.nll_over == "text")
            stats = pair.stats
            total, weight, sums = _paired(cfg, settings, pair, batch)
        if cfg.balance or cfg.router_z:
            total += weight * load_balancing.loss(stats, cfg.balance, cfg.router_z)
        return total, weight, sums | (load_balancing.sums(stats) if routed else {})

    def adjust(params: param.Tree, sums: dict[str, jax.Array]) -> param.Tree:
        return moe.rebalance(params, sums["load"], cfg.bias_speed)

    def report(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        metrics = kto.report(sums) if cfg.loss == "kto" else {}
        return metrics | (load_balancing.report(sums) if routed else {})

    return Objective(
        model.spec,
        loss,
        report=report if routed or cfg.loss == "kto" else None,
        adjust=adjust if cfg.bias_speed else None,
        frozen={"reference": Frozen(model.spec)} if held else {},
    )


def _reference(
    cfg: Config, model: Model, frozen: param.Tree, batch: Choices, plan: Plan
) -> jax.Array | None:
    """float32[B, K] of the responses under the reference; None for losses that read none."""
    if cfg.loss in preference.FREE:
        return None
    if cfg.reference == "frozen":
        return responses.summed(model, frozen["reference"], batch, plan)
    if batch.reference is None:
        raise ValueError(
            "objective.reference: 'stored' given, and the batch has no log-probabilities of a "
            "reference"
        )
    return batch.reference


def _paired(
    cfg: Config, settings: dict[str, Any], read: responses.Read, batch: Choices
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(sum over prompts, prompts that have a pair, sums) of losses of pairs."""
    order, has = ordered(batch.rank, read.there)
    # the same harmless numbers for both where there is no pair
    rows, columns = [], []
    for x in read.responses:
        rows.append(jnp.where(order > 0, x[:, :, None], 1.0))  # [B, K, K] of response i
        columns.append(jnp.where(order > 0, x[:, None, :], 1.0))  # [B, K, K] of response j
    first, second = preference.Response(*rows), preference.Response(*columns)

    def each(chosen: preference.Response, rejected: preference.Response) -> jax.Array:
        if cfg.loss in preference.PAIRS:
            return preference.PAIRS[cfg.loss](chosen, rejected, **settings)
        return preference.BATCHES[cfg.loss](chosen, rejected, order, **settings)

    certain = batch.preference[:, None, None]  # [B, 1, 1]
    mixed = certain * each(first, second) + (1 - certain) * each(second, first)
    total = jnp.sum(jnp.where(order > 0, order * mixed, 0.0))
    return total, jnp.sum(has, dtype=precision.wide()), _sums(cfg, read.responses, order)


def ordered(rank: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(float32[B, K, K], bool[B]): how much the pair (i, j) counts, 1 / the prompt's pairs where i
    is ranked before j, else 0; and which prompts have a pair."""
    both = there[:, :, None] & there[:, None, :]  # [B, K, K]
    before = both & (rank[:, :, None] < rank[:, None, :])
    pairs = jnp.sum(before, axis=(1, 2), dtype=precision.wide())  # [B]
    return before / jnp.maximum(pairs, 1.0)[:, None, None], pairs > 0


def _sums(cfg: Config, pair: preference.Response, order: jax.Array) -> dict[str, jax.Array]:
    """Reported sums of pairs, as listed in `build`; `order` is from `ordered`."""
    pair = jax.lax.stop_gradient(pair)
    reward = cfg.beta * preference.ratio(pair)
    if cfg.loss in ("simpo", "orpo"):
        reward = reward / pair.tokens
    chosen, rejected = jnp.sum(order, axis=2), jnp.sum(order, axis=1)  # [B, K] each
    columns = {"reward": reward, "log_prob": pair.log_prob, "tokens": pair.tokens}
    sums = {}
    for name, column in columns.items():
        sums[f"{name}_chosen"] = jnp.sum(chosen * column)
        sums[f"{name}_rejected"] = jnp.sum(rejected * column)
    sums["margin"] = sums["reward_chosen"] - sums["reward_rejected"]
    apart = jnp.sign(reward[:, :, None] - reward[:, None, :])  # [B, K, K]
    sums["accuracy"] = jnp.sum(order * (1 + apart) / 2)
    return sums | ({"nll": jnp.sum(chosen * pair.nll)} if "nll" in _settings(cfg.loss) else {})


def _check_model(cfg: Config, model: Model) -> None:
    check_kind(model, "decoder", "dpo")
    if model.ahead is not None:
        raise ValueError(
            "objective: dpo reads whole responses, which leaves the weights of a model that "
            "predicts further ahead untrained; leave them out (model.ahead=0)"
        )
    load_balancing.check_model(cfg, model)
