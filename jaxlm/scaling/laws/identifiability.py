"""Identifiability: the laws whose parameters a table of runs determines."""

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.laws import fitting, loss_laws

# Values that differ by less than this share are one: N and D are often rounded to three digits.
SAME = 0.01
# E + A N^-alpha needs three sizes: two give two sums of three unknowns. Where alpha is shared with
# the term of D it is known from there, and two are enough.
SIZES = 3
SHARED = {"tied": 2, "overtraining": 2}
# Points a parameter: of 1,000 refits of its nine parameters 261 failed on 20 points, 531 on 22.
FEW = {"farseer": 5}


def reason(law: loss_laws.Law, t: table.Table) -> str:
    """The reason why the runs do not determine this law's parameters; "" where they do.

    A law of compute alone describes the frontier: t is then to be the frontier's points.
    """
    if len(t.loss) <= len(law.names):
        # as many points as parameters are met exactly: no residual, and an interval without width
        short = "" if len(t.loss) < len(law.names) else ": no residual is left to judge it by"
        return f"{len(t.loss)} points for {len(law.names)} parameters{short}"
    wanted = FEW.get(law.name, 1) * len(law.names)
    if len(t.loss) < wanted:
        return f"{len(t.loss)} points; its {len(law.names)} parameters need {wanted}"
    if "unique" in law.inputs:
        if t.unique is None:
            return "there is no column of unique tokens"
        if not np.any(t.unique < t.tokens * (1 - SAME)):
            return "no run repeats a token"
    if law.inputs == ("flops",):
        return _varied("flops", t.flops, SIZES)
    for name, values in (("params", t.params), ("tokens", t.tokens)):
        if name in law.inputs:
            varied = _varied(name, values, SHARED.get(law.name, SIZES))
            if varied:
                return varied
        elif values.max() > values.min() * (1 + SAME):
            return (
                f"{name} run from {values.min():.3g} to {values.max():.3g}, which the form does "
                "not read"
            )
    return ""


def rises(law: loss_laws.Law, theta: np.ndarray, t: table.Table) -> str:
    """Reason why a fit, theta [k], has no optimum: its loss does not fall with N or D; else "".

    Twice the parameters, or twice the tokens, at the middle of the runs.
    """
    middle = [np.exp(np.mean(np.log(values))) for values in fitting.inputs(law, t)]
    for name in ("params", "tokens"):
        if name in law.inputs:
            twice = [2 * v if f == name else v for f, v in zip(law.inputs, middle)]
            with np.errstate(over="ignore", invalid="ignore"):
                falls = law.predict(theta, twice) < law.predict(theta, middle)
            if not falls:
                return f"as fitted its loss does not fall with {name}, so that it has no optimum"
    return ""


def different(values: np.ndarray) -> int:
    """Number of distinct values among [n], those that differ by more than SAME."""
    steps = np.diff(np.sort(np.log(values)))
    return int(np.sum(steps > SAME)) + 1


def _varied(name: str, values: np.ndarray, wanted: int) -> str:
    count = different(values)
    return "" if count >= wanted else f"{count} different {name}; {wanted} are needed"
