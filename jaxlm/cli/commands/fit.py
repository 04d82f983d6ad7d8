"""`jaxlm fit`: scaling laws of a table of runs, with reasons to distrust them."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import tyro

from jaxlm.core import cache, io
from jaxlm.scaling import figures as drawings  # an option bears the name
from jaxlm.scaling import study_parts, study_record, table
from jaxlm.scaling.extended import pipeline
from jaxlm.scaling.extended.options import Options as Extended
from jaxlm.scaling.planning import experiment_design
from jaxlm.scaling.reading import run_metadata, tables
from jaxlm.scaling.study import analysis, report, report_formats

# File that `--by` writes next to the studies.
BY = "by.json"


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which rows are points, and what their columns are: see `tables.read`."""

    column: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=COLUMN of the file, once for each field that is not found by its usual names: params,
    tokens, flops, loss, loss_se, unique, run."""
    unit: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=UNIT of a column whose header does not say it, such as params=M, tokens=B,
    flops=GFLOP, loss=bits; a number is the value of 1: tokens=524288 of steps."""
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """COLUMN=TEXT, only rows that have that text there; once for each column."""
    best_by: tuple[str, ...] = ()
    """Only the row of lowest loss among those with equal values of these fields or columns, such
    as params tokens."""
    run_columns: tuple[str, ...] = ()
    """Columns that together name a training run, where there is no column run."""
    counting: tuple[str, str] | None = None
    """Counting of N and of C: total, non-embedding, matmul-only or given; and 6ND, 6ND+attention,
    "exact causal" or given."""
    intermediate: bool = False
    """Every evaluation of run directories and curves, not only the last."""
    decaying: bool = False
    """With intermediate: also of run directories whose learning rate decays."""
    drop_repeats: bool = False
    """Keep the first of equal rows, which are refused otherwise."""
    drop_incomplete: bool = False
    """Leave out rows with an empty cell, no number, or a diverged loss."""
    weigh: bool = True
    """Weigh points by the standard errors of their losses, where a column has them."""

    def filters(self) -> dict[str, str]:
        """{column: text} of --where."""
        return _pairs("where", self.where)

    def table(self, runs: pathlib.Path, selected: Mapping[str, str]) -> table.Table:
        """The table of the rows that have the selected texts too. Raises: as `tables.read`."""
        return tables.read(
            runs,
            _pairs("column", self.column),
            None if self.counting is None else table.Counting(*self.counting),
            units=_pairs("unit", self.unit),
            where={**self.filters(), **selected},
            run_columns=self.run_columns,
            best_by=self.best_by,
            intermediate=self.intermediate,
            decaying=self.decaying,
            drop_repeats=self.drop_repeats,
            drop_incomplete=self.drop_incomplete,
            weigh=self.weigh,
        )


def fit(args: Sequence[str]) -> int:
    """jaxlm fit RUNS [--target FLOPS] ..."""

    def command(
        runs: tyro.conf.Positional[pathlib.Path],
        reading: Annotated[Reading, tyro.conf.arg(name="")] = Reading(),
        by: tuple[str, ...] = (),
        next: pathlib.Path | None = None,
        out: pathlib.Path = pathlib.Path("runs/fit"),
        format: report_formats.Format = "text",
        figures: tuple[drawings.Kind, ...] = ("svg",),
        options: Annotated[analysis.Options, tyro.conf.arg(name="")] = analysis.Options(),
        extended: Annotated[Extended, tyro.conf.arg(name="")] = Extended(),
        about: study_record.About = study_record.About(),
    ) -> int:
        """Fit every scaling law that a table of runs identifies; print and record the study.

        Args:
            runs: A file with a row for each run (CSV with any separator, JSON, JSON lines,
                Parquet, an export of Weights & Biases), a folder with a training curve in each
                file, or a directory of run directories.
            by: A study for each value of this column, or of these columns together, in a folder of
                its own.
            next: A file of candidates (N, D, and FLOPs if they are not 6 N D): which of them
                most narrows the optimum at the target, for its cost.
            out: Where study.json and the figures go.
            format: Of the report: text, markdown, or latex (tables with booktabs).
            figures: Kinds of files that each figure is drawn as: svg, png, both, or none.
        """
        cache.programs(0.0)
        columns = _pairs("column", reading.column)
        if _alone(pipeline.alone(runs, extended, columns, options), out):
            return 0
        candidates = None if next is None else experiment_design.read(next)

        def study(
            t: table.Table, how: analysis.Options, folder: pathlib.Path, name: str
        ) -> study_record.Record:
            facts = _about(about, runs, t, reading.intermediate)
            pipeline.check(t, extended)
            record = analysis.run(pipeline.studied(t, extended), how, facts, name, candidates)
            more = pipeline.run(t, extended, record)
            source = dataclasses.replace(record.source, path=str(runs), sha256=_hash(runs))
            record = dataclasses.replace(record, source=source, extended=more)
            return _written(record, folder, format, figures)

        if not by:
            study(reading.table(runs, {}), options, out, runs.name)
            return 0
        parts, failed = {}, {}
        for selected in tables.values(runs, by, reading.filters()):
            text = ", ".join(f"{c}={v}" for c, v in selected.items())
            try:
                parts[text] = reading.table(runs, selected)
            except ValueError as error:
                failed[text] = str(error)
        _each(parts, failed, options, study, out)
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm fit")


def _about(
    about: study_record.About, runs: pathlib.Path, t: table.Table, intermediate: bool
) -> study_record.About:
    """The study's metadata, with what was not stated read from the runs themselves."""
    if about.loss_unit == study_record.About().loss_unit:
        about = dataclasses.replace(about, loss_unit=t.loss_unit)
    return run_metadata.fill(about, runs, intermediate) if runs.is_dir() else about


def _written(
    record: study_record.Record,
    folder: pathlib.Path,
    format: report_formats.Format,
    kinds: Sequence[drawings.Kind],
) -> study_record.Record:
    """The record, printed and written to a folder with its figures."""
    path = study_record.save(folder, record)
    print(report.text(record, format))
    if record.extended:
        print(f"\n{report_formats.verbatim(pipeline.text(record.extended), format)}")
    drawn = drawings.draw(record, folder, kinds=kinds)
    if format == "text":
        print("\nwritten")
        for written in (path, *drawn):
            print(f"  {written}")
    return record


def _each(
    parts: Mapping[str, table.Table],
    failed: Mapping[str, str],
    options: analysis.Options,
    study: Callable[[table.Table, analysis.Options, pathlib.Path, str], study_record.Record],
    out: pathlib.Path,
) -> None:
    """A study of each table, and what they say at one target: printed, and as by.json.

    failed: {value: why there is no table of it}. Without a target it is that of the largest budget.

    Raises: ValueError if no study could be made, with a reason.
    """
    if options.target is None and parts:
        largest = max(float(t.flops.max()) for t in parts.values())
        options = dataclasses.replace(options, target=analysis.AHEAD * largest)
    rows: list[dict[str, Any]] = []
    reasons = dict(failed)
    for text, t in parts.items():
        print(f"\n=== {text}\n")
        folder = out / re.sub(r"[^\w.=-]+", "_", text)
        try:
            record = study(t, options, folder, text)
        except ValueError as error:
            reasons[text] = str(error)
            continue
        best = record.forms[record.law].optimum
        assert isinstance(best, study_parts.Optimum)
        rows.append(
            {
                "of": text,
                "folder": str(folder),
                "law": record.law,
                "points": int(record.points.used.sum()),
                "target": record.options.target,
                "params": best.params,
                "exponent": best.exponent,
                "loss": best.loss,
            }
        )
    for text, reason in reasons.items():
        print(f"\n=== {text}\n\nno study: {reason}")
    if not rows:
        first = next(iter(reasons))
        raise ValueError(f"--by: no study of {len(reasons)}; {first}: {reasons[first]}")
    rows += [{"of": text, "skipped": reason} for text, reason in reasons.items()]
    io.write(out / BY, json.dumps(study_record.plain(rows), indent=1) + "\n")
    print(f"\n{_side_by_side(rows)}\n\nwritten\n  {out / BY}")


def _side_by_side(rows: Sequence[Mapping[str, Any]]) -> str:
    """The studies of `--by` as a table."""
    header = ["", "points", "law", "target", "N*", "interval", "exponent", "loss"]
    lines = []
    for row in rows:
        if "skipped" in row:
            lines.append([row["of"], "-", "no study", *["-"] * 5])
            continue
        ends = row["params"][1]
        lines.append(
            [
                row["of"],
                str(row["points"]),
                row["law"],
                f"{row['target']:.3g}",
                f"{row['params'][0]:.3g}",
                "-" if ends is None else f"{ends[0]:.3g} to {ends[1]:.3g}",
                f"{row['exponent'][0]:.3f}",
                f"{row['loss'][0]:.4f}",
            ]
        )
    return report_formats.table(header, lines)


def _alone(record: dict[str, Any] | None, out: pathlib.Path) -> bool:
    """Print and record an analysis that replaces the study; whether there is one."""
    if record is None:
        return False
    path = pipeline.save(out, record)
    print(f"{pipeline.text(record)}\n\nwritten\n  {path}")
    return True


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    """{name: value} of NAME=VALUE texts. Raises: ValueError naming the flag and the text."""
    out = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ValueError(f"--{flag} {text!r}: NAME=VALUE is needed, such as loss=val_loss")
        if name in out:
            raise ValueError(f"--{flag}: {name!r} is given twice")
        out[name] = value
    return out


def _hash(path: pathlib.Path) -> str:
    """The SHA-256 of a file, or of a directory's result files, or else all its files, by name."""
    if path.is_file():
        return io.sha256(path)
    digest = hashlib.sha256()
    files = list(io.files(path))
    results = [f for f in files if f.name in ("config.json", "result.json", "metrics.jsonl")]
    for file in results or files:
        digest.update(f"{file.relative_to(path)} {io.sha256(file)}\n".encode())
    return digest.hexdigest()
