"""Sequence to sequence: write the target of a source, token by token. Sutskever et al. 2014; with
spans cut out by `data.span` it is T5's pretraining (Raffel et al. 2020, section 3.1.4)."""

import dataclasses

from jaxlm.core import check
from jaxlm.models.model import Model
from jaxlm.objectives import targets
from jaxlm.objectives.objective import Objective, check_kind
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """Each target token, from the source and the target so far."""

    KIND = "seq2seq"

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps logits near normalised (T5 used 1e-4)."""

    def __post_init__(self) -> None:
        check.within("objective", self, "z_loss", least=0)


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The negative log-likelihood in nats of the targets, summed, plus z_loss * log(Z)^2. Reported
    sums: nll, correct, z.

    Raises: ValueError for a model that is no encoder-decoder.
    """
    check_kind(model, "encoder_decoder", "seq2seq")
    return Objective(model.spec, targets.likelihood(model, plan, cfg.z_loss))
