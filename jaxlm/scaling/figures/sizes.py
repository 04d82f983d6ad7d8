"""Figures of the optimum: N* and D* over compute, tokens per parameter, N* at the target."""

from typing import Any

import numpy as np

from jaxlm.scaling.figures import style
from jaxlm.scaling.figures.values import Array, Values

# Hoffmann et al. 2022's rule of thumb, tokens per parameter.
RULE = 20.0


def optimum(picture: Any, v: Values) -> bool:
    """N* and D* of every form, with bands, minima of isoFLOP curves and the runs' region."""
    if not v.forms:
        return False
    grid = picture.subplots(1, 2)
    picture.subplots_adjust(0.075, 0.12, 0.985, 0.84, wspace=0.2)
    for axes, field, letter in zip(grid, ("params", "tokens"), "ND"):
        _forms(axes, v, field)
        minima = [(m.flops, m.params if field == "params" else m.tokens) for m in v.minima]
        if minima:
            axes.plot(*zip(*minima), "*", color="k", markersize=7, label="isoFLOP minima", zorder=4)
        word = "parameters" if field == "params" else "tokens"
        style.frame(axes, "training FLOPs", f"{letter}* ({word})")
        spread = [c.best._asdict()[field] for c in v.curves.values()]
        _scales(axes, v, [*np.concatenate(spread), *(size for _, size in minima)], "count")
        _plan(axes, v, field)
    style.legend(grid[0], "upper left")
    picture.text(0.075, 0.91, _title(v), fontsize=10)
    return True


def ratio(picture: Any, v: Values) -> bool:
    """Tokens per parameter of every form's optimum against compute, with the rule of 20."""
    if not v.forms:
        return False
    axes = picture.add_axes((0.1, 0.13, 0.87, 0.77))
    every = [RULE]
    for i, (name, curve) in enumerate(v.curves.items()):
        main, shade = name == v.law, style.colour(name)
        best = curve.best.tokens / curve.best.params
        look = {"linewidth": 2 if main else 1.2, "zorder": 3 - 0.1 * i, "color": shade}
        axes.plot(curve.flops, best, label=name, **look)
        every += list(best)
        if curve.many is not None:
            ends = curve.band(curve.many.tokens / curve.many.params, v.level)
            axes.fill_between(curve.flops, *ends, color=shade, alpha=0.15, linewidth=0)
    if v.minima:
        x = [m.flops for m in v.minima]
        y = [m.tokens / m.params for m in v.minima]
        axes.plot(x, y, "*", color="k", markersize=7, label="isoFLOP minima", zorder=4)
        every += y
    axes.axhline(RULE, color=style.GREY, linestyle="--", linewidth=1)
    values = [v.best(name).tokens_per_parameter[0] for name in v.forms]
    main, plan = values[0], v.record.plan
    if plan is not None:
        main = plan.tokens.value / plan.params.value
    title = f"{main:.3g} tokens per parameter at {style.power(v.target)} FLOPs"
    if len(values) > 1:
        title += f"; forms say {min(values):.3g} to {max(values):.3g}"
    style.frame(axes, "training FLOPs", "D* / N* (tokens per parameter)", title)
    _scales(axes, v, every, "number")
    axes.text(axes.get_xlim()[0] * 1.15, RULE * 1.04, "20", color=style.GREY, fontsize=8)
    style.legend(axes, "best")
    return True


def density(picture: Any, v: Values) -> bool:
    """Kernel density of log N* at the target over each form's draws and the plan's, each over its
    own peak: that of a form with a fixed exponent would hide the others."""
    kept = [(name, _logs(draws)) for name, draws in v.sizes()]
    kept = [(name, x) for name, x in kept if len(x) > 1 and np.ptp(x) > 1e-9]
    if not kept:
        return False
    axes = picture.add_axes((0.04, 0.14, 0.93, 0.75))
    ends = np.array([np.percentile(x, (0.5, 99.5)) for _, x in kept])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    at = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), 240)
    for name, x in kept:
        height = _kernel(x, at)
        height /= height.max()
        plan = name == "plan"
        shade = style.colour(name)
        axes.plot(np.exp(at), height, color=shade, linewidth=2 if plan else 1.3, label=name)
        axes.fill_between(np.exp(at), height, color=shade, alpha=0.12, linewidth=0)
    bars = []
    for method, label in (("akima", "isoFLOP, Akima"), ("parabola", "isoFLOP, parabola")):
        side = v.isoflop(method)
        if side is not None and side.params_interval is not None:
            bars.append((side.params, side.params_interval, label))
    for i, (value, interval, label) in enumerate(bars):
        y = -(0.06 + 0.07 * i)
        axes.plot(interval, [y, y], color=style.GREY, linewidth=1.5)
        axes.plot(value, y, "ks*"[i + 1], color=style.GREY, markersize=5, label=label)
    axes.axhline(0, color="k", linewidth=0.6)
    axes.set_ylim(-(0.07 + 0.07 * len(bars)), 1.08)
    axes.set_yticks([])
    style.frame(
        axes,
        f"N* at {style.power(v.target)} FLOPs (parameters)",
        "density over its peak",
        _apart(kept),
    )
    axes.yaxis.set_label_coords(-0.01, 0.5)
    axes.spines["left"].set_visible(False)
    style.log_axis(axes, "x", float(np.exp(at[0])), float(np.exp(at[-1])), "count")
    style.legend(axes, "best")
    return True


def _forms(axes: Any, v: Values, field: str) -> None:
    """Every form's optimum, the one that plans on top."""
    low, high = v.flops
    axes.axvspan(low, high, color="k", alpha=0.05, linewidth=0, label="budgets of the runs")
    for i, (name, curve) in enumerate(v.curves.items()):
        main, shade = name == v.law, style.colour(name)
        best = curve.best._asdict()[field]
        look = {"linewidth": 2 if main else 1.2, "zorder": 3 - 0.1 * i, "color": shade}
        axes.plot(curve.flops, best, label=name, **look)
        if curve.many is not None:
            ends = curve.band(curve.many._asdict()[field], v.level)
            axes.fill_between(curve.flops, *ends, color=shade, alpha=0.15, linewidth=0)


def _plan(axes: Any, v: Values, field: str) -> None:
    """The plan and its interval at the target."""
    plan = v.record.plan
    if plan is None:
        return
    estimate = plan.params if field == "params" else plan.tokens
    value, ends = estimate.value, estimate.interval
    if ends:
        axes.plot([v.target, v.target], ends, color="k", linewidth=1.5, zorder=5)
    axes.plot(v.target, value, "D", color="k", markersize=5, label="plan", zorder=5)


def _scales(axes: Any, v: Values, values: list[float], kind: str) -> None:
    style.log_axis(axes, "x", *style.widened(np.array([*v.flops, v.target])), "flops")
    style.log_axis(axes, "y", *style.widened(np.array(values), 0.08), kind)


def _title(v: Values) -> str:
    """Title that states the growth of the optimum, and whether isoFLOP minima agree."""
    name = v.forms[0]
    exponent, ends = v.best(name).exponent
    title = f"By {name} N* grows as C{style.superscript(f'{exponent:.2f}')}"
    if ends:
        title += f" ({ends[0]:.2f} to {ends[1]:.2f})"
    other = v.isoflop("akima")
    if other is not None:
        inside = ends is not None and ends[0] <= other.exponent <= ends[1]
        verb = "agree" if inside else "do not agree"
        title += f"; isoFLOP minima {verb}: C{style.superscript(format(other.exponent, '.2f'))}"
    return title


def _apart(kept: list[tuple[str, Array]]) -> str:
    """Title that states how far the forms' medians of N* are apart."""
    medians = sorted((float(np.exp(np.median(x))), name) for name, x in kept if name != "plan")
    if len(medians) < 2:
        return f"N* is {style.count(medians[0][0])} by {medians[0][1]}" if medians else "N*"
    (low, first), (high, last) = medians[0], medians[-1]
    factor = high / low
    words = f"N* from {style.count(low)} ({first}) to {style.count(high)} ({last})"
    return f"{words}: forms are a factor of {factor:.2g} apart"


def _logs(draws: Array) -> Array:
    return np.log(draws[np.isfinite(draws) & (draws > 0)])


def _kernel(x: Array, at: Array) -> Array:
    """Density of x at places, with normal kernels of Silverman's width (1986, equation 3.31)."""
    spread = min(float(np.std(x)), float(np.subtract(*np.percentile(x, (75, 25)))) / 1.34)
    width = 0.9 * max(spread, 1e-9) * len(x) ** -0.2
    # a histogram much finer than the kernel represents the draws
    step = at[1] - at[0]
    near = np.exp(-0.5 * ((at[:, None] - x) / max(width, step / 2)) ** 2)
    return near.mean(1) / (max(width, step / 2) * np.sqrt(2 * np.pi))
