"""The interface of an objective: the weights it trains, and a loss as a sum with its weight."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxlm.core import config, param
from jaxlm.models.model import Kind, Model

# loss(params, frozen, batch, key) -> (sum, weight, {name: sum}). The step divides by the total
# weight once, over all micro-batches and devices, so the result does not depend on the cut.
# key=None turns all randomness (dropout, noise) off: so are held-out batches judged.
Loss = Callable[
    [param.Tree, param.Tree, Any, jax.Array | None],
    tuple[jax.Array, jax.Array, dict[str, jax.Array]],
]


_KINDS: dict[Kind, str] = {
    "decoder": "a decoder",
    "encoder": "an encoder (bert)",
    "encoder_decoder": "an encoder-decoder (t5)",
}

# The step's sums, over all micro-batches and devices, by name.
Sums = dict[str, jax.Array]


class Stored(NamedTuple):
    """Storage of frozen weights in another form than their own: make(weights of `Frozen.spec`) ->
    the tree that the loss reads, whose places are those of spec, a tree of `Param`. make is None
    where the run that they are from has them in this form; `like` is its shapes and dtypes."""

    spec: param.Tree
    make: Callable[[param.Tree], param.Tree] | None
    like: param.Tree | None = None


class Frozen(NamedTuple):
    """Weights that are read and never moved: of a reference, a teacher, a reward model.

    spec: a tree of `Param`. run: the run directory they are from; None for the weights that this
    run begins from. stored: None where they are kept as they are.
    """

    spec: param.Tree
    run: str | None = None
    stored: Stored | None = None

    @property
    def places(self) -> param.Tree:
        """The spec of the weights as they are stored in memory."""
        return self.spec if self.stored is None else self.stored.spec

    def abstract(self) -> param.Tree:
        """Their shapes and dtypes in memory."""
        shapes = param.abstract(self.spec)
        if self.stored is None:
            return shapes
        if self.stored.make is None:
            return self.stored.like
        return jax.eval_shape(self.stored.make, shapes)


class Begun(NamedTuple):
    """Weights of `spec` that begin from a run other than the one that the model begins from.

    run: its directory. renamed: {name here: name there}, where they differ; what that run does not
    have under such a name is fresh.
    """

    run: str
    renamed: dict[str, str] = {}


def _trained(params: param.Tree, frozen: param.Tree) -> param.Tree:
    return params


class Objective(NamedTuple):
    """The weights trained, and the loss.

    spec: the weights trained (a tree of `Param`). loss: see `Loss`. Sums that are scalars are
    reported divided by the step's weight; those that are arrays are for the other two:
    report(sums) -> further metrics, float32 scalars. adjust(params, sums) -> params: moves weights
    by a rule of their own rather than by a gradient, after the optimiser, where it took the step.
    frozen: the weights that `loss` reads in its second argument, by name.
    weights(params, frozen) -> the weights as `Model.hidden` takes them, along with the heads, for
    decoding and evaluation. begun: the parts of spec, by name, initialised from other runs.
    """

    spec: param.Tree
    loss: Loss
    report: Callable[[Sums], dict[str, jax.Array]] | None = None
    adjust: Callable[[param.Tree, Sums], param.Tree] | None = None
    frozen: dict[str, Frozen] = {}
    weights: Callable[[param.Tree, param.Tree], param.Tree] = _trained
    begun: dict[str, Begun] = {}


def check_kind(model: Model, kind: Kind, name: str, field: str = "model") -> None:
    """Raises: ValueError for a model of another kind than the objective `name` reads."""
    if model.kind != kind:
        family = config.kind(type(model.cfg))
        raise ValueError(
            f"objective: {name} given with {field} {family}, which is not {_KINDS[kind]}; "
            f"{name} requires one"
        )
