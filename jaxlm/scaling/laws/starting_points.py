"""Starting points of the solver: variable projection over a grid of each law's exponents.

For given exponents the laws are linear in the rest, which non-negative least squares of the
relative residual finds at once (Golub and Pereyra 1973), so that few starts cover what a grid of
all parameters would need thousands for. All return internal parameters [S,k], see loss_laws.py.
"""

import itertools

import numpy as np

# Exponents of N and of D; published ones are between .05 (Kaplan) and .6.
EXPONENTS = (0.03, 0.08, 0.15, 0.25, 0.35, 0.5, 0.75, 1.1)
# Starts of two powers that are taken, of 64: the rest reach the same optimum in thrice the steps.
CLOSEST = 32
# Share of the loss that a power starts with if no data point to it.
LEAST = 1e-3
# Added to the squares of columns of length 1 in the starts' least squares.
RIDGE = 1e-13


def _linear(columns: np.ndarray, loss: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[B,m] logarithms of the coefficients of columns [B,m,n], each at least LEAST of the loss [n]
    or [B,1,n]."""
    root = np.sqrt(w)
    design = columns / loss * root
    unit = np.sqrt((design**2).sum(2))
    design /= unit[:, :, None]
    best = _nonnegative(design @ design.transpose(0, 2, 1), design @ root)
    least = LEAST * np.sqrt(w.sum()) / unit
    return np.log(np.maximum(best / unit, least))


def _nonnegative(gram: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """[B,m] coefficients of non-negative least squares of few columns of length 1, from their
    products [B,m,m] and those with the target [B,m]: the best of every set of columns."""
    many, m = moment.shape
    best, gain = np.zeros((many, m)), np.zeros(many)
    for size in range(1, m + 1):
        for columns in itertools.combinations(range(m), size):
            own = np.ix_(range(many), columns)
            # exponents near one another make columns that are nearly one
            system = gram[:, columns][:, :, columns] + RIDGE * np.eye(size)
            coefficients = np.linalg.solve(system, moment[own][:, :, None])[:, :, 0]
            value = (coefficients * moment[own]).sum(1)
            better = (coefficients >= 0).all(1) & (value > gain)
            best[better], gain[better] = 0.0, value[better]
            best[np.ix_(better, columns)] = coefficients[better]
    return best


def powers(x: np.ndarray, loss: np.ndarray, w: np.ndarray, tied: bool = False) -> np.ndarray:
    """Starts (log E, log coefficients [m], exponents [m]) of E + sum a_i exp(-alpha_i x_i).

    x [m,n] centred logarithms of the inputs; tied: one exponent for all inputs.
    """
    exponents = np.array(list(itertools.product(EXPONENTS, repeat=1 if tied else len(x))))
    columns = np.exp(-exponents[:, :, None] * x)
    floor = np.ones((len(columns), 1, x.shape[1]))
    return np.concatenate([_linear(np.concatenate([floor, columns], 1), loss, w), exponents], 1)


def two_powers(x: np.ndarray, loss: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The CLOSEST of `powers` starts of two inputs, the closest first."""
    starts = powers(x, loss, w)
    return starts[np.argsort(_misfit(starts, x, loss, w), kind="stable")[:CLOSEST]]


def power(x: np.ndarray, loss: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Starts (log c, alpha) of (c / exp(x))^alpha: exponents of the grid, and the regression."""
    root = np.sqrt(w)
    design = np.stack([root, -root * x], 1)
    (level, slope), *_ = np.linalg.lstsq(design, root * np.log(loss), rcond=None)
    alphas = [*EXPONENTS, slope if abs(slope) > 1e-6 else EXPONENTS[0]]
    return np.array([[level / alpha, alpha] for alpha in alphas])


def kaplan(x: np.ndarray, loss: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Starts (log Nc, log Dc, alpha_N, alpha_D): L^(1/alpha_D) is linear for given exponents."""
    alphas = np.array(list(itertools.product((0.04, 0.08, 0.15, 0.3), repeat=2)))
    alpha_n, alpha_d = alphas.T[:, :, None]
    columns = np.stack([np.exp(-alpha_n / alpha_d * x[0]), np.tile(np.exp(-x[1]), (16, 1))], 1)
    scale = np.median(loss)
    logs = _linear(columns, ((loss / scale) ** (1 / alpha_d))[:, None], w)
    logs += np.log(scale) / alpha_d
    logs[:, :1] *= alpha_d / alpha_n
    return np.concatenate([logs, alphas], 1)


def data_constrained(
    logs: np.ndarray, centre: np.ndarray, loss: np.ndarray, w: np.ndarray
) -> np.ndarray:
    """The two best starts without repetition, each with thirty pairs of R_D and R_N.

    Pairs are many since the objective has several basins in them, however good the rest.
    """
    best = two_powers(logs[:2] - centre[:2, None], loss, w)[:2]
    decays = itertools.product((1.0, 3.0, 8.0, 20.0, 60.0, 200.0), (1.0, 2.0, 5.0, 20.0, 200.0))
    return np.array([[*start, *np.log(pair)] for pair in decays for start in best])


def _misfit(starts: np.ndarray, x: np.ndarray, loss: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[S] sums of absolute log residuals of `powers` starts of two inputs."""
    e, a, b, alpha, beta = starts.T[:, :, None]
    fitted = np.exp(e) + np.exp(a - alpha * x[0]) + np.exp(b - beta * x[1])
    return (w * np.abs(np.log(loss) - np.log(fitted))).sum(1)


def farseer(logs: np.ndarray, centre: np.ndarray, loss: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Starts with the slopes of the best sum of two powers: D's exponent falls or rises with N,
    and a grid of the three exponents.

    At slopes of 0 the exponents of the first two parts would have none: a saddle.
    """
    e, a, b, alpha, beta = two_powers(logs - centre[:, None], loss, w)[0]
    # the last part's level and slope in log N at the centre
    level = np.log(np.exp(e) + np.exp(a))
    slope = -alpha * np.exp(a - level)
    power = np.log(max(beta, 0.01))
    grid = itertools.product((-0.1, 0.1), (-0.2, 0.05), (-0.2, 0.1), (-0.3, 0.15))
    return np.array([[s, power, k1, 0.1, b, k2, slope, level, k3] for s, k1, k2, k3 in grid])
