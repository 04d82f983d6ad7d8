"""Runs as points of a law: what is read, what is derived, and every input that is refused."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlm.core import config
from jaxlm.data.pretraining import Data
from jaxlm.models import deepseek, gpt, llama
from jaxlm.scaling import table
from jaxlm.scaling.cost import conventions, flops
from jaxlm.scaling.reading import tables
from jaxlm.scaling.table import Counting
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run import directory
from jaxlm.train.run.run import Run
from tests.scaling import public

GOOD = "N,D,C,loss\n1e6,2e7,1.2e14,4.0\n2e6,2e7,2.4e14,3.8\n"


def write(folder, text):
    path = folder / "runs.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "params,tokens,val_loss\n1e6,2e7,4.0\n2e6,2e7,3.8\n",
        "Model Size,Training FLOP,loss\n1e6,1.2e14,4.0\n2e6,2.4e14,3.8\n",
        "\ufeffFLOPs, Tokens ,nll\n1.2e14,2e7,4.0\n2.4e14,2e7,3.8\n",
    ],
)
def test_two_of_three_make_the_third(tmp_path, text):
    t = tables.read(write(tmp_path, text))
    np.testing.assert_allclose(t.params, [1e6, 2e6])
    np.testing.assert_allclose(t.tokens, [2e7, 2e7])
    np.testing.assert_allclose(t.flops, [1.2e14, 2.4e14])
    assert t.loss.tolist() == [4.0, 3.8]
    assert t.counting == Counting("given", "6ND")
    assert t.row.tolist() == [2, 3]
    assert t.unique is None and len(set(t.run)) == 2


# what is wrong -> (file, words that the error has)
BAD = {
    "no loss": ("N,D,C\n1,2,12\n", ["no column for loss"]),
    "no tokens": ("N,loss\n1,2\n", ["no column for tokens", "['params']"]),
    "which loss": ("N,D,loss,nll\n1,2,3,4\n", ["['loss', 'nll'] may all be loss"]),
    "word": (GOOD + "x,2e7,2,3.0\n", ["row 4, column 'N'", "'x' is no number"]),
    "empty cell": (GOOD + ",2e7,2,3.0\n", ["row 4, column 'N'", "'' is no number"]),
    "nan": (GOOD + "1e6,3e7,1.8e14,nan\n", ["row 4, column 'loss'", "nan"]),
    "negative loss": (GOOD + "1e6,3e7,1.8e14,-3\n", ["row 4, column 'loss'", "-3", "above 0"]),
    "zero size": (GOOD + "0,3e7,1.8e14,3\n", ["row 4, column 'N'", "above 0"]),
    "duplicate": (GOOD + "1e6,2e7,1.2e14,4.0\n", ["row 4", "repeats row 2", "the same run twice"]),
    "mixed": (GOOD + "1e6,3e7,5e14,3.9\n", ["row 4, column 'C'", "mixed conventions"]),
    "countings": (
        "N,D,loss,counting\n1e6,1e7,4,total\n2e6,1e7,3.9,non-embedding\n",
        ["row 3, column 'counting'", "'non-embedding'", "'total'"],
    ),
    "one row": ("N,D,loss\n1e6,2e7,4.0\n", ["1 point"]),
    "no rows": ("N,D,loss\n", ["is empty"]),
    "nothing": ("", ["is empty"]),
    "long row": (GOOD + "1,2,12,3,5\n", ["row 4", "5 cells, the header has 4"]),
    "short row": (GOOD + "1,2,12\n", ["row 4", "3 cells, the header has 4"]),
    "twice there": (
        "run,N,D,loss\na,1e6,1e7,4\na,1e6,1e7,3.9\n",
        ["row 3, column 'run'", "'a'", "row 2"],
    ),
    "more than all": ("N,D,U,loss\n1e6,1e7,2e7,4\n1e6,1e8,2e7,3\n", ["row 2, column 'U'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_row_and_column(tmp_path, name):
    text, words = BAD[name]
    with pytest.raises(ValueError) as error:
        tables.read(write(tmp_path, text))
    for word in [*words, "runs.csv"]:
        assert word in str(error.value)


def test_requested_columns_must_exist(tmp_path):
    path = write(tmp_path, GOOD)
    for more, word in [
        (dict(columns={"loss": "lost"}), "no column 'lost' for --column loss=lost"),
        (dict(columns={"lr": "N"}), "no field 'lr'"),
        (dict(where={"set": "rw"}), "no column 'set'"),
        (dict(where={"N": "7"}), "no row has N = '7'"),
        (dict(counting=Counting("all")), "counting.params: 'all'"),
        (dict(intermediate=True), "of run directories, folders of curves"),
        (dict(decaying=True), "of run directories alone"),
    ]:
        with pytest.raises(ValueError, match=word):
            tables.read(path, **more)
    with pytest.raises(ValueError, match="needs each run's Config"):
        short = write(tmp_path, "N,C,loss\n1e6,1.2e14,3\n2e6,2.4e14,2\n")
        tables.read(short, counting=Counting("total", "exact causal"))
    with pytest.raises(
        ValueError, match="row 2, column 'counting': 'total', where 'non-embedding'"
    ):
        file = write(tmp_path, "N,D,loss,counting\n1e6,1e7,4,total\n2e6,1e7,3.9,total\n")
        tables.read(file, counting=Counting("non-embedding"))
    assert tables.read(file).counting == Counting("total", "6ND")
    (tmp_path / "runs.csv").write_bytes(b"N,D,loss\n\xff\xfe,1,2\n")
    with pytest.raises(ValueError, match="row 2: byte 0xff is not UTF-8"):
        tables.read(path)
    with pytest.raises(FileNotFoundError):
        tables.read(tmp_path / "none.csv")


def test_compute_that_counts_more_is_taken_as_given(tmp_path):
    text = "N,D,C,loss\n1e6,2e7,1.4e14,4.0\n2e6,2e7,2.6e14,3.8\n"
    with pytest.raises(ValueError, match="mixed conventions"):
        tables.read(write(tmp_path, text))
    t = tables.read(write(tmp_path, text), counting=Counting("total", "exact causal"))
    assert t.counting.flops == "exact causal" and t.flops.tolist() == [1.4e14, 2.6e14]
    eight = write(tmp_path, "N,D,C,loss\n1e6,2e7,1.6e14,4.0\n2e6,2e7,3.2e14,3.8\n")
    assert tables.read(eight).counting.flops == "given"


def test_rows_selected_repeats_dropped_and_runs_kept(tmp_path):
    text = "run,N,D,loss,set\na,1e6,1e7,4,x\na,1e6,2e7,3.9,x\nb,2e6,1e7,3.8,x\nb,2e6,1e7,3.8,y\n"
    t = tables.read(write(tmp_path, text), where={"set": "x"})
    assert t.run.tolist() == ["a", "a", "b"] and t.row.tolist() == [2, 3, 4]
    t = tables.read(write(tmp_path, text), drop_repeats=True)
    assert len(t.loss) == 3 and "row 5 (b) repeats row 4 (b)" in t.left_out[0]
    part = table.take(t, t.loss < 4)
    assert part.run.tolist() == ["a", "b"] and part.row.tolist() == [3, 4]


def test_public_tables_are_read():
    t = tables.read(public.path("chinchilla_epoch_svg.csv"))
    assert len(t.loss) == 245
    np.testing.assert_allclose(6 * t.params * t.tokens, t.flops)
    t = tables.read(public.path("datablations_runs_182.csv"))
    assert len(t.loss) == 182 and t.unique is not None and (t.unique <= t.tokens).all()
    with pytest.raises(ValueError, match="row 339 .* repeats row 181"):
        tables.read(public.path("scalebench_farseer_train_404.csv"))
    with pytest.raises(ValueError, match="row 109, column 'param_count'"):
        tables.read(public.path("porian_rw_isoflop_points.csv"))


# -- counting


def test_gpt2_small_counted_every_way():
    """The output matrix is 31 % of what multiplies a token, the attention another 13 %."""
    cfg = gpt.Config()
    assert conventions.params(cfg, "non-embedding") == 12 * 12 * 768**2 == 84_934_656
    assert conventions.params(cfg, "matmul-only") == 84_934_656 + 50257 * 768 == 123_532_032
    assert conventions.params(cfg, "total") == 124_439_808

    def each(params, c):
        return conventions.per_token(cfg, 1024, Counting(params, c))

    assert each("non-embedding", "6ND") == 509_607_936
    assert each("matmul-only", "6ND") == 741_192_192
    assert each("matmul-only", "6ND+attention") == 741_192_192 + 12 * 12 * 768 * 1024
    # half of all pairs is 797,815,296; a query sees its own key too, half a key more on average
    exact = each("matmul-only", "exact causal")
    assert exact == each("total", "exact causal") == 797_815_296 + 12 * 12 * 768 // 2
    with pytest.raises(ValueError, match="'given' does not say"):
        conventions.params(cfg, "given")


def test_of_experts_those_count_that_a_token_meets():
    cfg = deepseek.PRESETS["deepseek-v3"]
    assert conventions.params(cfg, "total") == flops.active(cfg) < 40e9


# -- run directories


def finish(folder, name, *, layers=2, steps=10, nll=3.0, val=True, **more):
    """A run directory as training leaves it, evaluated at half its length and at its end."""
    run = Run(
        name=name,
        model=llama.Config(vocab=259, embed=16, layers=layers, heads=2, kv=2, head=8, ffn=32),
        data=Data(seq=8, batch=4),
        steps=steps,
        **more,
    )
    place = folder / name
    place.mkdir()
    directory.record(place, run)
    tokens = 32 * steps
    rows = [
        {"step": steps // 2, "split": "train", "tokens": tokens // 2, "loss": nll + 1},
        {"step": steps // 2, "split": "val", "nll": nll + 0.5},
        {"step": steps, "split": "val", "nll": nll},
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    last = {"nll": nll} if val else None
    directory.finish(place, directory.Result(str(place), steps, steps, tokens, last, 0))
    return run


def test_run_directories_are_points(tmp_path):
    small = finish(tmp_path, "small", nll=3.0)
    large = finish(tmp_path, "large", layers=3, nll=2.9)
    finish(tmp_path, "begun", start="elsewhere")
    finish(tmp_path, "unseen", val=False)
    finish(tmp_path, "broken", nll=float("nan"))
    finish(tmp_path, "stopped")
    ended = directory.Result("stopped", 5, 10, 160, {"nll": 3.5}, 15)
    directory.finish(tmp_path / "stopped", ended)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text(json.dumps(config.to_dict(small)))
    how = Counting("matmul-only", "exact causal")
    t = tables.read(tmp_path, counting=how)
    assert t.run.tolist() == ["large", "small"] and t.loss.tolist() == [2.9, 3.0]
    cost = flops.per_token(large.model, 8)
    assert t.params[0] == (cost.layers + cost.head) / 2
    assert t.tokens.tolist() == [320, 320] and t.flops[0] == cost.training * 320
    assert t.counting == how
    reasons = " ".join(t.left_out)
    for word in [
        "begun: start",
        "unseen: it was not evaluated",
        "broken: it diverged: held-out nll is nan",
    ]:
        assert word in reasons
    assert "stopped: it stopped at step 5 of 10" in reasons
    assert "unfinished: it is not finished" in reasons and len(t.left_out) == 5
    assert tables.read(tmp_path).counting == Counting("total", "6ND")


def test_losses_before_the_end_of_a_decay_are_refused(tmp_path):
    finish(tmp_path, "a")
    finish(tmp_path, "b", layers=3, nll=2.9)
    with pytest.raises(ValueError, match="a/config.json: optim.schedule 'cosine' decays"):
        tables.read(tmp_path, intermediate=True)
    t = tables.read(tmp_path, intermediate=True, decaying=True)
    assert t.run.tolist() == ["a", "a", "b", "b"] and t.tokens.tolist() == [160, 320] * 2
    assert t.loss.tolist() == [3.5, 3.0, 3.4, 2.9]


def test_any_moment_of_a_constant_rate_counts(tmp_path):
    finish(tmp_path, "a", optim=Optim(schedule="constant"))
    assert len(tables.read(tmp_path, intermediate=True).loss) == 2
    with pytest.raises(ValueError, match="1 point"):
        tables.read(tmp_path)


def test_branches_of_one_trunk_are_one_run(tmp_path):
    """They share most of their updates, so that resampling must not take them for two."""
    wsd = Optim(schedule="wsd")
    finish(tmp_path, "trunk", steps=20, nll=2.5, optim=wsd)
    finish(tmp_path, "branch", steps=10, optim=wsd, trunk=str(tmp_path / "trunk"))
    finish(tmp_path, "other", layers=3, optim=wsd)
    t = tables.read(tmp_path)
    assert sorted(zip(t.run, t.tokens)) == [("other", 320), ("trunk", 320), ("trunk", 640)]


def test_runs_of_other_tokens_or_twice_the_same_are_refused(tmp_path):
    run = finish(tmp_path, "a")
    finish(tmp_path, "b")
    with pytest.raises(ValueError, match=r"row 2 \(b\) repeats row 1 \(a\)"):
        tables.read(tmp_path)
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, tokenizer="elsewhere"))
    directory.record(tmp_path / "b", other)
    with pytest.raises(ValueError, match="b has data.tokenizer = 'elsewhere', a has 'bytes'"):
        tables.read(tmp_path)
    longer = dataclasses.replace(run.data, curriculum=((0, 4), (5, 8)))
    directory.record(tmp_path / "b", dataclasses.replace(run, data=longer))
    with pytest.raises(ValueError, match="b/config.json: data.curriculum"):
        tables.read(tmp_path, counting=Counting("total", "exact causal"))
    with pytest.raises(ValueError, match="no columns to name"):
        tables.read(tmp_path, {"loss": "nll"})
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no run directory"):
        tables.read(tmp_path / "none")
