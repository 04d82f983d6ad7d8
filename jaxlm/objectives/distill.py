"""Distillation: a student learns a teacher's distribution of every next token.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Agarwal et al. 2024 for the
divergences between forward and reverse and for learning from the student's own samples.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check, param, precision
from jaxlm.core.batch import Batch, Taught
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.objectives.objective import Frozen, Objective, check_kind
from jaxlm.ops.losses import cross_entropy, divergence
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """Match a teacher's distribution of every target."""

    KIND = "distill"

    teacher: str
    """The run directory of the teacher: any model with the student's tokenizer and vocabulary."""
    beta: float = 0.0
    """Which divergence (ops/losses/divergence.py): 0 is the forward KL, 1 the reverse, between them
    the generalised Jensen-Shannon divergence."""
    temperature: float = 1.0
    """Both models' logits are divided by it."""
    power: float = 0.0
    """The divergence is multiplied by temperature**power: 2 keeps gradients of one size at every
    temperature (Hinton et al. 2015, section 2); 0 is GKD's and MiniLLM's."""
    hard: float = 0.0
    """The share of the usual cross-entropy with the data's own targets (temperature 1) in the loss;
    1 - hard is that of the divergence."""
    read: Literal["frozen", "stored"] = "frozen"
    """`frozen` holds the teacher's weights and computes its logits at every step; `stored` computes
    them once for all examples, before the first step, and keeps `top_k` of each on the disk."""
    top_k: int | None = None
    """With `stored`: how many of the teacher's likeliest tokens are kept. The others count as one
    outcome, in the student too. None with `frozen`, which uses all."""

    def __post_init__(self) -> None:
        check.field("objective.teacher", self.teacher, bool(self.teacher), "a run directory")
        check.within("objective", self, "beta", least=0, most=1)
        check.within("objective", self, "temperature", above=0)
        check.within("objective", self, "power", least=0)
        check.within("objective", self, "hard", least=0, below=1)  # 1 would not read the teacher
        if self.read == "stored":
            ok, fits = self.top_k is not None and self.top_k >= 1, "at least 1 with read='stored'"
        else:
            ok, fits = self.top_k is None, "None with read='frozen'"
        check.field("objective.top_k", self.top_k, ok, fits)


def build(cfg: Config, model: Model, plan: Plan, teacher: Model) -> Objective:
    """(1 - hard) * temperature**power * divergence + hard * cross-entropy, summed over targets and
    weighted as they are. Reported sums: divergence, nll (nats of the targets), agreement (where
    both models' likeliest token is the same).

    Raises: ValueError for a teacher with another vocabulary, and for models that are no decoders.
    """
    _check_pair(cfg, model, teacher)
    frozen = {"teacher": Frozen(teacher.spec, cfg.teacher)} if cfg.read == "frozen" else {}

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Batch | Taught, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        x = log_probs.forward(model, params, batch, key).x
        heads: dict[str, param.Tree] = {"student": model.head(params)}
        if isinstance(batch, Taught):
            given = (batch.ids, batch.log_probs)
        else:
            heads["teacher"] = jax.lax.stop_gradient(teacher.head(frozen["teacher"]))
            theirs = log_probs.forward(teacher, frozen["teacher"], batch).x
            given = (jax.lax.stop_gradient(theirs),)
        terms = cross_entropy.per_token(
            lambda heads, *piece: _tokens(cfg, model, teacher, heads, *piece),
            heads,
            (x, batch.targets, *given),
            plan.loss_tokens,
        )
        # no value of a position without weight counts, not even one that is not finite
        sums = {name: jnp.sum(jnp.where(batch.weight > 0, batch.weight * value, 0.0))
                for name, value in terms.items()}  # fmt: skip
        soft = (1 - cfg.hard) * cfg.temperature**cfg.power
        total = soft * sums["divergence"] + cfg.hard * sums["nll"]
        return total, jnp.sum(batch.weight), sums

    return Objective(model.spec, loss, frozen=frozen)


def kept(
    cfg: Config, teacher: Model, params: param.Tree, batch: Batch, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """(ids int32[B, T, k], log-probabilities float32[B, T, k + 1]): what is stored of the teacher's
    distributions at the config's temperature; see `ops.distill.top`."""
    assert cfg.top_k is not None
    k = cfg.top_k

    def tokens(head: param.Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return divergence.top(divergence.softened(teacher.unembed(head, x), cfg.temperature), k)

    x = log_probs.forward(teacher, params, batch).x
    return cross_entropy.per_token(tokens, teacher.head(params), (x,), plan.loss_tokens)


def _tokens(
    cfg: Config,
    model: Model,
    teacher: Model,
    heads: dict[str, param.Tree],
    x: jax.Array,
    targets: jax.Array,
    *given: jax.Array,
) -> dict[str, jax.Array]:
    """{"divergence", "nll", "agreement"} [B, C] of tokens; given: the teacher's x [B, C, D],
    or its kept ids [B, C, k] and what they and the rest have [B, C, k + 1]."""
    logits = model.unembed(heads["student"], x)
    ours = divergence.softened(logits, cfg.temperature)
    if len(given) == 1:
        theirs = divergence.softened(teacher.unembed(heads["teacher"], given[0]), cfg.temperature)
        likeliest = jnp.argmax(theirs, axis=-1)
        apart = divergence.divergence(theirs, ours, cfg.beta)
    else:
        ids, kept = given
        likeliest = ids[..., 0]
        apart = divergence.divergence(kept, divergence.coarse(ours, ids), cfg.beta)
    plain = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.take_along_axis(plain, targets[..., None], axis=-1)[..., 0]
    agree = (jnp.argmax(logits, axis=-1) == likeliest).astype(precision.wide())
    return {"divergence": apart, "nll": nll, "agreement": agree}


def _check_pair(cfg: Config, model: Model, teacher: Model) -> None:
    check_kind(model, "decoder", "distill")
    check_kind(teacher, "decoder", "distill", "objective.teacher")
    if model.cfg.vocab != teacher.cfg.vocab:
        raise ValueError(
            f"objective.teacher: {cfg.teacher} has {teacher.cfg.vocab} ids, the student "
            f"{model.cfg.vocab}; model.vocab must be the teacher's"
        )
    if cfg.top_k is not None and cfg.top_k > model.cfg.vocab:
        raise ValueError(
            f"objective.top_k: {cfg.top_k} given; at most model.vocab={model.cfg.vocab}"
        )
