"""Masked language modelling: fill in the hidden tokens. Devlin et al. 2019, section 3.1.

Which tokens are hidden is in the batch (`data.mask`): its tokens have the holes, its targets are
the text, and its weight is 1 at the holes. The loss does not depend on a mask token.
"""

import dataclasses

from jaxlm.core import check
from jaxlm.models.model import Model
from jaxlm.objectives import targets
from jaxlm.objectives.objective import Objective, check_kind
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """Prediction of hidden tokens from the tokens around them."""

    KIND = "mlm"

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps logits near normalised."""

    def __post_init__(self) -> None:
        check.within("objective", self, "z_loss", least=0)


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The negative log-likelihood in nats of the hidden tokens, summed, plus z_loss * log(Z)^2.
    Reported sums: nll, correct, z.

    Raises: ValueError for a model that sees only the past, or that reads pairs.
    """
    check_kind(model, "encoder", "mlm")
    return Objective(model.spec, targets.likelihood(model, plan, cfg.z_loss))
