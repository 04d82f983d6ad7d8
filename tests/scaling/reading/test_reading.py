"""Files of runs as people have them: every format gives the table that a plain CSV gives."""

import gzip
import json

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.core import json_file
from jaxlm.scaling import figures, table
from jaxlm.scaling.laws import bootstrap, fitting, loss_laws, profile
from jaxlm.scaling.reading import tables, units
from jaxlm.scaling.study import analysis, heterogeneity, report
from tests.scaling import public

LAW = loss_laws.LAWS["chinchilla"]
TRUTH = (1.8, 480.0, 2100.0, 0.35, 0.37)
N = np.repeat([1e8, 2e8, 4e8, 8e8], 3)
D = N * np.tile([10.0, 20.0, 60.0], 4)
LOSS = LAW.predict(TRUTH, (N, D))


def text(separator=",", decimal=".", header=("N", "D", "loss"), columns=(N, D, LOSS), end=""):
    rows = [separator.join(f"{v!r}".replace(".", decimal) for v in map(float, r)) + end
            for r in zip(*columns)]  # fmt: skip
    return "\n".join([separator.join(header) + end, *rows]) + "\n"


def records():
    return [dict(zip("NDL", map(float, row))) for row in zip(N, D, LOSS)]


def nested():
    return [{"config": {"n_params": r["N"]}, "tokens": r["D"], "eval": {"loss": r["L"]}}
            for r in records()]  # fmt: skip


# name -> content of a file whose table is N, D, LOSS
FORMATS = {
    "comma": text(),
    "semicolon, decimal comma": text(";", ","),
    "semicolon, decimal point": text(";"),
    "tab": text("\t"),
    "tab, decimal comma": text("\t", ","),
    "bar": text("|"),
    "spaces": text("   "),
    "a separator at the end": text(end=","),
    "numpy's comment": "# " + text(" "),
    "comments": "# runs of May\n\n" + text(),
    "excel's sep=": "sep=;\n" + text(";", ","),
    "byte order mark": "\ufeff" + text(),
    "UTF-16": text().encode("utf-16"),
    "windows' lines": text().replace("\n", "\r\n"),
    "rows of nothing": text() + ",,\n,,\n",
    "gzip": gzip.compress(text().encode()),
    "json lines": "\n".join(map(json.dumps, records())),
    "json array": json.dumps(records()),
    "json in an object": json.dumps({"runs": records(), "made": "May"}),
    "json of columns": json.dumps({"N": list(N), "D": list(D), "loss": list(LOSS)}),
    "pandas' json": json.dumps({k: {str(i): r[k] for i, r in enumerate(records())} for k in "NDL"}),
    "nested json": json.dumps(nested()),
    # units in headers
    "(M)": text(header=("params (M)", "Tokens [B]", "loss"), columns=(N / 1e6, D / 1e9, LOSS)),
    "_m": text(header=("params_m", "tokens_in_billions", "loss"), columns=(N / 1e6, D / 1e9, LOSS)),
    "gflops": text(header=("N", "total_gflops", "loss"), columns=(N, 6 * N * D / 1e9, LOSS)),
    "1e21": text(header=("N", "FLOPs (1E21)", "loss"), columns=(N, 6 * N * D / 1e21, LOSS)),
    "PF-days": text(header=("N", "PF-days", "loss"), columns=(N, 6 * N * D / 8.64e19, LOSS)),
    "compute_pflop_s_days": text(
        header=("N", "compute_pflop_s_days", "loss"), columns=(N, 6 * N * D / 8.64e19, LOSS)
    ),
    "bits": text(header=("N", "D", "loss (bits/token)"), columns=(N, D, LOSS / np.log(2))),
    "perplexity": text(header=("N", "D", "val_ppl"), columns=(N, D, np.exp(LOSS))),
    # units in cells
    "100M": text().replace("00000000.0,", "00M,"),
    "thousands": "N;D;loss\n"
    + "".join(f"{n:,.0f};{d:,.0f};{v!r}\n" for n, d, v in zip(N, D, map(float, LOSS))),  # fmt: skip
    "european": "N;D;loss\n"
    + "".join(
        f"{n:,.0f};{d:,.0f};".replace(",", ".") + f"{v!r}\n".replace(".", ",")
        for n, d, v in zip(N, D, map(float, LOSS))
    ),
    "words": "N,D,loss\n"
    + "".join(
        f"{n / 1e6:g} M params,{d / 1e9:g}B tokens,{v!r} nats\n"
        for n, d, v in zip(N, D, map(float, LOSS))
    ),  # fmt: skip
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_same_table(tmp_path, name):
    file = tmp_path / "runs.dat"  # no ending that would tell
    content = FORMATS[name]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    t = tables.read(file)
    for got, wanted in ((t.params, N), (t.tokens, D), (t.loss, LOSS), (t.flops, 6 * N * D)):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)
    changed = {"(M)", "_m", "gflops", "1e21", "PF-days", "compute_pflop_s_days", "bits"}
    changed |= {"perplexity", "100M", "words", "semicolon, decimal comma", "tab, decimal comma"}
    changed |= {"european"}
    assert bool(t.notes) == (name in changed | {"excel's sep="})  # never in silence


def test_parquet_is_read_where_its_extra_is_there(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ("N", "D", "L")
    parquet.write_table(
        pa.table({k: [r[k] for r in records()] for k in names}), tmp_path / "runs.parquet"
    )
    t = tables.read(tmp_path / "runs.parquet")
    assert t.params.tolist() == list(N) and t.loss.tolist() == list(LOSS)
    assert t.row.tolist() == list(range(1, 13))


@pytest.mark.parametrize(
    ("field", "name", "factor"),
    [
        ("params", "B", 1e9),
        ("params", "million", 1e6),
        ("tokens", "B tokens", 1e9),
        ("tokens", "524288", 524288),
        ("tokens", "10^9", 1e9),
        ("flops", "PF-days", 1e15 * 86400),
        ("flops", "EFLOP", 1e18),
        ("flops", "petaflop/s-days", 1e15 * 86400),
        ("flops", "zettaFLOPs", 1e21),
        ("loss", "bits per byte", np.log(2)),
        ("params", "active", None),
        ("flops", "tokens", None),
        ("loss", "B", None),
    ],
)
def test_units(field, name, factor):
    unit = units.unit(field, name)
    assert unit is None if factor is None else unit.factor == pytest.approx(factor)


def test_bits_per_byte_are_nats_per_byte(tmp_path):
    file = tmp_path / "runs.csv"
    file.write_text(text(header=("N", "D", "val_bpb"), columns=(N, D, LOSS / 3)))
    t = tables.read(file)
    np.testing.assert_allclose(t.loss, LOSS / 3 * np.log(2))
    assert t.loss_unit == "nats per byte" and "taken as nats per byte" in t.notes[0]


def test_stated_units_mend_what_is_refused(tmp_path):
    """Millions and GFLOPs were fitted as they were, in silence."""
    file = tmp_path / "runs.csv"
    file.write_text(text(columns=(N / 1e6, D / 1e9, LOSS)))
    t = tables.read(file, units={"params": "M", "tokens": "B"})
    np.testing.assert_allclose(t.params, N)
    np.testing.assert_allclose(t.tokens, D)
    file.write_text(text(columns=(N, D, np.exp(LOSS))))
    np.testing.assert_allclose(tables.read(file, units={"loss": "perplexity"}).loss, LOSS)
    small = (N / 1e6, D / 1e6, LOSS)
    file.write_text(text(columns=small))
    assert tables.read(file, units={"params": "1", "tokens": "1"}).params.tolist() == list(N / 1e6)


def test_a_folder_of_curves_is_a_run_each(tmp_path):
    for name, n, d, loss in (("a", 1e8, 1e9, 3.4), ("b", 2e8, 4e9, 3.0)):
        rows = [f"{n},{d * f},{loss + 1 - f}" for f in (0.25, 0.5, 1.0)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["N,tokens,loss", *rows, f"{n},{d},"]))
    t = tables.read(tmp_path)
    assert t.run.tolist() == ["a", "b"] and t.loss == pytest.approx([3.4, 3.0])
    assert "the last point of each of 2 training curves" in " ".join(t.notes)
    t = tables.read(tmp_path, intermediate=True)
    assert t.run.tolist() == ["a"] * 3 + ["b"] * 3 and len(set(t.row)) == 6
    assert bootstrap.method("auto", t) == "case"  # of two runs nothing can be drawn
    lengths = np.concatenate([D / 2, D])
    many = table.make(np.tile(N, 2), lengths, np.tile(LOSS, 2), run=np.tile(np.arange(12), 2))
    assert bootstrap.method("auto", many) == "cluster"
    assert bootstrap.method("case", many) == "case"


def test_exported_charts_and_tables_of_runs(tmp_path):
    """Weights & Biases writes a chart as a column for each run with its range, and a table of runs
    with those that crashed."""
    chart = tmp_path / "chart.csv"
    runs = ("llama-100M - val/loss", "llama-200M - val/loss")
    header = ["Step", *(r + end for r in runs for end in ("", "__MIN", "__MAX"))]
    lines = [[0, "", "", "", 9, 9, 9], [1000, 3.5, 3.5, 3.5, 3.3, 3.3, 3.3]]
    lines += [[2000, 3.2, 3.2, 3.2, "", "", ""]]
    chart.write_text("\n".join(",".join(map(str, row)) for row in [header, *lines]))
    t = tables.read(chart, {"tokens": "Step"}, units={"tokens": "524288"})
    assert t.run.tolist() == ["llama-100M", "llama-200M"]
    assert t.params.tolist() == [1e8, 2e8] and t.loss.tolist() == [3.2, 3.3]
    assert t.tokens.tolist() == [2000 * 524288, 1000 * 524288]
    assert "6 columns" not in t.notes[0] and "4 columns of ranges" in t.notes[0]
    export = tmp_path / "export.csv"
    export.write_text(
        "Name,State,Runtime,config.n_params,tokens_seen,train/loss,val/loss\n"
        '"a",finished,10,100000000,1e9,3.6,3.5\n"b",crashed,2,100000000,1e8,,\n'
        '"c",finished,9,200000000,1e9,3.5,3.3\n'
    )
    t = tables.read(export)
    assert t.run.tolist() == ["a", "c"] and t.loss.tolist() == [3.5, 3.3]
    assert t.left_out == ("b: its state is crashed",)
    assert t.columns["train/loss"].tolist() == [3.6, 3.5]


def test_rows_chosen(tmp_path):
    file = tmp_path / "runs.csv"
    file.write_text(
        "N,D,lr,seed,loss\n1e8,1e9,1e-3,1,3.5\n1e8,1e9,3e-3,1,3.4\n1e8,1e9,1e-2,1,nan\n"
        "2e8,1e9,1e-3,1,3.3\n2e8,1e9,3e-3,1,40\n2e8,2e9,3e-3,1,\n"
    )
    t = tables.read(file, drop_incomplete=True)
    assert t.row.tolist() == [2, 3, 5]
    assert "3 of 6 rows are incomplete: row 4, column 'loss'" in t.left_out[0]
    assert "it diverged" in t.left_out[0]
    t = tables.read(file, drop_incomplete=True, best_by=("params", "tokens"))
    assert t.row.tolist() == [3, 5] and "1 of 3 rows" in t.left_out[1]
    t = tables.read(file, drop_incomplete=True, run_columns=("N", "lr"), where={"lr": "0.001"})
    assert t.run.tolist() == ["N=1e8, lr=1e-3", "N=2e8, lr=1e-3"]


def test_runs_that_differ_in_a_hyper_parameter_are_no_repeats(tmp_path):
    """Losses with four digits coincide in a sweep of learning rates."""
    file = tmp_path / "runs.csv"
    rows = ["N,D,lr,loss", *(f"{n},1e9,{lr},3.5" for n in (1e8, 2e8) for lr in (1e-3, 3e-3))]
    file.write_text("\n".join([*rows, "4e8,1e9,1e-3,3.2"]))
    assert len(tables.read(file).loss) == 5
    file.write_text("\n".join([*rows, rows[-1]]))
    with pytest.raises(ValueError, match="row 6 .* repeats row 5 .* --drop-repeats"):
        tables.read(file)


def test_standard_errors_are_weights(tmp_path):
    """A fit with weights 1/se^2 is the fit of a table that repeats the surer points."""
    noise = np.exp(np.random.default_rng(0).normal(0, 0.003, 12))
    loss, se = LOSS * noise, np.where(np.arange(12) % 2, 1.0, 2**-0.5) * LOSS * noise * 0.003
    file = tmp_path / "runs.csv"
    header = ("N", "D", "loss", "loss_stderr")
    file.write_text(text(header=header, columns=(N, D, loss, se)))
    t = tables.read(file)
    np.testing.assert_allclose(t.weight, np.where(np.arange(12) % 2, 2 / 3, 4 / 3))
    assert "worth 10.8 of 12" in t.notes[0]
    twice = np.repeat(np.arange(12), np.where(np.arange(12) % 2, 1, 2))
    plain = table.make(N, D, loss)
    wanted = fitting.values(fitting.fit(LAW, table.take(plain, twice)))
    fitted = fitting.fit(LAW, t)
    np.testing.assert_allclose(fitting.values(fitted), wanted, rtol=1e-5)
    # a replicate that draws every point once is the fit itself
    again = bootstrap.cases(LAW, t, fitted, 1, 0, np.arange(12)[None])
    np.testing.assert_allclose(again.theta[0], fitting.values(fitted), rtol=1e-5)
    assert tables.read(file, weigh=False).weight is None
    part = table.take(t, np.arange(3))
    assert part.weight.tolist() == t.weight[:3].tolist()


def test_exact_flops_are_one_number_for_each_size(tmp_path):
    """C/(N D) that falls with N was refused as mixed conventions."""
    file, per = tmp_path / "runs.csv", 6 * (1 + 3e3 / np.sqrt(N))
    file.write_text(text(header=("N", "D", "C", "loss"), columns=(N, D, per * N * D, LOSS)))
    t = tables.read(file)
    assert t.counting.flops == "given" and "one number for each N" in t.notes[0]
    usual = float(np.median(per))
    (notice,) = heterogeneity.cost(t, usual, 1e10)
    assert f"{per.min():.3g} N D, the largest" in notice.text
    assert f"buys {usual / per.min() - 1:.0%} more tokens" in notice.text
    assert heterogeneity.cost(t, float(per.min()), 1e10) == []


# -- the command


def test_a_study_of_each_value(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda record, out, kinds: ())  # most of the time
    file = tmp_path / "runs.csv"
    rows = ["N,D,loss,data set"]
    for name, shift in (("c4", 0.0), ("rp/j", 0.3)):
        rows += [f"{n},{d},{v + shift!r},{name}" for n, d, v in zip(N, D, map(float, LOSS))]
    file.write_text("\n".join([*rows, "1e8,1e9,3.0,few", "2e8,1e9,2.9,few"]))
    args = ["--laws", "chinchilla", "--replicates", "20", "--target", "1e20"]
    out = tmp_path / "out"
    assert main.main(["fit", str(file), "--by", "data set", *args, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "=== data set=c4" in shown and "no study: " in shown
    (side,) = [line for line in shown.splitlines() if line.startswith("  data set=rp/j ")]
    assert "12  chinchilla" in side
    c4, rpj, few = json_file.read(out / "by.json")
    assert rpj["loss"][0] - c4["loss"][0] == pytest.approx(0.3, abs=1e-4)
    assert c4["params"][0] == pytest.approx(rpj["params"][0], rel=1e-3)
    assert "skipped" in few and (out / "data_set=rp_j" / "study.json").is_file()


def test_values_that_a_coefficient_cannot_take_are_not_profiled():
    """Eight runs at one ratio gave an interval of B from 0, and "B cannot be -2210"."""
    grid = np.array([-2210.0, 0.0, 10.0])
    assert profile.possible(LAW, "B", grid).tolist() == [False, False, True]
    assert profile.possible(LAW, "alpha", grid - 1).tolist() == [True, True, True]


# -- the cases that were accepted, or ended with a traceback


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("f3_constant_loss_traceback", "", ["column 'loss': all 24 losses are 2.5"]),
        ("f3_loss_rises_traceback", "", ["the loss rises with N"]),
        ("f6_N_in_millions_silent", "", ["--unit params=M"]),
        ("f6_C_in_gflops_silent", "", ["--unit flops=GFLOP"]),
        ("f8_loss_rises_with_N", "", ["the loss rises with N"]),
        ("f9_one_N_times_1e6", "", ["row 7, columns 'N' and 'D'"]),
    ],
)
def test_cases_that_are_refused(name, flags, words):
    with pytest.raises(ValueError) as error:
        tables.read(public.case(name))
    for word in words:
        assert word in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("f4_eight_runs_B_cannot_be", ["8 points"]),
        ("f10_five_points_zero_width", ["5 points for 5 parameters: no residual is left"]),
    ],
)
def test_cases_that_are_fitted(name, words):
    options = analysis.Options(laws=("chinchilla", "tied"), replicates=20)
    shown = report.text(analysis.run(tables.read(public.case(name)), options))
    assert all(word in shown for word in words)


def test_exact_flops_of_three_sizes_are_read():
    t = tables.read(public.case("f14_exact_flops_per_size"))
    assert t.notes == ("C is 7.9 to 10 N D, one number for each N: exact counts, taken as given",)


def test_public_files_are_read_with_the_flags_that_errors_name():
    for name, columns, more, count in (
        ("gadre_overtraining_runs.csv", {"loss": "loss_c4_val"}, {}, 104),
        ("porian_rw_isoflop_points.csv", {}, {"where": {"param_count": "kaplan"}}, 211),
        ("porian_rw_optima.csv", {"params": "n_star", "loss": "loss_star"},
         {"where": {"param_count": "kaplan"}}, 22),
        ("scalebench_farseer_train_404.csv", {}, {"drop_repeats": True}, 400),
        ("scalebench_lr_bsz_train.csv", {}, {"best_by": ("params", "tokens")}, 41),
        ("scalebench_data_constrained_train.csv", {}, {}, 161),
        ("scalebench_sparsity_train.csv", {"params": "N_active", "tokens": "D2"},
         {"units": {"params": "B", "tokens": "B"}}, 70),
        ("routing_dense_curves.csv",
         {"params": "dense_parameter_count", "tokens": "step", "loss": "loss_c4"},
         {"units": {"tokens": "524288"}, "run_columns": ["hyper_id"], "drop_incomplete": True},
         325),
    ):  # fmt: skip
        assert len(tables.read(public.path(name), columns, **more).loss) == count


def test_a_training_run_has_one_size(tmp_path):
    """`run` numbered the repetitions, and three clusters of all sizes would be resampled."""
    file = tmp_path / "runs.csv"
    rows = [f"{r},{n},{n * 20},{3.5 - n / 1e9}" for n in (1e8, 2e8) for r in (0, 1)]
    file.write_text("\n".join(["run,N,D,loss", *rows]))
    t = tables.read(file, drop_repeats=True)
    assert t.run.tolist() == ["0, N=1e+08", "0, N=2e+08"]
    assert "runs by their N" in t.notes[0]
    assert bootstrap.method("auto", t) == "case"


@pytest.mark.parametrize("loss", [LOSS * 0 + 2.5, 2 + N / 1e9])
def test_arrays_of_no_law_are_refused_too(loss):
    """`analysis.run` ended with a traceback: the form's optimum was at no size."""
    with pytest.raises(ValueError, match="row 1.*column 'loss'"):
        analysis.run(table.make(N, D, loss), analysis.Options(replicates=20))


def test_a_file_that_is_not_there(tmp_path, capsys):
    """One sentence, where the operating system's own was printed: [Errno 2]."""
    assert main.main(["fit", str(tmp_path / "runs.csv")]) != 0
    error = capsys.readouterr().err
    assert "runs.csv is not there: a table with a row for each run" in error
    assert "Errno" not in error
