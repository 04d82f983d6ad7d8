"""A study's figures from its record, each as SVG, PNG or both.

    figures.draw(study_record.load("runs/fit").record, pathlib.Path("runs/fit"))

frontier    loss against compute, with what the planning form expects of the best size
isoflop     loss against N for each budget, with the fits that give its minimum
optimum     N* and D* of every form against compute, with the minima of isoFLOP curves
ratio       tokens per parameter against compute
residuals   of the planning form, against N, D and C
profiles    the objective along each parameter, and the bootstrap density of N*'s exponent
density     the draws of N* at the target, by form
"""

import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from jaxlm.scaling.figures import compute, curves, sizes
from jaxlm.scaling.figures.values import Values
from jaxlm.scaling.study_record import Record

DPI = 120
STYLE: Any = {
    # names in the SVG are hashes of what they name: the same record gives the same bytes
    "svg.hashsalt": "jaxlm",
    # text stays text, which takes a quarter less time than outlines and can be searched and edited
    "svg.fonttype": "none",
    # letters as they are drawn in print take a tenth less time than fitted to pixels
    "text.hinting": "none",
    "font.size": 9,
    "axes.titlesize": 10,
}
# name: (its function, inches wide and high)
FIGURES = {
    "frontier": (compute.frontier, (6.4, 4.4)),
    "isoflop": (curves.isoflop, (6.4, 4.4)),
    "optimum": (sizes.optimum, (10.0, 4.4)),
    "ratio": (sizes.ratio, (6.4, 4.4)),
    "residuals": (compute.residuals, (10.0, 3.4)),
    "profiles": (curves.profiles, (10.0, 3.2)),
    "density": (sizes.density, (6.4, 4.0)),
}
NAMES = tuple(FIGURES)
Kind = Literal["svg", "png"]
KINDS: tuple[Kind, ...] = ("svg", "png")


def draw(
    record: Record,
    folder: pathlib.Path,
    names: Sequence[str] = NAMES,
    kinds: Sequence[Kind] = KINDS,
) -> list[pathlib.Path]:
    """The paths of the named figures that the record holds the numbers for, drawn into a folder as
    files of each kind.

    Raises: ValueError for a name that is none of NAMES, or a kind that is none of KINDS.
    """
    for field, given, known in (("names", names, NAMES), ("kinds", kinds, KINDS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{field}: {unknown[0]!r} is none of {', '.join(known)}")
    if not kinds:
        return []
    # matplotlib.figure alone draws to files: no global state, no window system.
    import matplotlib
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    folder.mkdir(parents=True, exist_ok=True)
    values = Values(record)
    out = []
    with matplotlib.rc_context(STYLE):
        for name in names:
            plot, size = FIGURES[name]
            picture = figure.Figure(figsize=size)
            backend_agg.FigureCanvasAgg(picture)
            if not plot(picture, values):
                continue
            for kind in kinds:
                path = folder / f"{name}.{kind}"
                picture.savefig(path, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
                out.append(path)
    return out
