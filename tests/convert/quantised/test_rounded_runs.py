"""`jaxlm quantize`: run directories in few bits, what reads them and what refuses them."""

import json
import pathlib

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm import models
from jaxlm.cli import launch, main
from jaxlm.convert import pretrained
from jaxlm.convert.quantised import rounded_runs
from jaxlm.core import param
from jaxlm.models import llama, packed_weights
from jaxlm.ops import linear, quant
from jaxlm.train import loop, trained_weights
from jaxlm.train.run import integrity
from tests import programs

CFG = llama.Config(vocab=259, embed=32, layers=2, heads=2, kv=1, head=16, ffn=64, tied=True)
TEXTS = [f"number {i} and the {'same words ' * (i % 5)}again" for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with a run, runs/base, that came with a text, and a corpus."""
    folder = tmp_path_factory.mktemp("quantised")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(launch, "devices", lambda count: None)
        lines = "\n".join(json.dumps({"text": text}) for text in TEXTS)
        pathlib.Path("corpus.jsonl").write_text(lines)
        data = jaxlm.Data(source="corpus.jsonl", seq=32, batch=4, holdout=0.3)
        run = jaxlm.Run(name="base", model=CFG, data=data)
        params = programs.drawn(models.spec(CFG), 1)
        target = pathlib.Path("runs/base")
        target.mkdir(parents=True)
        tokenizer = jaxlm.data.tokenizers.load("bytes").hash
        pretrained.fill(target, target, run, params, {"val": None}, {"eos_token_id": 3}, tokenizer)
        yield folder


def command(*args):
    return main.main([*args])


@pytest.mark.slow
def test_made_read_sampled_and_scored(place, capsys):
    made = ["quantize", "runs/base", "runs/int4", "--scheme", "int4", "--group", "32"]
    assert command(*made, "--data", "corpus.jsonl", "--documents", "8") == 0
    text = capsys.readouterr().out
    # 4 bits, 16 of a scale and 8 of a zero for 32 numbers
    assert "int4, rtn; 18,432 weights at 4.750 bits each, 8,448 others at 32" in text
    assert "8 documents" in text and "by position" in text and "same top token" in text
    folder = pathlib.Path("runs/int4")
    assert integrity.fault(folder / "checkpoints" / "0") is None
    base, saved = jaxlm.load("runs/base"), jaxlm.load(folder)
    want = packed_weights.encode(
        base.model.spec, base.params, packed_weights.rounding(quant.Scheme("int4", 32))
    )
    assert jax.tree.structure(saved.params) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(saved.params), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert trained_weights.stop_tokens(folder) == (3,)
    dense = saved._replace(params=linear.merged(saved.params))
    greedy = jaxlm.Sampling(max_new=5, temperature=0)
    assert jaxlm.generate(saved, ["number"], greedy) == jaxlm.generate(dense, ["number"], greedy)
    assert command("sample", "runs/int4", "--prompt", "number", "--max-new", "4") == 0
    assert capsys.readouterr().out.startswith("number")
    scored = jaxlm.evaluate(saved)
    assert scored["nll"] == pytest.approx(jaxlm.evaluate(dense)["nll"], abs=1e-4)
    assert command("eval", "runs/int4") == 0
    assert json.loads(capsys.readouterr().out)["nll"] == pytest.approx(scored["nll"])


def test_bytes_on_disk_are_those_of_the_codes(tmp_path, place):
    """Bits a weight, by the files that hold them, of a model whose matrices outweigh the rest."""
    cfg = llama.Config(vocab=64, embed=256, layers=2, heads=4, kv=4, head=64, ffn=1024, tied=True)
    base, out = tmp_path / "large", tmp_path / "small"
    base.mkdir()
    run = jaxlm.Run(name="large", out=str(tmp_path), model=cfg, data=jaxlm.Data())
    params = programs.drawn(models.spec(cfg), 2)
    tokenizer = jaxlm.data.tokenizers.load("bytes").hash
    pretrained.fill(base, base, run, params, {"val": None}, {}, tokenizer)
    made = rounded_runs.quantise(base, out, quant.Scheme("mxfp4"))
    size = made.size
    assert size.packed + size.others == param.count(models.spec(cfg))
    assert size.bits == 4.25
    assert made.file_bytes == pytest.approx(size.packed_bytes + size.others_bytes, rel=0.06)


slow = [pytest.param(name, marks=pytest.mark.slow) for name in ("int2", "nf4", "fp8")]


@pytest.mark.parametrize("scheme", ["int8", *slow])
def test_every_format_comes_back(place, tmp_path, scheme):
    more = {"nf4": ["--double-quant"], "int8": ["--tables"]}.get(scheme, [])
    assert command("quantize", "runs/base", str(tmp_path / "q"), "--scheme", scheme, *more) == 0
    base, saved = jaxlm.load("runs/base"), jaxlm.load(tmp_path / "q")
    given = quant.Scheme(scheme, double_quant=scheme == "nf4", tables=scheme == "int8")
    make = packed_weights.rounding(given)
    want = packed_weights.encode(base.model.spec, base.params, make, given)
    assert isinstance(saved.params["embed"]["table"], quant.Packed) == given.tables
    for a, b in zip(jax.tree.leaves(saved.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_gptq_and_awq_are_no_worse_on_what_they_read(place, tmp_path):
    losses = {}
    for method in ("rtn", "gptq", "awq"):
        made = rounded_runs.quantise(
            "runs/base", tmp_path / method, quant.Scheme("int2", 16), method, "corpus.jsonl"
        )
        assert made.comparison is not None
        losses[method] = made.comparison.kl
        saved = jaxlm.load(tmp_path / method)
        assert np.isfinite(jaxlm.evaluate(saved)["nll"])
    assert losses["gptq"] < 0.9 * losses["rtn"] and losses["awq"] < losses["rtn"]


def test_what_cannot_be_done_is_refused_by_name(place, capsys):
    if not pathlib.Path("runs/int8").exists():
        assert command("quantize", "runs/base", "runs/int8", "--scheme", "int8") == 0
    base = ["quantize", "runs/base", "runs/new", "--scheme"]
    refused = {
        "method gptq, which chooses among integers": [*base, "nf4", "--method", "gptq"],
        "which method awq reads": [*base, "int4", "--method", "awq"],
        "group: 12 given": [*base, "int4", "--group", "12"],
        "cannot be put into few bits again": ["quantize", "runs/int8", "runs/x", "--scheme", "nf4"],
        "exists and is not empty": ["quantize", "runs/base", "runs/int8", "--scheme", "nf4"],
    }
    for words, args in refused.items():
        assert command(*args) == 2
        assert words in capsys.readouterr().err
    data = jaxlm.Data(source="corpus.jsonl", seq=32, batch=4, holdout=0.3)
    run = jaxlm.Run(name="on", model=CFG, data=data, start="runs/int8")
    with pytest.raises(
        ValueError, match="start: runs/int8 holds matrices in int8, which no gradient"
    ):
        loop.prepare(run)
    with pytest.raises(ValueError, match="which one device reads"):
        jaxlm.load("runs/int8", plan=jaxlm.Plan(data=2))
    assert not pathlib.Path("runs/new").exists()
