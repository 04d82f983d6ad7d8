"""Profile of a law: how much worse it fits with one parameter held."""

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.laws import fitting, loss_laws, solve


def possible(law: loss_laws.Law, name: str, values: np.ndarray) -> np.ndarray:
    """[G] bool: values that the law's parameter can take; a coefficient is above 0."""
    theta = np.ones((len(values), len(law.names)))
    theta[:, law.names.index(name)] = values
    with np.errstate(invalid="ignore", divide="ignore"):
        internal = law.internal(theta, np.zeros(len(law.inputs)))
    return np.all(np.isfinite(internal), axis=1)


def profile(
    law: loss_laws.Law, t: table.Table, found: fitting.Fit, name: str, grid: np.ndarray
) -> np.ndarray:
    """[G] least objectives with the named parameter held at each value of grid [G].

    The other parameters are refitted from the fit's optimum, from its other basins and then from
    both neighbours on the grid; nan where none converged. A flat profile is a parameter that the
    data do not determine.

    Raises: ValueError for a parameter that the law lacks or cannot hold, or held in the fit, and
    for values that it cannot take.
    """
    grid = np.asarray(grid, np.float64)
    if name in found.fixed:
        raise ValueError(f"{name} was held in the fit, so it has no profile")
    r = fitting.prepare(law, t, None, (*found.fixed, name), found.delta, found.log)
    j = law.names.index(name)
    known = [fitting.values(found), *(np.array(list(b.values())) for _, b in found.basins)]
    theta = np.repeat(np.array(known)[:, None], len(grid), 1)
    starts = law.internal(theta, r.centre)
    theta[:, :, j] = grid
    with np.errstate(all="ignore"):  # the other parameters need not go with the held one
        held = law.internal(theta[0], r.centre)[:, j]
    if not np.isfinite(held).all():
        raise ValueError(f"{name} cannot be {grid[~np.isfinite(held)][0]} in {law.name}")

    def lowest(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(objective [G], phi [G,k]) of the best of starts [S,G,k]."""
        starts[:, :, j] = held
        arrays = (r.y, r.weights, r.logs, r.centre, r.free, found.delta, found.log)
        s = solve.minimise(law.model, law.closed, starts.reshape(-1, len(known[0])), *arrays)
        objective = np.where(s.arrived, s.objective, np.inf).reshape(starts.shape[:2])
        best, at = objective.argmin(0), np.arange(len(grid))
        return objective[best, at], s.phi.reshape(starts.shape)[best, at]

    objective, phi = lowest(starts)
    order = np.argsort(grid)
    around = np.empty((2, *phi.shape))
    around[0, order], around[1, order] = np.roll(phi[order], 1, 0), np.roll(phi[order], -1, 0)
    objective = np.minimum(objective, lowest(around)[0])
    return np.where(np.isfinite(objective), objective, np.nan)
