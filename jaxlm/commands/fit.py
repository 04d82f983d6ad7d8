"""`jaxlm fit`: scaling laws of a table of runs, with what keeps one from trusting them."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxlm.core import io
from jaxlm.scaling import analysis, choose, figures, study, summary, table, told
from jaxlm.scaling.extended import pipeline
from jaxlm.scaling.extended.options import Options as Extended


def fit(args: Sequence[str]) -> int:
    """jaxlm fit RUNS [--target FLOPS] ..."""

    def command(
        runs: tyro.conf.Positional[pathlib.Path],
        column: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        where: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        counting: tuple[str, str] | None = None,
        intermediate: bool = False,
        decaying: bool = False,
        drop_repeats: bool = False,
        next: pathlib.Path | None = None,
        out: pathlib.Path = pathlib.Path("runs/fit"),
        options: Annotated[analysis.Options, tyro.conf.arg(name="")] = analysis.Options(),
        extended: Annotated[Extended, tyro.conf.arg(name="")] = Extended(),
        about: study.About = study.About(),
    ) -> int:
        """Fit every scaling law that a table of runs identifies; print and record the study.

        Args:
            runs: A CSV file with a row for each run, or a directory of run directories.
            column: FIELD=COLUMN of the file, once for each field that is not found by its usual
                names: params, tokens, flops, loss, unique, run.
            where: COLUMN=TEXT, only rows that have that text there; once for each column.
            counting: What N and C count: total, non-embedding, matmul-only or given; and 6ND,
                6ND+attention, "exact causal" or given.
            intermediate: Of run directories: every evaluation, not only the last.
            decaying: With intermediate: also of runs whose learning rate decays.
            drop_repeats: Keep the first of equal rows, which are refused otherwise.
            next: A CSV file of candidates (N, D, and FLOPs if they are not 6 N D): which of them
                most narrows the optimum at the target, for its cost.
            out: Where study.json and the figures go.
        """
        if _alone(pipeline.alone(runs, extended, _pairs("column", column), options), out):
            return 0
        found = table.read(
            runs,
            _pairs("column", column),
            None if counting is None else table.Counting(*counting),
            where=_pairs("where", where),
            intermediate=intermediate,
            decaying=decaying,
            drop_repeats=drop_repeats,
        )
        about = told.fill(about, runs, intermediate) if runs.is_dir() else about
        candidates = None if next is None else choose.read(next)
        pipeline.check(found, extended)
        record = analysis.run(found, options, about, runs.name, candidates)
        record["source"] |= {"path": str(runs), "sha256": _hash(runs)}
        record["extended"] = pipeline.run(found, extended, record)
        path = study.save(out, record)
        print(summary.text(record))
        if record["extended"]:
            print(f"\n{pipeline.text(record['extended'])}")
        print("\nwritten")
        for written in (path, *figures.draw(record, out)):
            print(f"  {written}")
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm fit")


def _alone(record: study.Record | None, out: pathlib.Path) -> bool:
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
    """The SHA-256 of a file, or of a directory's result files by name."""
    if path.is_file():
        return io.sha256(path)
    digest = hashlib.sha256()
    for file in io.files(path):
        if file.name in ("config.json", "result.json", "metrics.jsonl"):
            digest.update(f"{file.relative_to(path)} {io.sha256(file)}\n".encode())
    return digest.hexdigest()
