"""Files that are no study, through `jaxlm fit`: one sentence with row, column and flag for each.

Nothing is computed from them: no traceback, nothing printed as a result, nothing written.
"""

import json

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.scaling.laws import loss_laws

LAW = loss_laws.LAWS["chinchilla"]
TRUTH = (1.8, 480.0, 2100.0, 0.35, 0.37)
# 12 runs: 4 sizes of 3 lengths
N = np.repeat([1e8, 2e8, 4e8, 8e8], 3)
D = N * np.tile([10.0, 20.0, 60.0], 4)
LOSS = np.round(LAW.predict(TRUTH, (N, D)), 5)


def rows(**columns):
    """A CSV of the 12 runs; columns replace N, D, loss or are added, None leaves one out."""
    table = {"N": N, "D": D, "loss": LOSS} | columns
    table = {k: list(v) for k, v in table.items() if v is not None}
    lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values()))]
    return "\n".join(lines) + "\n"


def at(values, i, value):
    """The values with the i-th replaced: line i + 2 of the file."""
    return [*values[:i], value, *values[i + 1 :]]


def objects(**columns):
    table = {"N": N, "D": D, "loss": LOSS} | columns
    return [dict(zip(table, map(float, row))) for row in zip(*table.values())]


def lines_of(records):
    return "\n".join(r if isinstance(r, str) else json.dumps(r) for r in records)


PER = np.repeat([6.0, 6.0, 8.0, 8.0], 3)
# name -> (content, words of the error, further arguments)
BAD = {
    # -- no table
    "empty": ("", ["is empty", "a header and a row for each run"]),
    "blank": ("\n \n", ["is empty"]),
    "header only": ("N,D,loss\n", ["is empty", "has a header"]),
    "one row": ("N,D,loss\n1e8,2e9,3\n", ["1 point; a law needs several"]),
    "one column": ("loss\n3.1\n3.0\n", ["no column for params", "--column params=COLUMN"]),
    "latin-1": (b"N,D,loss\n1e8,2e9,3\n1e8,4e9,2.9 \xb1 .1\n", ["row 3", "0xb1 is not UTF-8"]),
    "binary": (bytes(range(256)) * 4, ["is binary", "CSV, JSON or Parquet"]),
    "spreadsheet": (b"PK\x03\x04" + bytes(99), ["a spreadsheet or an archive", "as CSV"]),
    "damaged gzip": (b"\x1f\x8b\x08\x00" + bytes(20), ["is damaged"]),
    "damaged parquet": (b"PAR1" + bytes(40) + b"PAR1", ["is a damaged Parquet file"]),
    "json no table": ("[1, 2, 3]", ["row 1: a JSON int", "an object with a name"]),
    "json cut off": ('[{"N": 1e8, "D": 2e9,', ["is no JSON"]),
    "jsonl bad line": (lines_of([*objects()[:3], "{N: 1}"]), ["row 4 is no JSON"]),
    "jsonl missing key": (
        lines_of([*objects()[:5], {"N": 1e8, "D": 3e9}]),
        ["row 6, column 'loss'", "the cell is empty", "--drop-incomplete"],
    ),
    "nested without sizes": (
        json.dumps([{"model": {"width": 64}, "eval": {"loss": 3.0}}] * 2),
        ["no column for params", "'model.width'", "--column params="],
    ),
    "page": ("<html><body>404</body></html>", ["a page of HTML or XML"]),
    # -- header
    "numbers for names": ("1e8 2e9 3.1\n2e8 4e9 3.0\n", ["row 1: 1e8, 2e9, 3.1 are numbers"]),
    "one column for two": (
        rows(),
        ["--column: 'N' is named for params and tokens"],
        "--column params=N --column tokens=N",
    ),
    "unit of nothing": (rows(), ["--unit flops=EFLOP", "no column"], "--unit flops=EFLOP"),
    "doubled header": ("N,D,loss,loss\n1e8,2e9,3,3\n", ["the header has ['loss'] twice"]),
    "two losses": (
        rows(val_loss=LOSS),
        ["columns ['loss', 'val_loss'] may all be loss", "--column loss=val_loss"],
    ),
    "no loss": (rows(loss=None, loss_c4=LOSS), ["no column for loss", "--column loss=loss_c4"]),
    "no tokens": (
        rows(D=None, n_samples=D / 1024),
        ["no column for tokens", "--column tokens=COLUMN", "'n_samples'"],
    ),
    "asked column": (rows(), ["no column 'Loss'", "nearest: 'loss'"], "--column loss=Loss"),
    "asked field": (rows(), ["no field 'lr'", "params, tokens"], "--column lr=N"),
    "asked unit": (rows(), ["--unit params=feet", "no unit of params"], "--unit params=feet"),
    "asked pair": (rows(), ["--where 'N'", "NAME=VALUE"], "--where N"),
    "asked rows": (rows(), ["no row has N = '3'", "--where"], "--where N=3"),
    "asked best": (rows(), ["--best-by lr", "no field and no column"], "--best-by lr"),
    "asked runs": (rows(), ["--run-columns", "no column 'seed'"], "--run-columns seed"),
    "asked by": (rows(), ["--by", "no column 'data'"], "--by data"),
    # -- cells
    "ragged": (rows().replace("\n1", "\n7,1", 1), ["row 2: 4 cells, the header has 3"]),
    "word": (
        rows(N=at(N, 2, "big")),
        ["row 4, column 'N'", "'big' is no number", "--drop-incomplete"],
    ),
    "empty cell": (rows(loss=at(LOSS, 2, "")), ["row 4, column 'loss'", "--drop-incomplete"]),
    "nan": (rows(loss=at(LOSS, 5, "nan")), ["row 7, column 'loss'", "nan", "--drop-incomplete"]),
    "inf": (rows(loss=at(LOSS, 5, "inf")), ["row 7, column 'loss'", "inf", "--drop-incomplete"]),
    "too large": (rows(N=at(N, 1, "1e999M")), ["row 3, column 'N'", "a finite number is needed"]),
    "negative": (rows(loss=at(LOSS, 0, -3)), ["row 2, column 'loss'", "'-3'; a number above 0"]),
    "zero": (rows(D=at(D, 0, 0)), ["row 2, column 'D'", "'0'; a number above 0"]),
    "percent": (rows(loss=at(LOSS, 1, "31%")), ["row 3, column 'loss'", "is a percentage"]),
    "date": (rows(D=at(D, 1, "2024-05-01")), ["row 3, column 'D'", "is no number"]),
    "unknown unit": (rows(N=at(N, 1, "7 apples")), ["row 3, column 'N'", "'apples' is no unit"]),
    "7B among numbers": (
        rows(N=["100M", 0.1, "0.1B", *N[3:]]),
        ["row 3, column 'N'", "'0.1' without a unit", "row 2 has 'M'"],
    ),
    "two units": (
        rows(N=None, **{"params (M)": at(N / 1e6, 4, "0.2B")}),
        ["row 6, column 'params (M)'", "'B'", "'M'"],
    ),
    "mixed decimals": (
        "N;D;loss\n1e8;1e9;3,54\n1e8;2e9;3,29\n2e8;4e9;3,123\n4e8;8e9;2.912\n",
        ["row 5, column 'loss'", "a decimal point, where other cells have commas"],
    ),
    "odd thousands": (
        rows(N=at(N, 3, '"2,00,000,000"')),
        ["row 5, column 'N'", "its comma is no thousands separator"],
    ),
    # -- units
    "N in millions": (
        rows(N=N / 1e6),
        ["row 2, column 'N'", "100 parameters, below 1000", "--unit params=M"],
    ),
    "D in billions": (
        rows(D=D / 1e9),
        ["row 2, column 'D'", "1 tokens, below 1000", "--unit tokens=B"],
    ),
    "C in GFLOP": (
        rows(C=6 * N * D / 1e9),
        ["row 2, column 'C'", "6e-09 N D, outside 2 to 40", "--unit flops=GFLOP"],
    ),
    "one N mistyped": (
        rows(N=at(N, 7, N[7] * 1e6)),
        ["row 9, columns 'N' and 'D'", "2e-05 each", "correct the row"],
    ),
    "exchanged": (
        rows(N=D, D=N / 10),
        ["columns 'N' and 'D'", "are they exchanged", "--column params=D --column tokens=N"],
    ),
    "perplexity": (
        rows(loss=np.exp(LOSS)),
        ["row 2, column 'loss'", "--unit loss=perplexity"],
    ),
    "diverged": (
        rows(loss=at(LOSS, 9, 87.3)),
        ["row 11, column 'loss'", "87.3 nats", "a run that diverged", "--drop-incomplete"],
    ),
    # -- what no law of N and D describes
    "all equal": (
        rows(loss=LOSS * 0 + 2.5),
        ["row 2 and all others, column 'loss'", "12 losses are 2.5"],
    ),
    "accuracy": (
        rows(loss=1 - LOSS / 5),
        ["column 'loss'", "the loss rises with", "--column loss=COLUMN"],
    ),
    "rises": (rows(loss=2 + N / 1e9), ["row 11, column 'loss'", "the loss rises with N"]),
    "one N": (rows(N=N * 0 + 1e8), ["1 different params; 3 are needed"]),
    "one D": (rows(D=D * 0 + 1e10), ["1 different tokens; 3 are needed"]),
    "one budget": (rows(D=1e18 / N), ["column flops: one budget", "rows 2 to 13"]),
    # -- conventions
    "mixed countings": (
        rows(counting=["total"] * 6 + ["non-embedding"] * 6),
        ["row 8, column 'counting'", "--where counting=non-embedding", "--by counting"],
    ),
    "C does not match": (
        rows(C=at(6 * N * D, 4, 9 * N[4] * D[4])),
        ["row 6, column 'C'", "9 N D, of most rows 6 N D", "--counting"],
    ),
    "unknown counting": (rows(), ["'all' is none of total"], "--counting all 6ND"),
    "run twice": (
        rows(run=["a", "a", *"bcdefghijk"], D=at(D, 1, D[0])),
        ["row 3, column 'run'", "'a'", "in row 2 too", "--run-columns"],
    ),
    "same row twice": (
        rows() + rows().splitlines()[-1] + "\n",
        ["row 14", "repeats row 13", "--drop-repeats"],
    ),
    "unique above tokens": (
        rows(unique_tokens=D * 2),
        ["row 2, column 'unique_tokens'", "unique tokens of"],
    ),
    "standard error of 0": (rows(loss_se=LOSS * 0), ["row 2, column 'loss_se'", "above 0"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_sentence(tmp_path, capsys, name):
    content, words, *more = BAD[name]
    file = tmp_path / "runs.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(tmp_path, capsys, file, words, more) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ["holds no run directory", "no table"]),
        (["a.csv", "b.csv"], ["b.csv", "['loss'] is in one alone"]),
    ],
)
def test_a_bad_folder_is_a_sentence(tmp_path, capsys, names, words):
    folder = tmp_path / "runs"
    folder.mkdir()
    for name, text in zip(names, (rows(), rows(loss=None))):
        (folder / name).write_text(text)
    refused(tmp_path, capsys, folder, words, [])


def refused(folder, capsys, file, words, more):
    out = folder / "out"
    flags = [word for text in more for word in text.split()]
    args = ["--laws", "chinchilla", "--replicates", "20", "--out", str(out)]
    assert main.main(["fit", str(file), *args, *flags]) == 2
    printed = capsys.readouterr()
    for word in words:
        assert word in printed.err, printed.err
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert printed.out == "" and not out.exists()


def test_rows_of_two_files_are_named_by_their_files(tmp_path, capsys):
    folder = tmp_path / "runs"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.csv").write_text("N,D,loss\n1e8,2e9,3.1\n")
    refused(tmp_path, capsys, folder, ["b.csv row 2 (b) repeats ", "a.csv row 2 (a)"], [])
    (folder / "b.csv").write_text("N,D,loss\n1e8,2e9,\n1e8,4e9,big\n")
    refused(tmp_path, capsys, folder, ["b.csv row 3, column 'loss'", "'big' is no number"], [])
