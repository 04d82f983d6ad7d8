"""Figures of the fit itself: loss against compute, and residuals."""

from typing import Any

import numpy as np

from jaxlm.scaling import study_parts
from jaxlm.scaling.figures import style
from jaxlm.scaling.figures.values import Values

# A residual beyond so many robust standard deviations is named by its row, and how many are.
OUTLYING, NAMED = 4.0, 8
# Standard deviation over median absolute deviation of a normal distribution.
ROBUST = 1.4826
BINS, FEW = 8, 10  # of the running median, and the fewest points of a bin
APART = (24, 8)  # points to the right and up within which two rows share a text


def frontier(picture: Any, v: Values) -> bool:
    """Loss against compute, and the loss of the planning form's optimum."""
    axes = picture.add_axes((0.1, 0.13, 0.74, 0.77))
    p = v.points
    drawn = axes.scatter(
        p["flops"], p["loss"], c=np.log10(p["params"]), s=10, cmap="viridis", linewidth=0, zorder=2
    )
    points = v.record.points
    dropped = ~points.used
    if dropped.any():
        x, y = points.flops[dropped], points.loss[dropped]
        axes.plot(x, y, "x", color=style.GREY, markersize=5, label="dropped")
    front = v.record.approaches["envelope"]
    if isinstance(front, study_parts.Envelope):
        look = {"linestyle": "-"} if front.curves else {"linestyle": "", "marker": "o"}
        axes.plot(
            front.flops,
            front.loss,
            color="k",
            mfc="none",
            markersize=5,
            linewidth=0.8,
            markeredgewidth=0.7,
            label="lower envelope (approach 1)",
            **look,
        )
    every, losses = [*points.flops, v.target], list(points.loss)
    title = "Loss falls with compute"
    for name in v.forms[:1]:
        curve = v.curves[name]
        axes.plot(curve.flops, curve.best.loss, color=style.colour(name), label=f"best by {name}")
        losses += list(curve.best.loss)
        if curve.many is not None:
            ends = curve.band(curve.many.loss, v.level)
            axes.fill_between(curve.flops, *ends, color=style.colour(name), alpha=0.2, linewidth=0)
        best = v.best(name).loss[0]
        title = f"{name} expects a loss of {best:.3f} at {style.power(v.target)} FLOPs"
    if v.record.plan is not None:
        value, ends = v.record.plan.loss.value, v.record.plan.loss.interval
        if ends:
            axes.plot([v.target, v.target], ends, color="k", linewidth=1.5, zorder=5)
        axes.plot(v.target, value, "D", color="k", markersize=5, label="plan", zorder=5)
        title = f"The plan expects a loss of {value:.3f} at {style.power(v.target)} FLOPs"
    style.frame(axes, "training FLOPs", "loss (nats per token)", title)
    style.log_axis(axes, "x", *style.widened(np.array(every)), "flops")
    style.log_axis(axes, "y", *style.widened(np.array(losses)), "number")
    bar = picture.colorbar(drawn, cax=picture.add_axes((0.87, 0.13, 0.025, 0.77)))
    low, high = drawn.get_clim()
    places = [x for x in np.log10(style.ticks(10**low, 10**high)[0])]
    bar.set_ticks(places, labels=[style.count(10**x) for x in places])
    bar.set_label("parameters")
    bar.ax.yaxis.set_label_coords(4.4, 0.5)
    style.legend(axes, "upper right")
    return True


def residuals(picture: Any, v: Values) -> bool:
    """Residuals of the planning form against N, D and C, the outlying ones named by their row."""
    p = v.points
    residual = 100 * v.record.forms[v.law].residual
    if len(residual) != len(p["loss"]):
        return False
    middle = np.median(residual)
    spread = ROBUST * float(np.median(np.abs(residual - middle)))
    far = np.flatnonzero(np.abs(residual - middle) > OUTLYING * spread)
    far = far[np.argsort(-np.abs(residual[far]), kind="stable")]
    named = set(far[:NAMED].tolist())
    grid = picture.subplots(1, 3, sharey=True)
    picture.subplots_adjust(0.07, 0.15, 0.985, 0.85, wspace=0.1)
    for axes, (name, kind, label) in zip(
        grid,
        (
            ("params", "count", "parameters N"),
            ("tokens", "count", "tokens D"),
            ("flops", "flops", "training FLOPs C"),
        ),
    ):
        x = p[name]
        axes.axhline(0, color="k", linewidth=0.6)
        axes.axhspan(-2 * spread, 2 * spread, color=style.colour(v.law), alpha=0.08, linewidth=0)
        axes.plot(x, residual, "o", color=style.colour(v.law), markersize=2.5, alpha=0.7, mew=0)
        if len(x) >= 2 * FEW:
            bins = np.array_split(np.argsort(x, kind="stable"), min(BINS, len(x) // FEW))
            at = [np.exp(np.mean(np.log(x[b]))) for b in bins]
            axes.plot(at, [np.median(residual[b]) for b in bins], color="k", linewidth=1.2)
        style.frame(axes, label, "")
        style.log_axis(axes, "x", *style.widened(x), kind)
    for axes, name in zip(grid, ("params", "tokens", "flops")):
        _rows(axes, p[name], residual, p["row"], sorted(named))
    grid[0].set_ylabel("log L - log fit (%)")
    typical = float(np.median(np.abs(residual)))
    title = f"Residuals of {v.law}: half are within {typical:.2g} %"
    if len(far):
        title += f"; {len(far)} beyond {OUTLYING:.0f} sd, named by row"
    line = "line: running median; " if len(residual) >= 2 * FEW else ""
    title += f"  ({line}band: 2 robust sd)"
    picture.text(0.07, 0.91, title, fontsize=10)
    return True


def _rows(axes: Any, x: np.ndarray, y: np.ndarray, row: np.ndarray, at: list[int]) -> None:
    """The rows' numbers, away from the panel's end that they are near; of points that nearly
    coincide as one text."""
    places = axes.transData.transform(np.stack([x[at], y[at]], 1)) if at else np.empty((0, 2))
    middle = axes.bbox.x0 + 0.8 * axes.bbox.width
    apart = np.array(APART) * axes.figure.dpi / 72
    left = list(range(len(at)))
    while left:
        first = left[0]
        near = [i for i in left if (np.abs(places[i] - places[first]) < apart).all()]
        left = [i for i in left if i not in near]
        text = ", ".join(str(row[at[i]]) for i in near)
        right = places[first, 0] > middle
        axes.annotate(
            text,
            (x[at[first]], y[at[first]]),
            (-3 if right else 3, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontsize=7,
        )
