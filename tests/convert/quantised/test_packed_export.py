"""Runs in few bits as checkpoints of transformers: what comes back, what others read."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm import models
from jaxlm.convert import pretrained
from jaxlm.convert.quantised import elements, packed_export, rounded_runs
from jaxlm.core import param
from jaxlm.models import llama, packed_weights
from jaxlm.ops import linear, quant
from tests.convert.quantised import test_packed_checkpoint as packed

CFG, FUSED, EXPERTS = packed.CFG, packed.FUSED, packed.EXPERTS
Scheme = quant.Scheme
SCHEMES = {
    "int8": Scheme("int8"),
    "int8_groups": Scheme("int8", 32, True),
    "int4": Scheme("int4", 32),
    "int2": Scheme("int2", 16, False),
    "fp8": Scheme("fp8"),
    "nf4": Scheme("nf4"),
    "nf4_double": Scheme("nf4", double_quant=True),
}
FAST = ("int8_groups", "int4", "nf4_double")
CASES = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SCHEMES]


def made(folder, scheme, cfg=CFG):
    """The run directory of a model in few bits."""
    base = folder / "base"
    if not base.exists():
        base.mkdir(parents=True)
        run = jaxlm.Run(name="base", out=str(folder), model=cfg, data=jaxlm.Data())
        tokenizer = jaxlm.data.tokenizers.load("bytes").hash
        pretrained.fill(base, base, run, packed.weights(cfg), {"val": None}, {}, tokenizer)
    rounded_runs.quantise(base, folder / "few", scheme)
    return folder / "few"


def export(folder, scheme, cfg=CFG):
    run = made(folder, scheme, cfg)
    pretrained.export_run(run, folder / "hf", with_tokenizer=False)
    return jaxlm.load(run), folder / "hf"


@pytest.mark.parametrize("name", CASES)
def test_what_is_exported_comes_back_bit_for_bit(name, tmp_path):
    saved, hf = export(tmp_path, SCHEMES[name])
    pretrained.import_run(hf, tmp_path / "again")
    again = jaxlm.load(tmp_path / "again")
    assert jax.tree.structure(again.params) == jax.tree.structure(saved.params)
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(saved.params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_tables_in_few_bits_are_written_as_the_arrays_they_represent(tmp_path):
    saved, hf = export(tmp_path, Scheme("int8", 32, tables=True))
    pretrained.import_run(hf, tmp_path / "again")
    again = jaxlm.load(tmp_path / "again").params
    assert isinstance(saved.params["embed"]["table"], quant.Packed)
    assert not isinstance(again["embed"]["table"], quant.Packed)
    pairs = [jax.tree.leaves(packed_weights.dense(x)) for x in (again, saved.params)]
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
@pytest.mark.parametrize(
    "cfg, name", [(FUSED, "int4"), (FUSED, "nf4"), (EXPERTS, "int8_groups")], ids=["a", "b", "c"]
)
def test_matrices_that_are_joined_or_many(cfg, name, tmp_path):
    saved, hf = export(tmp_path, SCHEMES[name], cfg)
    pretrained.import_run(hf, tmp_path / "again")
    again = jaxlm.load(tmp_path / "again")
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(saved.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    record = json.loads((hf / "config.json").read_text())["quantization_config"]
    whole = record.get("ignore", record.get("llm_int8_skip_modules"))
    assert "lm_head" in whole and ("model.layers.1.block_sparse_moe.gate" in whole) == (
        cfg is EXPERTS
    )


def test_what_the_files_have_no_place_for_is_refused(tmp_path):
    run, out = made(tmp_path, Scheme("mxfp4")), tmp_path / "hf"
    with pytest.raises(ValueError, match="mxfp4 has no layout .*; export the run"):
        pretrained.export_run(run, out, with_tokenizer=False)
    with pytest.raises(ValueError, match="dtype: 'int8' given"):
        packed_export.weights(out, "llama", CFG, jaxlm.load(run).params, "int8", 10**9)
    assert not out.exists()

    def refused(words, scheme, cfg=CFG, change=lambda w: w):
        spec = models.spec(cfg)
        params = packed_weights.encode(spec, packed.weights(cfg), packed_weights.rounding(scheme))
        params = jax.tree.map(
            lambda w: change(w) if linear.is_leaf(w) else w, params, is_leaf=linear.is_leaf
        )
        with pytest.raises(ValueError, match=words):
            packed_export.weights(out, "llama", cfg, params, "float32", 10**9)

    def ordered(w):
        order = jnp.zeros((2, w.codes.shape[-1] * 2), jnp.int32)
        return dataclasses.replace(w, order=order)

    refused("act-order have no place", SCHEMES["int4"], change=ordered)

    def scaled(w):
        return dataclasses.replace(w, channels=jnp.ones((2, 64)))

    refused("factors of inputs .awq. have no place", SCHEMES["int4"], change=scaled)
    odd = llama.Config(vocab=64, embed=48, layers=1, heads=3, kv=3, head=16, ffn=80)
    refused("groups of 64 do not divide its 80 inputs", Scheme("int4", 64), odd)
    with pytest.raises(ValueError, match="reward models in few bits"):
        packed_export.weights(out, "llama", CFG, {"score": jnp.ones(3)}, "float32", 10**9)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_numbers_are_taken_out_and_put_back(scheme):
    """Experts [2, 64 | 3, 16]: `elements.of` and `elements.packed` are each other's inverse."""
    w = np.random.default_rng(0).standard_normal((2, 64, 3, 16), np.float32)
    kept = quant.encode(jnp.asarray(w), 1, 1, scheme)
    e = elements.of(kept)
    np.testing.assert_array_equal(elements.dense(e), quant.dense(kept))
    p = param.shaper(expert=2, embed=64, heads=3, head=16)("expert | embed -> heads head")
    again = elements.packed(e, p)
    assert jax.tree.structure(again) == jax.tree.structure(kept)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["int8", "int2", "fp8", "nf4", "nf4_double"])
def test_transformers_computes_the_same(name, tmp_path):
    """With compressed-tensors, where it is installed (transformers 5.24 and its 0.20.1 cannot load
    integers with zeros: the shape that they expect of these is not the packed one); and with
    bitsandbytes, whose products on a CPU are in bfloat16, and so by its own decoded weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes" if name.startswith("nf4") else "compressed_tensors")
    saved, hf = export(tmp_path, SCHEMES[name])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    if name.startswith("nf4"):
        from bitsandbytes import functional

        for module in theirs.modules():
            if type(module).__name__ == "Linear4bit":
                dense = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                module.forward = lambda x, dense=dense: x @ dense.T
    tokens = torch.arange(24).reshape(2, 12) % CFG.vocab
    with torch.no_grad():
        want = theirs(tokens).logits.numpy()
    got = packed.logits(saved.run.model, saved.params)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5)
