"""A record's numbers as figures need them: points, forms' optima over compute, draws."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import study_parts
from jaxlm.scaling.laws import loss_laws, optimum
from jaxlm.scaling.planning import allocation
from jaxlm.scaling.study_record import Record

Array = np.ndarray

# Places of a curve over compute, and draws that its band is of, where the optimum is searched for;
# where it has a formula all draws, and this many places.
PLACES, DRAWS = 12, 100
SMOOTH = 60


class Curve(NamedTuple):
    """A form's optimum over compute."""

    name: str
    flops: Array  # [m] C
    best: optimum.Optimum  # [m] at the fit
    many: optimum.Optimum | None  # [R, m] at draws of it

    def band(self, values: Array, level: float) -> tuple[Array, Array]:
        """(low, high) percentiles [m] of values [R, m] over the draws."""
        # numpy takes the columns one by one where it looks for nan
        percentile = np.nanpercentile if np.isnan(values).any() else np.percentile
        with np.errstate(all="ignore"):
            ends = percentile(values, (50 * (1 - level), 50 * (1 + level)), axis=0)
        return ends[0], ends[1]


class Values:
    """Views of a record, each computed once whatever figures read it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.law = record.law
        self.per = record.per
        self.level = record.options.level
        assert record.options.target is not None  # analysis.run puts it in
        self.target = record.options.target
        self.flops = record.flops

    @functools.cached_property
    def points(self) -> dict[str, Array]:
        """params, tokens, flops, loss [n] and row, of the points that were fitted."""
        p = self.record.points
        every = {"params": p.params, "tokens": p.tokens, "flops": p.flops}
        every |= {"loss": p.loss, "row": p.row}
        return {name: column[p.used] for name, column in every.items()}

    def plans(self, form: str) -> bool:
        """Whether a form has an optimum between N and D at the target."""
        best = self.record.forms[form].optimum
        return isinstance(best, study_parts.Optimum) and bool(np.isfinite(best.exponent[0]))

    def best(self, form: str) -> study_parts.Optimum:
        """The optimum at the target of a form that `plans`."""
        best = self.record.forms[form].optimum
        assert isinstance(best, study_parts.Optimum)
        return best

    @functools.cached_property
    def forms(self) -> list[str]:
        """Forms with an optimum, the one that plans first."""
        names = [name for name in self.record.forms if self.plans(name)]
        return sorted(names, key=lambda name: name != self.law)

    def draws(self, form: str) -> Array:
        """[R, k] refits of a form."""
        return self.record.forms[form].draws.reshape(-1, len(loss_laws.LAWS[form].names))

    @functools.cached_property
    def curves(self) -> dict[str, Curve]:
        """Each form's optimum, from the smallest budget to the target."""
        return {name: self._curve(name) for name in self.forms}

    def _curve(self, name: str) -> Curve:
        low, high = self.flops[0], max(self.flops[1], self.target)
        closed = loss_laws.LAWS[name].terms is not None or name == "kaplan"
        c = np.geomspace(low, high, SMOOTH if closed else PLACES)
        theta = [self.record.forms[name].theta[k] for k in loss_laws.LAWS[name].names]
        draws = self.draws(name)
        if not closed and len(draws) > DRAWS:
            draws = draws[np.linspace(0, len(draws) - 1, DRAWS).round().astype(int)]
        many = optimum.at(name, draws, c, per=self.per) if len(draws) > 1 else None
        return Curve(name, c, optimum.at(name, theta, c, per=self.per), many)

    @functools.cached_property
    def minima(self) -> list[study_parts.Minimum]:
        """Minima of isoFLOP curves by Akima's spline that were used, or those by parabola."""
        used = [self.minima_by(name) for name in ("akima", "parabola")]
        return used[0] or used[1]

    def minima_by(self, method: str) -> list[study_parts.Minimum]:
        """The used minima by one method; none where approach 2 has no result."""
        side = self.isoflop(method)
        return [] if side is None else [m for m in side.minima if not m.left_out]

    def isoflop(self, method: str) -> study_parts.IsoFlop | None:
        """Approach 2's result by "akima" or "parabola"."""
        side = self.record.approaches.get(f"isoflop {method}")
        return side if isinstance(side, study_parts.IsoFlop) else None

    @functools.cached_property
    def at_target(self) -> dict[str, optimum.Optimum]:
        """Each form's optimum at the target, of all its draws [R]; none where there are not two."""
        drawn = {name: self.draws(name) for name in self.forms}
        return {
            name: optimum.at(name, draws, self.target, per=self.per)
            for name, draws in drawn.items()
            if len(draws) > 1
        }

    def sizes(self) -> Iterator[tuple[str, Array]]:
        """(form or "plan", its draws [R] of N* at the target)."""
        if self.record.plan is not None:
            yield "plan", allocation.at(allocation.of(self.record), self.target).params[1:]
        for name, best in self.at_target.items():
            yield name, best.params
