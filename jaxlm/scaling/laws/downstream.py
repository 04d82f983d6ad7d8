"""Accuracy of downstream tasks from loss (two steps) or from compute (one step).

Every form is fitted by least squares on the error (1 - accuracy), so that their residuals can be
compared: `forms = {f: fit(f, x, error) for f in ("exponential", "sigmoid")}`. Whatever a form gives
beyond its data, `predict` stays between an accuracy of chance and of 1.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling.laws import least_squares

# Starts that are refined, the best of the grid by variable projection.
REFINED = 12

Array = np.ndarray


class Form(NamedTuple):
    """One law of error. predict(theta [k], x) -> error [n]; starts(x, error) -> candidates [k]."""

    names: tuple[str, ...]
    """The parameters, in order."""
    inputs: tuple[str, ...]
    """Entries of x, in order: loss, flops, params, tokens."""
    positive: tuple[bool, ...]
    """Whether each parameter is above 0 (such ones are fitted as logarithms)."""
    high: tuple[float, ...]
    """The largest value of each parameter that is still an accuracy."""
    source: str
    """Paper and equation."""
    predict: Callable[[Array, Sequence[Array]], Array]
    """The law."""
    starts: Callable[[Sequence[Array], Array], list[Array]]
    """Starting points of the fit."""


class Curve(NamedTuple):
    """A fitted form."""

    form: str
    """Its name in FORMS."""
    theta: dict[str, float]
    """Natural parameters."""
    chance: float
    """Accuracy of guessing, which was taken out before the fit."""
    rmse: float
    """Root mean square of the residuals, in units of error."""
    residual: Array
    """[n] measured minus fitted error."""
    reached: float
    """Share of the starts that ended at the least sum of squares."""
    bound: tuple[str, ...]
    """Parameters that ended at their largest value: the data do not hold them."""
    n: int
    """Points fitted."""


def fit(form: str, x: Sequence[Array], error: Array, chance: float = 0.0) -> Curve:
    """The least-squares Curve of `form` through errors [n] at inputs x (arrays [n]).

    chance: accuracy of guessing; a form then describes (accuracy - chance) / (1 - chance), as one
    does for multiple choice before taking a logarithm.

    Raises: ValueError naming the form, the input or the number of points.
    """
    if form not in FORMS:
        raise ValueError(f"form: {form!r} is none of {sorted(FORMS)}")
    law = FORMS[form]
    x, error = _checked(form, law, x, error, chance)
    scaled = error / (1 - chance)

    starts = np.stack([_internal(law, start) for start in _best(law, x, scaled)])
    solved = least_squares.minimise(_value(law, x), starts, scaled, high=_high(law))
    u, _, reached = least_squares.best(solved)
    theta = _natural(law, u)
    left = (scaled - law.predict(theta, x)) * (1 - chance)
    return Curve(
        form=form,
        theta={k: float(v) for k, v in zip(law.names, theta)},
        chance=chance,
        rmse=float(np.sqrt(np.mean(left**2))),
        residual=left,
        reached=reached,
        bound=tuple(n for n, v, h in zip(law.names, u, _high(law)) if v > h - 1e-4),
        n=len(error),
    )


def predict(curve: Curve, x: Sequence[Array], theta: Array | None = None) -> Array:
    """Errors [n] of a fitted curve at inputs x (arrays [n], in the order of its form's inputs),
    between 0 and 1 - chance.

    theta [R,k]: parameters in place of the curve's own, such as those of `resample`; then x are
    [n] or [R,n], and the errors [R,n].
    """
    law = FORMS[curve.form]
    if theta is None:
        theta = np.array([curve.theta[name] for name in law.names])
    else:
        theta = np.asarray(theta, float).T[:, :, None]
    inputs = [np.asarray(a, float) for a in x]
    return np.clip(law.predict(theta, inputs), 0.0, 1.0) * (1 - curve.chance)


def resample(curve: Curve, x: Sequence[Array], error: Array, weights: Array) -> Array:
    """[R,k] parameters refitted to errors [n] or [R,n] with weights [R,n], from the curve's own."""
    law = FORMS[curve.form]
    theta = np.array([curve.theta[name] for name in law.names])
    solved = least_squares.minimise(
        _value(law, [np.asarray(a, float) for a in x]),
        np.tile(_internal(law, theta), (len(weights), 1)),
        np.asarray(error, float) / (1 - curve.chance),
        weights,
        high=_high(law),
    )
    return _natural(law, solved.theta)


# Fitted are logarithms of the parameters that are above 0.


def _natural(law: Form, u: Array) -> Array:
    return np.where(law.positive, np.exp(np.minimum(u, 700)), u)


def _internal(law: Form, theta: Array) -> Array:
    return np.where(law.positive, np.log(np.where(law.positive, theta, 1.0)), theta)


def _high(law: Form) -> Array:
    """[k] upper bounds of what is fitted."""
    return np.array([math.log(h) if p else h for h, p in zip(law.high, law.positive)])


def _value(law: Form, x: Sequence[Array]) -> least_squares.Value:
    """Errors [R,n] of internal parameters [R,k]."""
    return lambda u: law.predict(_natural(law, u).T[:, :, None], x)


def _checked(
    form: str, law: Form, x: Sequence[Array], error: Array, chance: float
) -> tuple[list[Array], Array]:
    """Inputs and errors as float64, if they can be fitted."""
    error = np.asarray(error, float)
    inputs = [np.asarray(a, float) for a in x]
    if len(inputs) != len(law.inputs):
        raise ValueError(f"x: {form} reads {law.inputs}, {len(inputs)} arrays were given")
    if not 0 <= chance < 1:
        raise ValueError(f"chance: {chance} is no accuracy of guessing; 0 <= chance < 1")
    for name, values in zip(law.inputs, inputs):
        if values.shape != error.shape:
            raise ValueError(f"{name}: shape {values.shape}, the errors have {error.shape}")
        # a loss of 0 is the anchor of a model that is always right
        least = 0.0 if name == "loss" else np.nextafter(0.0, 1.0)
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= least)))
        if bad.size:
            raise ValueError(f"{name}[{bad[0]}]: {values[bad[0]]} is not a finite number above 0")
    bad = np.flatnonzero(~((error >= 0) & (error <= 1)))
    if bad.size:
        raise ValueError(f"error[{bad[0]}]: {error[bad[0]]} is not between 0 and 1")
    if len(error) < len(law.names):
        raise ValueError(
            f"error: {len(error)} points cannot hold the {len(law.names)} parameters of {form}: "
            f"{', '.join(law.names)}"
        )
    return inputs, error


def _best(law: Form, x: Sequence[Array], error: Array) -> list[Array]:
    """The candidates of smallest sum of squares."""
    fits = []
    for theta in law.starts(x, error):
        if np.all(np.isfinite(theta)) and np.all(theta[np.array(law.positive)] > 0):
            with np.errstate(over="ignore"):
                fits.append((float(np.sum((law.predict(theta, x) - error) ** 2)), theta))
    if not fits:
        raise ValueError(f"error: no start of {law.names} describes errors such as {error[:3]}")
    return [theta for _, theta in sorted(fits, key=lambda pair: pair[0])[:REFINED]]


# --- From loss -------------------------------------------------------------------------------


def _exponential(theta: Array, x: Sequence[Array]) -> Array:
    k, gamma, eps = theta
    return eps - k * np.exp(-gamma * x[0])


def _exponential_starts(x: Sequence[Array], error: Array) -> list[Array]:
    """Given gamma the law is linear in eps and k."""
    out = []
    for gamma in np.geomspace(0.02, 20, 60) / np.mean(x[0]) * 3:
        design = np.stack([np.ones_like(error), -np.exp(-gamma * x[0])], 1)
        (eps, k), *_ = np.linalg.lstsq(design, error, rcond=None)
        out.append(np.array([k, gamma, eps]))
    return out


def _sigmoid(theta: Array, x: Sequence[Array]) -> Array:
    floor, span, slope, middle = theta
    return 1 - floor - span / (1 + np.exp(np.clip(slope * (x[0] - middle), -500, 500)))


def _sigmoid_starts(x: Sequence[Array], error: Array) -> list[Array]:
    """Given slope and middle the law is linear in floor and span."""
    out = []
    low, high = np.min(x[0]), np.max(x[0])
    reach = high - low
    for slope, middle in itertools.product(
        np.geomspace(0.5, 50, 15) / reach, np.linspace(low - reach, high + reach, 25)
    ):
        part = 1 / (1 + np.exp(np.clip(slope * (x[0] - middle), -500, 500)))
        design = np.stack([np.ones_like(error), part], 1)
        (floor, span), *_ = np.linalg.lstsq(design, 1 - error, rcond=None)
        out.append(np.array([floor, span, slope, middle]))
    return out


# --- From compute, or parameters and tokens ---------------------------------------------------


def _direct(theta: Array, x: Sequence[Array]) -> Array:
    A, alpha = theta
    return -np.expm1(-A * x[0] ** -alpha)


def _direct_starts(x: Sequence[Array], error: Array) -> list[Array]:
    """Given alpha, A is a mean of log(-log accuracy): the law is a line in log-log."""
    depth = -np.log1p(-np.clip(error, 1e-9, 1 - 1e-9))
    return [
        np.array([np.exp(np.mean(np.log(depth) + alpha * np.log(x[0]))), alpha])
        for alpha in np.geomspace(0.003, 1, 40)
    ]


def _direct_both(theta: Array, x: Sequence[Array]) -> Array:
    A, alpha, B, beta = theta
    return -np.expm1(-A * x[0] ** -alpha - B * x[1] ** -beta)


def _direct_both_starts(x: Sequence[Array], error: Array) -> list[Array]:
    """Given alpha and beta, -log accuracy is a non-negative sum of two known terms."""
    from scipy import optimize

    depth = -np.log1p(-np.clip(error, 1e-9, 1 - 1e-9))
    out = []
    for alpha, beta in itertools.product(np.geomspace(0.01, 1, 14), repeat=2):
        # columns of mean 1, so that neither term is below the solver's rounding
        columns = [x[0] ** -alpha, x[1] ** -beta]
        means = [float(np.mean(c)) for c in columns]
        (a, b), _ = optimize.nnls(np.stack([c / m for c, m in zip(columns, means)], 1), depth)
        out.append(np.array([max(a, 1e-6) / means[0], alpha, max(b, 1e-6) / means[1], beta]))
    return out


FORMS: dict[str, Form] = {
    "exponential": Form(
        names=("k", "gamma", "eps"),
        inputs=("loss",),
        positive=(True, True, False),
        high=(np.inf, np.inf, np.inf),
        source="error = eps - k exp(-gamma L): Gadre et al. 2024 (arXiv:2403.08540), eq. 5",
        predict=_exponential,
        starts=_exponential_starts,
    ),
    "sigmoid": Form(
        names=("floor", "span", "slope", "middle"),
        inputs=("loss",),
        positive=(False, True, True, False),
        high=(1.0, 1.0, np.inf, np.inf),
        source="accuracy = floor + span / (1 + exp(slope (L - middle))): "
        "Bhagia et al. 2024 (arXiv:2412.04403), second step",
        predict=_sigmoid,
        starts=_sigmoid_starts,
    ),
    "direct": Form(
        names=("A", "alpha"),
        inputs=("flops",),
        positive=(True, True),
        high=(np.inf, np.inf),
        source="-log accuracy = A C^-alpha at fixed tokens per parameter: "
        "Krajewski et al. 2025 (arXiv:2512.08894)",
        predict=_direct,
        starts=_direct_starts,
    ),
    "direct_params_tokens": Form(
        names=("A", "alpha", "B", "beta"),
        inputs=("params", "tokens"),
        positive=(True, True, True, True),
        high=(np.inf,) * 4,
        source="-log accuracy = A N^-alpha + B D^-beta: Krajewski et al. 2025 (arXiv:2512.08894)",
        predict=_direct_both,
        starts=_direct_both_starts,
    ),
}
