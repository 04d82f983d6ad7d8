"""Options of `jaxlm fit` beyond the laws of loss; every default is off."""

import dataclasses
import pathlib
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Options:
    """Analyses beyond the laws of loss."""

    accuracy: str | None = None
    """Column of downstream accuracies, from 0 to 1: predicted from loss in two steps and from
    compute in one, by whichever predicts the largest budgets best."""
    error: str | None = None
    """The same of a column of errors, 1 - accuracy."""
    chance: float = 0.0
    """Accuracy of guessing: 0.25 for four choices."""
    anchor: str | None = None
    """COLUMN=TEXT: rows that the step from loss to accuracy reads and the law of loss does not,
    such as one larger model (Gadre et al. 2024)."""
    at: tuple[tuple[float, float], ...] = ()
    """N D of each run whose accuracy, learning rate and batch are predicted; not given: the plan at
    the target."""
    accuracy_law: str | None = None
    """The law of loss of the two steps; not given: the form that plans."""
    residuals: Literal["log", "loss"] = "log"
    """That law minimises Huber's loss of log L, or the squares of the loss itself, as Gadre et al.
    2024 do."""

    multiplier: str | None = None
    """Column of recipes: the compute that each saves against the baseline, with an interval."""
    baseline: str | None = None
    """The column's value that recipes are compared with; not given: that of the first row."""

    losses: str | None = None
    """Pattern of columns that hold other losses of the same runs, such as 'loss_*': the planning
    form of each, side by side, and the law from the study's loss to each."""

    pool: str | None = None
    """Column of groups of runs: a law of each, whose exponents are drawn to a common mean as far as
    that predicts the largest runs best."""
    hyperparameters: tuple[str, str] | None = None
    """Columns of learning rate and batch size: the surface of the loss over both, and the laws of
    its minimum in N and D."""

    countings: tuple[str, ...] = ()
    """Columns with other counts of the parameters of the same runs: exponents and N* by each."""
    form: str | None = None
    """A law of other columns, which replaces the study: moe, sparsity, sparsity_tokens, upcycling
    or vocabulary."""
    form_test: pathlib.Path | None = None
    """A file of runs that --form has not seen; not given: the tenth of the runs with the largest
    inputs is held out."""

    observe: str | None = None
    """Column of a benchmark of public models, in place of a study: predicted from the principal
    components of the other benchmarks (--column flops=NAME, --holdout and --target in its unit)."""
    benchmarks: tuple[str, ...] = ()
    """Columns that make the components; not given: all that hold shares from 0 to 1."""
    families: str = "Model Family"
    """Column of the families of models."""

    schedule: str | None = None
    """Column of learning rates of curves (one row a step, with columns run, step and loss), in
    place of a study: loss from the area under the schedule and its annealing, so that every step is
    a point."""
    momentum: float = 0.999
    """Decay of the annealing's momentum a step, for --schedule."""
