"""Whole checkpoints in few bits: imported, kept so, read, and what becomes arrays."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm import models
from jaxlm.cli import launch, main
from jaxlm.convert import pretrained, read, tensor_files
from jaxlm.convert.quantised import compound
from jaxlm.decode import token_sampling
from jaxlm.models import llama, mistral, model, packed_weights
from jaxlm.ops import linear, quant
from jaxlm.ops.attention import At
from jaxlm.ops.kernels import tiles
from jaxlm.train import program
from tests import programs
from tests.convert.quantised import writers

CFG = llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=2, head=16, ffn=128, tied=False)
# q, k and v are one tensor of their file, and gate and up another
FUSED = llama.Config(vocab=64, embed=64, layers=2, heads=4, kv=2, head=16, ffn=96, window=8)
EXPERTS = mistral.Config(
    vocab=64, embed=64, layers=2, heads=2, kv=1, head=32, ffn=32, experts=4, active=2
)


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params):
    tokens = jnp.arange(24).reshape(2, 12) % cfg.vocab
    at = At(jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(12), (2, 12)))
    return model.logits(models.build(cfg), params, tokens, at)


@functools.cache
def weights(cfg):
    return programs.drawn(models.spec(cfg), 1)


def imported(folder, case, cfg=CFG, **given):
    """(the Saved of a case's checkpoint, weights of its counterpart in floats)."""
    writers.checkpoint(folder / "hf", case, cfg, weights(cfg))
    pretrained.import_run(folder / "hf" / "few", folder / "run", **given)
    return jaxlm.load(folder / "run"), read.load(folder / "hf" / "dense")[1]


def same(params, want):
    """Whether weights are those of an import of their values, to the last bit of float32."""
    for a, b in zip(jax.tree.leaves(linear.merged(params)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2**-22)


@pytest.mark.parametrize("case", writers.CASES)
def test_a_checkpoint_is_what_its_values_are(case, tmp_path, capsys):
    kept = writers.CASES[case][3]
    saved, want = imported(tmp_path, case)
    same(saved.params, want)
    text, few = capsys.readouterr().err, program.packed(saved.folder)
    leaves = packed_weights.flat(saved.params).values()
    forms = {type(w).__name__ for w in leaves if isinstance(w, quant.Packed)}
    assert forms == ({kept} if kept else set())
    assert ("kept as float32 arrays" in text) == (kept is None)
    assert ("inputs are to be rounded" in text) == (case == "deepseek_fp8")
    assert ("rounds these matrices' inputs" in text) == (case == "bitsandbytes8")
    record = json.loads((saved.folder / "env.json").read_text())
    if kept is None:
        assert few is None and record["dequantised"]
    else:
        assert few is not None and few["method"] == "imported" and str(tmp_path) in few["source"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gptq", pytest.param("nf4_double", marks=pytest.mark.slow)])
def test_it_computes_and_continues_as_floats_do(case, tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "PART", 1024)
    saved, want = imported(tmp_path, case)
    got = logits(saved.run.model, saved.params)
    np.testing.assert_allclose(got, logits(saved.run.model, want), atol=2e-5, rtol=1e-5)
    floats, greedy = saved._replace(params=want), jaxlm.Sampling(max_new=4, temperature=0)
    assert jaxlm.generate(saved, ["ab"], greedy) == jaxlm.generate(floats, ["ab"], greedy)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gptq", "gptq2", "awq", "nf4_double", "compressed_float8"])
def test_it_computes_without_the_extra(case, tmp_path, monkeypatch):
    """By products of XLA alone."""
    monkeypatch.setattr(tiles, "available", lambda: False)
    jax.clear_caches()
    saved, want = imported(tmp_path, case)
    params = token_sampling.prepare(saved.model, saved.params)
    leaves = jax.tree.leaves(params, is_leaf=linear.is_leaf)
    assert sum(isinstance(w, quant.Packed) for w in leaves) == 2 * 7
    got, floats = (logits(saved.run.model, each) for each in (params, want))
    np.testing.assert_allclose(got, floats, atol=2e-5, rtol=1e-5)
    job = [[1, 2, 3]], [jaxlm.Sampling(max_new=3, temperature=0)]
    out, plain = (token_sampling.generate(saved.model, each, *job) for each in (params, want))
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    jax.clear_caches()


def test_floats_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "devices", lambda count: None)
    writers.checkpoint(tmp_path / "hf", "awq", CFG, weights(CFG))
    few, run = str(tmp_path / "hf" / "few"), str(tmp_path / "run")
    assert main.main(["import", few, run, "--dequantize"]) == 0
    assert "int4 of AWQ" not in capsys.readouterr().err
    assert program.packed(run) is None
    same(jaxlm.load(run).params, read.load(tmp_path / "hf" / "dense")[1])
    with pytest.raises(ValueError, match=r"which one device reads; take one, or --dequantize"):
        pretrained.import_run(few, tmp_path / "two", plan=jaxlm.Plan(data=2))
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("case", ["compressed", "nf4", "nf4_double"])
def test_matrices_that_are_joined_in_the_files(case, tmp_path, capsys):
    """q, k and v of Phi-3 are cut from one tensor: of integers each has its own groups, of NF4 its
    own blocks, but not its own mean of scales nor its own 256 of them."""
    saved, want = imported(tmp_path, case, FUSED)
    same(saved.params, want)
    leaves = packed_weights.flat(saved.params)
    arrays = [p for p, w in leaves.items() if "stack" in p and not isinstance(w, quant.Packed)]
    assert {p.rpartition("/")[2] for p in arrays if "norm" not in p} == set()
    assert "float32 arrays" not in capsys.readouterr().err


@pytest.mark.slow
def test_experts_of_gpt_oss_in_mxfp4(tmp_path, capsys):
    cfg = mistral.Config(
        vocab=64, embed=64, layers=2, heads=2, kv=1, head=32, ffn=32, experts=4, active=2,
        bias=True, sinks=True, limit=7.0, alpha=1.702, window=8,
    )  # fmt: skip
    (tmp_path / "hf").mkdir()
    record, tensors = writers.plain(tmp_path / "hf" / "plain", cfg, weights(cfg))
    assert record["model_type"] == "gpt_oss"
    few, dense, rng = dict(tensors), dict(tensors), np.random.default_rng(0)
    for name, w in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            parts, dense[name] = writers.experts(rng, w.shape[0], w.shape[2], w.shape[1])
            del few[name]
            few |= {name + suffix: x for suffix, x in parts.items()}
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    writers.save(tmp_path / "hf" / "few", record | {"quantization_config": config}, few)
    writers.save(tmp_path / "hf" / "dense", record, dense)
    pretrained.import_run(tmp_path / "hf" / "few", tmp_path / "run")
    saved, want = jaxlm.load(tmp_path / "run"), read.load(tmp_path / "hf" / "dense")[1]
    same(saved.params, want)
    leaves = packed_weights.flat(saved.params)
    assert {p.rpartition("/")[2] for p, w in leaves.items() if isinstance(w, quant.Packed)} == {
        "gate", "up", "down",
    }  # fmt: skip
    np.testing.assert_allclose(
        logits(saved.run.model, saved.params), logits(saved.run.model, want), atol=2e-5, rtol=1e-5
    )


def test_layers_that_differ_are_arrays_and_named(tmp_path, capsys):
    """modules_to_not_convert: a layer's matrix as floats; and an output matrix in few bits."""
    writers.checkpoint(tmp_path / "hf", "awq", CFG, weights(CFG))
    record = json.loads((tmp_path / "hf" / "few" / "config.json").read_text())
    few, dense = (
        {k: tensor_files.read(t) for k, t in tensor_files.find(tmp_path / "hf" / n).items()}
        for n in ("few", "dense")
    )
    name = "model.layers.1.mlp.up_proj"
    few = {k: x for k, x in few.items() if not k.startswith(name)}
    few[f"{name}.weight"] = dense[f"{name}.weight"]
    head = np.pad(few.pop("lm_head.weight"), ((0, 5), (0, 0)))  # AWQ has 8 outputs to a word
    record["vocab_size"] = len(head)
    parts, _ = writers.awq(np.random.default_rng(7), *head.shape)
    few |= {f"lm_head{k}": x for k, x in parts.items()}
    few["model.embed_tokens.weight"] = np.pad(few["model.embed_tokens.weight"], ((0, 5), (0, 0)))
    writers.save(tmp_path / "odd", record, few)
    pretrained.import_run(tmp_path / "odd", tmp_path / "run")
    text = capsys.readouterr().err
    assert "ffn/up are kept as float32 arrays: layer 1 is an array" in text
    assert "unembed are kept as float32 arrays: jaxlm keeps embeddings, output matrices" in text
    leaves = packed_weights.flat(jaxlm.load(tmp_path / "run").params)
    up = next(w for p, w in leaves.items() if p.endswith("ffn/up"))
    np.testing.assert_array_equal(up[1], dense[f"{name}.weight"].T)


def test_a_damaged_checkpoint_leaves_nothing(tmp_path):
    writers.checkpoint(tmp_path / "hf", "gptq", CFG, weights(CFG))
    file = tmp_path / "hf" / "few" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="is cut off or damaged"):
        pretrained.import_run(tmp_path / "hf" / "few", tmp_path / "run")
    record = json.loads((tmp_path / "hf" / "few" / "config.json").read_text())
    file.write_bytes(whole)
    record["hidden_size"] = 32
    (tmp_path / "hf" / "few" / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"tensor .* is \[64, 64\], and \[64, 32\] follows"):
        pretrained.import_run(tmp_path / "hf" / "few", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["nf4", "fp4", "eight"])
def test_what_transformers_saves_with_bitsandbytes(kind, tmp_path):
    """As its own files have it: every matrix is what bitsandbytes decodes of it."""
    transformers = pytest.importorskip("transformers")
    functional = pytest.importorskip("bitsandbytes").functional
    record, _ = writers.plain(tmp_path / "plain", CFG, weights(CFG))
    (tmp_path / "plain" / "config.json").write_text(json.dumps(record))
    settings: dict = {"load_in_8bit": True}
    if kind != "eight":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
        settings["bnb_4bit_use_double_quant"] = True
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=transformers.BitsAndBytesConfig(**settings)
    )
    theirs.save_pretrained(tmp_path / "few")
    checkpoint = read.inspect(tmp_path / "few")
    assert checkpoint.few is not None
    for name, tensor in checkpoint.tensors.items():
        if isinstance(tensor, compound.Compound):
            w = theirs.get_parameter(name)
            if kind == "eight":
                scales = w.SCB if w.SCB is not None else theirs.get_submodule(name[:-7]).state.SCB
                want = functional.int8_vectorwise_dequant(w.data, scales)
            else:
                want = functional.dequantize_4bit(w.data, w.quant_state)
            got = compound.read(tensor)
            np.testing.assert_allclose(got, want.float().numpy(), rtol=2**-7)
    pretrained.import_run(tmp_path / "few", tmp_path / "run")
    few = program.packed(tmp_path / "run")
    assert (few is None) == (kind == "fp4")
