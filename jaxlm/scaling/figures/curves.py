"""Figures of curves: loss against N within budgets, and profiles of the objective."""

from typing import Any

import numpy as np

from jaxlm.scaling.approaches import isoflop as approach
from jaxlm.scaling.figures import style
from jaxlm.scaling.figures.values import Array, Values

NODES = 60  # of a fitted curve
BINS = 30  # of the exponent's density


def isoflop(picture: Any, v: Values) -> bool:
    """Loss against N for each budget in one scale of colours, with Akima's and parabolic fits."""
    akima = v.isoflop("akima")
    if akima is None:
        return False
    from matplotlib import colormaps

    p = v.points
    axes = picture.add_axes((0.1, 0.2, 0.7, 0.71))
    groups = akima.budgets
    budgets = np.log10([np.median(p["flops"][g]) for g in groups])
    low, high = float(budgets.min()), float(budgets.max())
    shades = colormaps["viridis"]((budgets - low) / max(high - low, 1e-9) * 0.92)
    for group, shade in zip(groups, shades):
        n, which = np.unique(p["params"][group], return_inverse=True)
        loss = np.bincount(which, p["loss"][group]) / np.bincount(which)
        axes.plot(p["params"][group], p["loss"][group], "o", color=shade, markersize=3, mew=0)
        if len(n) < approach.SIZES:
            continue
        x = np.linspace(np.log(n[0]), np.log(n[-1]), NODES)
        spline = approach.akima(np.log(n), np.log(loss), x)
        # between two sizes that nearly agree it may be far outside the losses
        spare = 0.3 * np.ptp(np.log(loss))
        outside = (spline < np.log(loss).min() - spare) | (spline > np.log(loss).max() + spare)
        spline = np.where(outside, np.nan, spline)
        axes.plot(np.exp(x), np.exp(spline), color=shade, linewidth=1)
        axes.plot(*_parabola(n, loss), color=shade, linewidth=1, linestyle=":")
    for method, mark, size in (("akima", "*", 9), ("parabola", "P", 5)):
        used = v.minima_by(method)
        x, y = [m.params for m in used], [m.loss for m in used]
        label = f"minimum ({method})"
        axes.plot(x, y, mark, color="k", markersize=size, mec="w", mew=0.6, label=label, zorder=4)
    grows = style.superscript(f"{akima.exponent:.2f}")
    title = f"{len(groups)} budgets; by their minima N* grows as C{grows}"
    if akima.interval:
        title += " ({:.2f} to {:.2f})".format(*akima.interval)
    style.frame(axes, "parameters", "loss (nats per token)", title)
    every = np.concatenate(groups)
    style.log_axis(axes, "x", *style.widened(p["params"][every]), "count")
    style.log_axis(axes, "y", *style.widened(p["loss"][every]), "number")
    _scale(picture, low, high)
    axes.plot([], [], color=style.GREY, linewidth=1, label="Akima's spline")
    axes.plot(
        [], [], color=style.GREY, linewidth=1, linestyle=":", label="parabola near the lowest"
    )
    style.legend(axes, "below")
    return True


def _parabola(n: Array, loss: Array) -> tuple[Array, Array]:
    """(N, loss) along the parabola through the lowest point and three on each side."""
    low = int(np.argmin(loss))
    part = slice(max(low - approach.SIDE, 0), low + approach.SIDE + 1)
    x, y = np.log(n[part]), loss[part]
    if len(x) < approach.SIZES:
        return np.empty(0), np.empty(0)
    middle = x.mean()
    at = np.linspace(x[0], x[-1], NODES)
    return np.exp(at), np.polyval(np.polyfit(x - middle, y, 2), at - middle)


def _scale(picture: Any, low: float, high: float) -> None:
    """The colours of budgets from 10^low to 10^high."""
    bar = picture.add_axes((0.825, 0.2, 0.025, 0.71))
    bar.imshow(
        np.linspace(0, 0.92, 64)[:, None],
        cmap="viridis",
        vmin=0,
        vmax=1,
        aspect="auto",
        origin="lower",
        extent=(0, 1, low, max(high, low + 1e-9)),
    )
    bar.set_xticks([])
    bar.yaxis.tick_right()
    places = np.log10(style.ticks(10**low, 10**high)[0])
    bar.set_yticks(places, [style.power(10**x) for x in places])
    bar.set_ylabel("training FLOPs")
    bar.yaxis.set_label_position("right")
    bar.yaxis.set_label_coords(5.2, 0.5)


def profiles(picture: Any, v: Values) -> bool:
    """The objective along each parameter, and the bootstrap density of N*'s exponent."""
    profiles_ = v.record.profiles
    form = v.record.forms[v.law]
    exponents = _exponents(v)
    panels = len(profiles_) + (len(exponents) > 1)
    if not panels:
        return False
    grid = picture.subplots(1, panels, squeeze=False)[0]
    picture.subplots_adjust(0.06, 0.17, 0.985, 0.82, wspace=0.12)
    shade = style.colour(v.law)
    heights = [profile.relative for profile in profiles_.values()]
    # as high as every curve rises on both sides, and half as much again
    ends = [min(h[0], h[-1]) for h in heights if np.isfinite(h[[0, -1]]).all()]
    highest = max(1.5 * max(ends, default=0.0), 1.0)
    for i, (axes, (name, profile)) in enumerate(zip(grid, profiles_.items())):
        axes.plot(profile.grid, profile.relative, color=shade, linewidth=1.5)
        axes.axvline(form.theta[name], color="k", linewidth=0.8)
        interval = form.intervals[name]
        assert interval is not None  # only such parameters have a profile
        axes.axvspan(*interval, alpha=0.12, color=shade, linewidth=0)
        style.frame(axes, name, "objective above its least (%)" if i == 0 else "")
        axes.set_ylim(-0.03 * highest, 1.05 * highest)
        if i:
            axes.set_yticklabels([])
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter(
            lambda x, _: style.count(x) if abs(x) >= 1000 else f"{x:.3g}"
        )
    title = f"Profiles of {v.law}: others refitted; band: {v.level:.0%} bootstrap interval"
    if len(exponents) > 1:
        axes = grid[-1]
        value, ends = v.best(v.law).exponent
        axes.hist(exponents, BINS, density=True, color=shade, alpha=0.5, linewidth=0)
        axes.axvline(value, color="k", linewidth=0.8)
        assert ends is not None  # _exponents gave draws
        axes.axvspan(*ends, alpha=0.12, color=shade, linewidth=0)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=3)
        style.frame(axes, "exponent of N*(C)", "")
        title += "; last: density of bootstrap draws"
    picture.text(0.06, 0.9, title, fontsize=10)
    return True


def _exponents(v: Values) -> Array:
    """[R] d log N* / d log C at the target over draws, without the outermost 0.5 %."""
    if v.law not in v.at_target or v.best(v.law).exponent[1] is None:
        return np.empty(0)
    x = v.at_target[v.law].exponent
    x = x[np.isfinite(x)]
    if len(x) < 2 or np.ptp(x) < 1e-9:
        return np.empty(0)
    low, high = np.percentile(x, (0.5, 99.5))
    return x[(x >= low) & (x <= high)]
