"""Checkpoints in all their forms: read, and refused by name before a weight is read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import read, tensor_files, write
from jaxlm.core import param
from jaxlm.models import llama
from jaxlm.parallel.plan import Plan

CFG = llama.Config(vocab=48, embed=16, layers=3, heads=4, kv=2, head=4, ffn=24, context=32)
FILE = "model.safetensors"


def weights(cfg, seed=0):
    """NumPy weights of a Config."""
    rng = np.random.default_rng(seed)
    return param.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), models.spec(cfg))


def save(folder, cfg=CFG, dtype="float32", limit=10**9, params=None):
    """A checkpoint as this library writes it; the weights it holds."""
    params = weights(cfg) if params is None else params
    kind, record = write.architecture(cfg)
    write.weights(folder, kind, cfg, params, dtype, limit)
    write.configs(folder, record, {}, dtype)
    return params


@pytest.fixture
def folder(tmp_path):
    save(tmp_path)
    return tmp_path


def tensors(folder):
    """{name: array} of a checkpoint of one file."""
    from safetensors import numpy as safetensors

    return safetensors.load_file(folder / FILE)


def put(folder, changed):
    from safetensors import numpy as safetensors

    safetensors.save_file({k: np.ascontiguousarray(v) for k, v in changed.items()}, folder / FILE)


def settings(folder, **changes):
    """Change fields of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def refusal(folder, kind=ValueError):
    with pytest.raises(kind) as error:
        read.inspect(folder)
    return str(error.value)


# --- What is read -----------------------------------------------------------------------------


def test_the_library_of_the_format_reads_what_is_written(folder):
    named = tensors(folder)
    q = weights(CFG)["stack"]["0"]["0_global"]["attn"]["q"][1]
    assert np.array_equal(named["model.layers.1.self_attn.q_proj.weight"], q.reshape(16, 16).T)
    assert len(named) == 3 + 9 * CFG.layers


@pytest.mark.parametrize("limit", [10**9, 9000, 1])
def test_one_file_or_many_hold_the_same(tmp_path, limit):
    params = save(tmp_path, limit=limit)
    cfg, loaded = read.load(tmp_path)
    assert cfg == CFG
    assert equal(loaded, params)
    many = sorted(tmp_path.glob("model-*.safetensors"))
    assert (tmp_path / tensor_files.INDEX).is_file() == bool(many) == (limit < 10**9)
    if limit == 9000:
        assert len(many) > 2
        assert all(file.stat().st_size < 9000 + 4000 for file in many)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_are_read_as_they_are(tmp_path, dtype):
    params = save(tmp_path, dtype=dtype)
    rounded = jax.tree.map(lambda w: w.astype(write.DTYPES[dtype]).astype(np.float32), params)
    assert equal(read.load(tmp_path)[1], rounded)
    placed = read.place(read.inspect(tmp_path), dtype=jnp.dtype(dtype))
    assert {w.dtype for w in jax.tree.leaves(placed)} == {jnp.dtype(dtype)}
    assert equal(jax.tree.map(lambda w: w.astype(np.float32), placed), rounded)


def test_weights_are_placed_as_the_plan_says(folder):
    plan = Plan(data=2, fsdp=2, tensor=2)
    loaded = read.place(read.inspect(folder), plan)
    assert equal(loaded, weights(CFG))
    lies = plan.shard_params(models.spec(CFG))
    assert all(jax.tree.leaves(jax.tree.map(lambda w, s: w.sharding == s, loaded, lies)))


def test_an_output_matrix_that_is_there_wins_over_the_flag(folder):
    """A checkpoint whose config says tied, with a matrix of its own on disk, is untied."""
    settings(folder, tie_word_embeddings=True)
    cfg, params = read.load(folder)
    assert not cfg.tied
    assert equal(params, weights(CFG))
    named = tensors(folder)
    put(folder, named | {"lm_head.weight": named["model.embed_tokens.weight"]})
    assert read.load(folder)[0].tied


# --- Narrower dtypes --------------------------------------------------------------------------


def test_numbers_beyond_a_dtype_are_not_written_as_infinite(tmp_path):
    """A float16 export wrote inf for every weight above 65,504 and said nothing."""
    params = weights(CFG)
    params["stack"]["0"]["0_global"]["attn"]["q"][1, 3, 0, 1] = -70000.0
    params["norm"][3] = np.inf  # what is infinite already stays so
    with pytest.raises(ValueError) as error:
        save(tmp_path, dtype="float16", params=params)
    assert str(error.value) == (
        "model.layers.1.self_attn.q_proj.weight has -70000, and the largest number of float16 is "
        "65504: it would become infinite; dtype bfloat16 or float32 holds it"
    )
    assert not list(tmp_path.iterdir())
    params["stack"]["0"]["0_global"]["attn"]["q"][1, 3, 0, 1] = 65519.0  # rounds to 65504
    save(tmp_path, dtype="float16", params=params)
    assert tensors(tmp_path)["model.layers.1.self_attn.q_proj.weight"].max() == 65504
    params["unembed"][0, 0] = 3.4e38
    with pytest.raises(ValueError, match="lm_head.weight has 3.4e.38, .* dtype float32 holds it"):
        save(tmp_path, dtype="bfloat16", params=params)


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        (np.array([1, 1e5, -2e5], np.float32), np.float16, "x has -200000, .* bfloat16 or float32"),
        (np.array([65520], np.float32), np.float16, "x has 65520"),
        (np.array([1e39]), np.float32, "x has 1e.39, .* float32 is 3.40282e.38.*dtype float64"),
        (np.array([3.4e38], np.float32), jnp.bfloat16, "dtype float32 holds"),
        (np.array([7e4], jnp.bfloat16), np.float16, "x has 70144"),
    ],
)
def test_a_cast_that_loses_a_number_names_it(array, dtype, message):
    with pytest.raises(ValueError, match=message):
        tensor_files.cast(array, dtype, "x")
    wide = np.array([1.0, np.inf, -np.inf, np.nan, 65504.0], np.float32)
    narrow = tensor_files.cast(wide, dtype, "x")
    assert narrow.dtype == dtype
    np.testing.assert_array_equal(narrow.astype(np.float32)[:4], wide[:4])


def test_checkpoints_are_read_into_narrower_dtypes_by_the_same_rule(tmp_path):
    params = weights(CFG)
    params["stack"]["0"]["0_global"]["ffn"]["up"][2, 5, 5] = 1e6
    save(tmp_path, params=params)
    checkpoint = read.inspect(str(tmp_path))
    with pytest.raises(ValueError, match="model.layers.2.mlp.up_proj.weight has 1e.06, .*float16"):
        read.place(checkpoint, dtype=jnp.float16)
    assert read.place(checkpoint, dtype=jnp.bfloat16)["norm"].dtype == jnp.bfloat16
    named = tensors(tmp_path)
    put(tmp_path, named | {"model.norm.weight": named["model.norm.weight"] * np.float64(1e300)})
    for reader in (read.load, lambda folder: read.place(read.inspect(folder))):
        with pytest.raises(ValueError, match="model.norm.weight has .*e.300, .*float32"):
            reader(tmp_path)


# --- What is refused --------------------------------------------------------------------------


def test_tensors_that_are_missing_unknown_or_misshaped_are_all_named(folder):
    named = tensors(folder)
    del named["model.layers.1.mlp.up_proj.weight"]
    named["model.norm.weight"] = named["model.norm.weight"][:-1]
    named["model.layers.2.self_attn.extra"] = np.zeros(3, np.float32)
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)  # a buffer
    put(folder, named)
    message = refusal(folder)
    assert "missing tensor model.layers.1.mlp.up_proj.weight" in message
    assert "tensor model.norm.weight is [15], and [16] follows from config.json" in message
    assert "unknown tensor model.layers.2.self_attn.extra [3]" in message
    assert "inv_freq" not in message


def test_a_layer_too_many_is_refused(folder):
    settings(folder, num_hidden_layers=2)
    assert "unknown tensor model.layers.2.input_layernorm.weight" in refusal(folder)


def test_a_tensor_that_is_no_float_is_refused(folder):
    named = tensors(folder)
    put(folder, named | {"model.norm.weight": np.zeros(16, np.int32)})
    assert "model.norm.weight is stored as I32" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "'spiral'"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported"),
        ({"wobble": 3}, "unknown fields {'wobble': 3}"),
        ({"model_type": "llamas"}, "model_type='llamas' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_configs_that_would_compute_something_else_are_refused(folder, changes, message):
    if "rope_parameters" in changes:
        changes |= {"rope_scaling": None}
    settings(folder, **changes)
    assert message in refusal(folder)


def test_files_that_are_cut_off_or_no_safetensors_are_named(folder):
    content = (folder / FILE).read_bytes()
    for part in (content[:-5], content[:100], content[:4], b"\xff" * 200):
        (folder / FILE).write_bytes(part)
        assert FILE in refusal(folder)
    length = int.from_bytes(content[:8], "little")
    (folder / FILE).write_bytes(content[:8] + b"x" * length + content[8 + length :])
    assert "header" in refusal(folder)


def test_shards_that_are_missing_or_overlap_are_named(tmp_path):
    save(tmp_path, limit=9000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(shards[0].read_bytes())
    assert "it must be there once" in refusal(tmp_path)
    shards[1].unlink()
    assert shards[1].name in refusal(tmp_path, FileNotFoundError)
    shards[1].write_bytes(content)
    index = json.loads((tmp_path / tensor_files.INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (tmp_path / tensor_files.INDEX).write_text(json.dumps(index))
    assert "disagree about ['model.norm.weight']" in refusal(tmp_path)


def test_a_pickle_is_refused_with_the_way_out(folder):
    (folder / FILE).rename(folder / "pytorch_model.bin")
    assert "save it as safetensors first" in refusal(folder, FileNotFoundError)
    (folder / "config.json").unlink()
    assert "it has no config.json" in refusal(folder, FileNotFoundError)


def test_what_no_architecture_can_say_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="(?s)cannot be exported.*softcap"):
        write.architecture(llama.Config(softcap=3.0))
    with pytest.raises(ValueError, match="model_type='gpt2'"):
        write.architecture(CFG, "gpt2")
    with pytest.raises(ValueError, match="dtype: 'int8'"):
        write.weights(tmp_path, "llama", CFG, {}, "int8")
