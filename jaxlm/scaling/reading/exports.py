"""Tables as Weights & Biases exports them, as rows of runs.

a chart's export   Step, `llama-125M - val/loss`, `llama-125M - val/loss__MIN`, ...__MAX, ...:
                   a row for each run and step
the table of runs  Name, State, ..., a column for each number of config and summary: rows of
                   unfinished runs are left out
"""

import re
from collections.abc import Mapping

from jaxlm.scaling.reading import columns, grid

# Ends of the companions of a chart's columns: the range of what was averaged to one pixel.
COMPANIONS = ("__MIN", "__MAX")
BETWEEN = " - "
STATES = {
    "finished",
    "crashed",
    "failed",
    "killed",
    "running",
    "preempted",
    "preempting",
    "pending",
}
# 125M in a run's name.
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:[._]\d+)?)([KMBkmb])(?![A-Za-z0-9])")


def read(sheet: grid.Grid) -> grid.Grid:
    """The grid of an export as a row for each point; another grid as it is."""
    return _runs(_chart(sheet))


def _chart(sheet: grid.Grid) -> grid.Grid:
    """A chart's columns `run - metric` as the columns run and metric."""
    kept = [h for h in sheet.header if not h.endswith(COMPANIONS)]
    split = {h: tuple(h.rsplit(BETWEEN, 1)) for h in kept if BETWEEN in h}
    companions = len(sheet.header) - len(kept)
    # a name with a dash is none of a chart's: all but the axis are split, or have companions
    if not split or not companions and len(split) < len(kept) - 1:
        return sheet
    shared = [h for h in kept if h not in split]
    runs = list(dict.fromkeys(run for run, _ in split.values()))
    metrics = list(dict.fromkeys(metric for _, metric in split.values()))
    at = {h: sheet.header.index(h) for h in kept}
    header = [*shared, *metrics, "run"]
    rows = []
    for run in runs:
        of_run = {metric: h for h, (name, metric) in split.items() if name == run}
        for row in sheet.rows:
            cells = [row.cells[at[of_run[m]]] if m in of_run else "" for m in metrics]
            if any(cells):
                rows.append(row._replace(cells=[*(row.cells[at[h]] for h in shared), *cells, run]))
    dropped = f", without {companions} columns of ranges" if companions else ""
    note = f"a chart's export: {len(runs)} runs, {', '.join(metrics)}{dropped}"
    return sheet._replace(header=header, rows=rows, notes=(*sheet.notes, note), curves=True)


def _runs(sheet: grid.Grid) -> grid.Grid:
    """A table of runs without those that are not finished, its names as the column `run`."""
    header = [h.lower() for h in sheet.header]
    if "state" not in header or not {"name", "id"} & set(header):
        return sheet
    states = [c.lower() for c in sheet.column(sheet.header[header.index("state")])]
    if not set(states) <= STATES:
        return sheet
    name = header.index("name") if "name" in header else header.index("id")
    left = [
        f"{row.cells[name] or row.place}: its state is {state}"
        for row, state in zip(sheet.rows, states)
        if state != "finished"
    ]
    rows = [row for row, state in zip(sheet.rows, states) if state == "finished"]
    if not rows:
        raise ValueError(
            f"{sheet.path}, column {sheet.header[header.index('state')]!r}: none of "
            f"{len(states)} runs is finished: {', '.join(left[:3])}"
        )
    names = [row.cells[name] for row in rows]
    if "run" not in header and len(set(names)) == len(names):
        rows = [row._replace(cells=[*row.cells, row.cells[name]]) for row in rows]
        sheet = sheet._replace(header=[*sheet.header, "run"])
    note = f"a table of runs: {len(rows)} of {len(states)} are finished"
    return sheet._replace(rows=rows, notes=(*sheet.notes, note), left_out=(*sheet.left_out, *left))


def sizes(sheet: grid.Grid, named: Mapping[str, str]) -> grid.Grid:
    """A grid without a column for parameters, with one from sizes in its runs' names: 125M.

    Only of training curves, whose runs' names all have one. named: fields whose columns are named.
    """
    if not sheet.curves or "params" in named:
        return sheet
    try:
        columns.resolve(sheet, named, {})
        return sheet
    except ValueError:
        pass
    sized = [_SIZE.findall(name) for name in sheet.column("run")]
    if not sized or any(len(s) != 1 for s in sized):
        return sheet
    rows = [
        row._replace(cells=[*row.cells, f"{number.replace('_', '.')}{unit.upper()}"])
        for row, [(number, unit)] in zip(sheet.rows, sized)
    ]
    note = "parameters are those in the runs' names, such as " + rows[0].cells[-1]
    return sheet._replace(header=[*sheet.header, "params"], rows=rows, notes=(*sheet.notes, note))
