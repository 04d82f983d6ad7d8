"""A study's figures from its record, each as PNG and SVG.

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
from typing import Any

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


def draw(record: Record, folder: pathlib.Path, names: Sequence[str] = NAMES) -> list[pathlib.Path]:
    """The paths of the named figures that the record holds the numbers for, drawn into a folder.

    Raises: ValueError for a name that is none of NAMES.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise ValueError(f"names: {unknown[0]!r} is none of {', '.join(NAMES)}")
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
            for ending, facts in (("png", None), ("svg", {"Date": None})):
                path = folder / f"{name}.{ending}"
                picture.savefig(path, dpi=DPI, metadata=facts)
                out.append(path)
    return out
