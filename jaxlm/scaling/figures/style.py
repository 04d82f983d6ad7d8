"""Appearance of the figures: colours, ticks that read well, numbers in words."""

from typing import Any

import numpy as np

Array = np.ndarray

# Okabe and Ito's colours, which the colour-blind can distinguish; the plan is black.
COLOURS = {
    "plan": "#000000",
    "chinchilla": "#0072B2",
    "tied": "#E69F00",
    "farseer": "#009E73",
    "kaplan": "#CC79A7",
    "overtraining": "#56B4E9",
    "data_constrained": "#D55E00",
}
OTHERS = ("#D55E00", "#999933", "#882255", "#44AA99")
GREY = "#777777"
# Inches from the axes to the labels below and on the left.
LABEL = (0.28, 0.45)
EDGE = 0.07  # share of an axis at its ends


def colour(form: str) -> str:
    """A form's colour, the same in every figure."""
    return COLOURS.get(form, OTHERS[sum(map(ord, form)) % len(OTHERS)])


def count(value: float) -> str:
    """A number of parameters or tokens in words: 70M, 1.3B, 2T."""
    if value >= 1e15:
        return f"{value:.0e}"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def power(value: float) -> str:
    """FLOPs as 10²³ or 5.8 × 10²³."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    factor = f"{value / 10.0**exponent:.2g}"
    ten = "10" + superscript(str(exponent))
    return ten if factor == "1" else f"{factor} × {ten}"


def superscript(text: str) -> str:
    """Digits, a point and a sign raised; matplotlib's own mathematics would take twice the time."""
    return text.translate(str.maketrans("0123456789.-", "⁰¹²³⁴⁵⁶⁷⁸⁹·⁻"))


def ticks(low: float, high: float, most: int = 7) -> tuple[list[float], list[float]]:
    """(places with a label, places without) of a logarithmic axis from low to high."""
    decades = np.log10(high / low)
    if decades > 2.2:
        step = int(np.ceil(decades / most))
        factors, others = (1.0,), tuple(range(2, 10)) if step == 1 else (1,)
    else:
        step = 1
        factors = (1.0, 3.0) if decades > 1.1 else (1.0, 2.0, 5.0) if decades > 0.5 else ()
        others = tuple(range(1, 10))
    exponents = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    major = [f * 10.0**e for e in exponents if e % step == 0 for f in factors]
    if not factors:  # within half a decade: round numbers of a linear scale
        width = 10.0 ** np.floor(np.log10((high - low) / 2))
        width *= next(f for f in (1, 2, 5, 10) if (high - low) / (f * width) <= most)
        major = list(np.arange(np.ceil(low / width), high / width) * width)
    minor = [f * 10.0**e for e in exponents for f in others]
    inside = (low * (1 - 1e-9), high * (1 + 1e-9))
    return (
        [v for v in major if inside[0] <= v <= inside[1]],
        [v for v in minor if inside[0] <= v <= inside[1] and v not in major],
    )


def log_axis(axes: Any, which: str, low: float, high: float, kind: str) -> None:
    """A logarithmic x or y axis from low to high with few labels.

    kind: "flops" as powers of ten, "count" as 100M, 1B; "number" as it is.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    major, minor = ticks(low, high)
    words = {"flops": power, "count": count, "number": lambda v: f"{v:.3g}"}[kind]
    # the long label of a budget at an axis' end would be cut off, or meet the next panel's
    ends = low * (high / low) ** EDGE, high * (low / high) ** EDGE
    bare = [kind == "flops" and words(v)[:2] != "10" and not ends[0] < v < ends[1] for v in major]
    axis.set_ticks(major, ["" if b else words(v) for v, b in zip(major, bare)])
    axis.set_ticks([], minor=True)
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    # one line of marks: ticks would be an object each
    look = {"color": "k", "markersize": 3, "mew": 0.6, "linestyle": "", "clip_on": False}
    edge = np.zeros(len(minor))
    if which == "x":
        axes.plot(minor, edge, marker=3, transform=axes.get_xaxis_transform(), **look)
    else:
        axes.plot(edge, minor, marker=0, transform=axes.get_yaxis_transform(), **look)


def widened(values: Array, share: float = 0.04) -> tuple[float, float]:
    """(low, high) around positive values, with a share of their logarithmic range to spare."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    low, high = finite.min(), finite.max()
    spare = max(high / low, 1.2) ** share
    return float(low / spare), float(high * spare)


def frame(axes: Any, x: str, y: str, title: str = "") -> None:
    """Labels, a light grid below what is drawn, no box.

    Labels and title have fixed places: matplotlib measures every tick, again and again, to set
    them.
    """
    place, (wide, high) = axes.get_position(), axes.figure.get_size_inches()
    axes.set_xlabel(x)
    axes.xaxis.set_label_coords(0.5, -LABEL[0] / (place.height * high))
    axes.set_ylabel(y)
    axes.yaxis.set_label_coords(-LABEL[1] / (place.width * wide), 0.5)
    axes.set_title(title, loc="left", y=1 + 0.1 / (place.height * high), pad=0)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend(axes: Any, place: str) -> None:
    """A legend without a box that hides what is under it; "below": in one row under the axes."""
    look = {"fontsize": 8, "framealpha": 0.8, "edgecolor": "none"}
    if place == "below":
        names = axes.get_legend_handles_labels()
        axes.figure.legend(*names, loc="lower center", ncols=4, columnspacing=1.2, **look)
    else:
        axes.legend(loc=place, **look)
