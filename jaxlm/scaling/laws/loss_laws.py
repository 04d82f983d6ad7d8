"""Laws of loss: the loss as a function of N, D or C, one `Law` each, in `LAWS`.

    law = loss_laws.LAWS["chinchilla"]
    law.predict((1.69, 406.4, 410.7, 0.34, 0.28), (70e9, 1.4e12))     # nats per token

N counts parameters, D tokens, and C is compute. A law's natural parameters (E, A, alpha, ...) are
those that a paper prints. The fit uses internal ones, one for each: logarithms of what is positive,
with the inputs' logarithms counted from their mean (the centre), so that a step of one leaves the
rest nearly alone. Losses may have any unit; E is in the data's.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling.laws import extended_forms, starting_points

Theta = Sequence[Any] | np.ndarray


class Law(NamedTuple):
    """One law. k parameters of m inputs.

    Axes: `predict(theta, x, xp=np)` takes k numbers or arrays and m arrays that broadcast
    together (draws [R,k] against points [n]: `predict(draws.T[:, :, None], x)`); xp is numpy or
    jax.numpy. `internal` and `natural` map [..., k] to [..., k], given the centre [m].
    """

    name: str
    names: tuple[str, ...]  # [k] natural parameters
    inputs: tuple[str, ...]  # [m] fields of Table
    source: str
    predict: Callable[..., Any]  # (theta, x, xp) -> loss
    internal: Callable[[np.ndarray, np.ndarray], np.ndarray]
    natural: Callable[[np.ndarray, np.ndarray], np.ndarray]
    model: Callable[..., Any]  # (internal [k], logs [m,n], centre [m]) -> log loss [n], of jnp
    seeds: Callable[..., np.ndarray]  # (logs, centre, loss [n], weights [n]) -> starts [S,k]
    # A parameter that may be held, and the input whose centre must be 0 for that (None: any).
    held: dict[str, int | None]
    # [5,k] from internal parameters to (log E, log A, log B, alpha, beta), where that is the form.
    terms: tuple[tuple[float, ...], ...] | None = None
    # The model's derivatives in closed form, of `slopes.by_derivatives`; None: automatic ones.
    derivatives: Callable[..., Any] | None = None

    @property
    def closed(self) -> Any:
        """The closed form that `solve.minimise` takes derivatives by; None: automatic ones."""
        return self.terms or self.derivatives


# -- E + A / N^alpha + B / D^beta and what is a case of it


def _three(theta: Theta, x: Theta, xp: Any = np) -> Any:
    e, a, b, alpha, beta = theta
    n, d = x
    return e + a * n**-alpha + b * d**-beta


def _three_internal(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    e, a, b, alpha, beta = np.moveaxis(np.asarray(theta, np.float64), -1, 0)
    a, b = np.log(a) - alpha * centre[0], np.log(b) - beta * centre[1]
    return np.stack([np.log(e), a, b, alpha, beta], -1)


def _three_natural(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    e, a, b, alpha, beta = np.moveaxis(phi, -1, 0)
    a, b = np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1])
    return np.stack([np.exp(e), a, b, alpha, beta], -1)


def _three_model(phi: Any, logs: Any, centre: Any) -> Any:
    import jax.numpy as jnp

    e, a, b, alpha, beta = phi
    x, z = logs - centre[:, None]
    return jnp.log(jnp.exp(a - alpha * x) + jnp.exp(b - beta * z) + jnp.exp(e))


def _tied(theta: Theta, x: Theta, xp: Any = np) -> Any:
    e, a, b, alpha = theta
    return _three((e, a, b, alpha, alpha), x)


def _tied_internal(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return _three_internal(np.asarray(theta)[..., [0, 1, 2, 3, 3]], centre)[..., :4]


def _tied_natural(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return _three_natural(phi[..., [0, 1, 2, 3, 3]], centre)[..., :4]


def _tied_model(phi: Any, logs: Any, centre: Any) -> Any:
    return _three_model((*phi, phi[3]), logs, centre)


def _tied_seeds(logs: np.ndarray, centre: np.ndarray, loss: np.ndarray, w: np.ndarray) -> Any:
    return starting_points.powers(logs - centre[:, None], loss, w, tied=True)


def _three_seeds(logs: np.ndarray, centre: np.ndarray, loss: np.ndarray, w: np.ndarray) -> Any:
    return starting_points.two_powers(logs - centre[:, None], loss, w)


_FIVE_TERMS = (
    (1.0, 0, 0, 0, 0),
    (0, 1.0, 0, 0, 0),
    (0, 0, 1.0, 0, 0),
    (0, 0, 0, 1.0, 0),
    (0, 0, 0, 0, 1.0),
)
CHINCHILLA = Law(
    "chinchilla",
    ("E", "A", "B", "alpha", "beta"),
    ("params", "tokens"),
    "E + A/N^alpha + B/D^beta; Hoffmann et al. 2022, equation 2",
    _three,
    _three_internal,
    _three_natural,
    _three_model,
    _three_seeds,
    {"E": None, "A": 0, "B": 1, "alpha": None, "beta": None},
    _FIVE_TERMS,
)
_TIED_TERMS = ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0), (0, 0, 0, 1.0))
TIED = Law(
    "tied",
    ("E", "A", "B", "alpha"),
    CHINCHILLA.inputs,
    "E + A/N^alpha + B/D^alpha; Muennighoff et al. 2023, section 3.1",
    _tied,
    _tied_internal,
    _tied_natural,
    _tied_model,
    _tied_seeds,
    {"E": None, "A": 0, "B": 1, "alpha": None},
    _TIED_TERMS,
)

# -- shared exponent, in tokens per parameter M = D / N: b 6^(-eta/2) (M N)^-eta is B / D^eta


def _six(theta: np.ndarray, sign: float) -> np.ndarray:
    """The parameters with b multiplied by 6^(sign eta / 2)."""
    a = np.array(theta, np.float64)
    a[..., 2] *= 6 ** (sign * a[..., 3] / 2)
    return a


def _overtraining(theta: Theta, x: Theta, xp: Any = np) -> Any:
    e, a, b, eta = theta
    n, d = x
    return e + a * n**-eta + b * 6 ** (-eta / 2) * d**-eta


def _overtraining_internal(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return _tied_internal(_six(theta, -1), centre)


def _overtraining_natural(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return _six(_tied_natural(phi, centre), 1)


OVERTRAINING = Law(
    "overtraining",
    ("E", "a", "b", "eta"),
    CHINCHILLA.inputs,
    "E + a N^-eta + b 6^(-eta/2) (M N)^-eta with M = D/N; Gadre et al. 2024, equation 4, as their "
    "code fits it (6^(-eta/2) on the second term alone)",
    _overtraining,
    _overtraining_internal,
    _overtraining_natural,
    _tied_model,
    _tied_seeds,
    {"E": None, "a": 0, "eta": None},
    _TIED_TERMS,
)

# -- a power of one input with a floor: of compute, on the frontier


def _offset(theta: Theta, x: Theta, xp: Any = np) -> Any:
    e, a, b = theta
    return e + a * x[0] ** -b


def _offset_internal(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    e, a, b = np.moveaxis(np.asarray(theta, np.float64), -1, 0)
    return np.stack([np.log(e), np.log(a) - b * centre[0], b], -1)


def _offset_natural(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    e, a, b = np.moveaxis(phi, -1, 0)
    return np.stack([np.exp(e), np.exp(a + b * centre[0]), b], -1)


def _offset_model(phi: Any, logs: Any, centre: Any) -> Any:
    import jax.numpy as jnp

    e, a, b = phi
    return jnp.log(jnp.exp(a - b * (logs[0] - centre[0])) + jnp.exp(e))


def _offset_seeds(logs: np.ndarray, centre: np.ndarray, loss: np.ndarray, w: np.ndarray) -> Any:
    return starting_points.powers(logs - centre[:, None], loss, w)


OFFSET = Law(
    "offset",
    ("E", "a", "b"),
    ("flops",),
    "E + a C^-b, for points on the compute-efficient frontier; Henighan et al. 2020, equation 1.1",
    _offset,
    _offset_internal,
    _offset_natural,
    _offset_model,
    _offset_seeds,
    {"E": None, "a": 0, "b": None},
    ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 0), (0, 0, 1.0), (0, 0, 0)),
)

# -- Kaplan et al. 2020: no floor


def _kaplan(theta: Theta, x: Theta, xp: Any = np) -> Any:
    nc, dc, alpha_n, alpha_d = theta
    n, d = x
    return ((nc / n) ** (alpha_n / alpha_d) + dc / d) ** alpha_d


def _kaplan_internal(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    nc, dc, alpha_n, alpha_d = np.moveaxis(np.asarray(theta, np.float64), -1, 0)
    return np.stack([np.log(nc) - centre[0], np.log(dc) - centre[1], alpha_n, alpha_d], -1)


def _kaplan_natural(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    nc, dc, alpha_n, alpha_d = np.moveaxis(phi, -1, 0)
    return np.stack([np.exp(nc + centre[0]), np.exp(dc + centre[1]), alpha_n, alpha_d], -1)


def _kaplan_model(phi: Any, logs: Any, centre: Any) -> Any:
    import jax.numpy as jnp

    nc, dc, alpha_n, alpha_d = phi
    x, z = logs - centre[:, None]
    return alpha_d * jnp.log(jnp.exp((nc - x) * alpha_n / alpha_d) + jnp.exp(dc - z))


def _power(theta: Theta, x: Theta, xp: Any = np) -> Any:
    c, alpha = theta
    return (c / x[0]) ** alpha


def _power_internal(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    c, alpha = np.moveaxis(np.asarray(theta, np.float64), -1, 0)
    return np.stack([np.log(c) - centre[0], alpha], -1)


def _power_natural(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    c, alpha = np.moveaxis(phi, -1, 0)
    return np.stack([np.exp(c + centre[0]), alpha], -1)


def _power_model(phi: Any, logs: Any, centre: Any) -> Any:
    return phi[1] * (phi[0] - (logs[0] - centre[0]))


def _power_seeds(logs: np.ndarray, centre: np.ndarray, loss: np.ndarray, w: np.ndarray) -> Any:
    return starting_points.power(logs[0] - centre[0], loss, w)


def _kaplan_seeds(logs: np.ndarray, centre: np.ndarray, loss: np.ndarray, w: np.ndarray) -> Any:
    return starting_points.kaplan(logs - centre[:, None], loss, w)


KAPLAN = Law(
    "kaplan",
    ("Nc", "Dc", "alpha_N", "alpha_D"),
    CHINCHILLA.inputs,
    "[(Nc/N)^(alpha_N/alpha_D) + Dc/D]^alpha_D, N without embeddings; Kaplan et al. 2020, "
    "equation 1.5, where alpha_D is 0.103 (L(D) alone has 0.095)",
    _kaplan,
    _kaplan_internal,
    _kaplan_natural,
    _kaplan_model,
    _kaplan_seeds,
    {"Nc": None, "Dc": None, "alpha_N": None, "alpha_D": None},
    derivatives=extended_forms.kaplan_derivatives,
)
KAPLAN_PARAMS = Law(
    "kaplan_params",
    ("Nc", "alpha_N"),
    ("params",),
    "(Nc/N)^alpha_N, of models trained to convergence; Kaplan et al. 2020, equation 1.1",
    _power,
    _power_internal,
    _power_natural,
    _power_model,
    _power_seeds,
    {"Nc": None, "alpha_N": None},
    derivatives=extended_forms.power_derivatives,
)
KAPLAN_TOKENS = Law(
    "kaplan_tokens",
    ("Dc", "alpha_D"),
    ("tokens",),
    "(Dc/D)^alpha_D, of large models stopped early; Kaplan et al. 2020, equation 1.2, where "
    "alpha_D is 0.095 (L(N,D) has 0.103)",
    _power,
    _power_internal,
    _power_natural,
    _power_model,
    _power_seeds,
    {"Dc": None, "alpha_D": None},
    derivatives=extended_forms.power_derivatives,
)

# -- repeated tokens, and nine parameters

DATA_CONSTRAINED = Law(
    "data_constrained",
    ("E", "A", "B", "alpha", "beta", "R_D", "R_N"),
    ("params", "tokens", "unique"),
    "E + A/N'^alpha + B/D'^beta with D' = U + U R_D (1 - exp(-(D/U - 1)/R_D)), N' likewise from "
    "U_N, the parameters optimal for U tokens; Muennighoff et al. 2023, equations 5 and 6",
    extended_forms.data_constrained,
    extended_forms.data_constrained_internal,
    extended_forms.data_constrained_natural,
    extended_forms.data_constrained_model,
    starting_points.data_constrained,
    {"E": None, "A": 0, "B": 1, "alpha": None, "beta": None, "R_D": None, "R_N": None},
)
FARSEER = Law(
    "farseer",
    ("a1", "b1", "alpha", "a2", "b2", "beta", "a3", "b3", "gamma"),
    CHINCHILLA.inputs,
    "exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1); Farseer, arXiv:2506.10972",
    extended_forms.farseer,
    extended_forms.farseer_internal,
    extended_forms.farseer_natural,
    extended_forms.farseer_model,
    starting_points.farseer,
    {"alpha": None, "beta": None, "gamma": None},
    derivatives=extended_forms.farseer_derivatives,
)

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        CHINCHILLA,
        TIED,
        KAPLAN,
        KAPLAN_PARAMS,
        KAPLAN_TOKENS,
        OVERTRAINING,
        DATA_CONSTRAINED,
        FARSEER,
        OFFSET,
    )
}
