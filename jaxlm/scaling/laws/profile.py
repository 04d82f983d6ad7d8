"""Profile of a law: how much worse it fits with one parameter held."""

from collections.abc import Mapping, Sequence

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
    law: loss_laws.Law, t: table.Table, fitted: fitting.Fit, name: str, grid: np.ndarray
) -> np.ndarray:
    """[G] least objectives with the named parameter held at each value of grid [G].

    The other parameters are refitted from the fit's optimum, from its other basins and then from
    both neighbours on the grid; nan where none converged. A flat profile is a parameter that the
    data do not determine.

    Raises: ValueError for a parameter that the law lacks or cannot hold, or held in the fit, and
    for values that it cannot take.
    """
    return profiles(law, t, fitted, {name: grid})[name]


def profiles(
    law: loss_laws.Law, t: table.Table, fitted: fitting.Fit, grids: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`profile` of each parameter along its grid, all solved together."""
    if not grids:
        return {}
    parts = [_Profile(law, t, fitted, name, grid) for name, grid in grids.items()]
    first = _lowest(law, fitted, parts, [part.start for part in parts])
    around = []
    for part, (_, phi) in zip(parts, first):
        order, both = np.argsort(part.grid), np.empty((2, *phi.shape))
        both[0, order] = np.roll(phi[order], 1, 0)
        both[1, order] = np.roll(phi[order], -1, 0)
        around.append(both)
    out = {}
    for part, initial, retried in zip(parts, first, _lowest(law, fitted, parts, around)):
        least = np.minimum(initial[0], retried[0])
        out[part.name] = np.where(np.isfinite(least), least, np.nan)
    return out


class _Profile:
    """A parameter held along a grid: the problem, and where it starts."""

    def __init__(
        self, law: loss_laws.Law, t: table.Table, fitted: fitting.Fit, name: str, grid: np.ndarray
    ) -> None:
        self.name, self.grid = name, np.asarray(grid, np.float64)
        if name in fitted.fixed:
            raise ValueError(f"{name} was held in the fit, so it has no profile")
        self.ready = fitting.prepare(law, t, None, (*fitted.fixed, name), fitted.delta, fitted.log)
        self.column = law.names.index(name)
        known = [fitting.values(fitted), *(np.array(list(b.values())) for _, b in fitted.basins)]
        theta = np.repeat(np.array(known)[:, None], len(self.grid), 1)
        self.start = law.internal(theta, self.ready.centre)  # [S,G,k]
        theta[:, :, self.column] = self.grid
        with np.errstate(all="ignore"):  # the other parameters need not go with the held one
            self.held = law.internal(theta[0], self.ready.centre)[:, self.column]
        if not np.isfinite(self.held).all():
            value = self.grid[~np.isfinite(self.held)][0]
            raise ValueError(f"{name} cannot be {value} in {law.name}")


def _lowest(
    law: loss_laws.Law,
    fitted: fitting.Fit,
    parts: Sequence[_Profile],
    starts: Sequence[np.ndarray],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(objective [G], phi [G,k]) of the best of starts [S,G,k], of each profile."""
    tasks = []
    for part, start in zip(parts, starts):
        start[:, :, part.column] = part.held
        r, flat = part.ready, start.reshape(-1, start.shape[-1])
        tasks.append(solve.Task(flat, r.y, r.weights, r.logs, r.centre, r.free))
    solved = solve.minimise_all(law.model, law.closed, tasks, fitted.delta, fitted.log)
    out = []
    for start, s in zip(starts, solved):
        objective = np.where(s.arrived, s.objective, np.inf).reshape(start.shape[:2])
        best, at = objective.argmin(0), np.arange(start.shape[1])
        out.append((objective[best, at], s.phi.reshape(start.shape)[best, at]))
    return out
