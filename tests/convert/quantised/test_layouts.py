"""Every format's tensors: what its own library computes of them, and what is refused by name."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.convert import quantised, tensor_files
from jaxlm.convert.quantised import compound, elements
from jaxlm.core import param
from jaxlm.ops import quant
from tests.convert.quantised import oracles, writers

STORED = np.load(pathlib.Path(__file__).parent / "golden.npz")
GOLDEN: dict[str, dict[str, np.ndarray]] = {}
for key in STORED.files:
    GOLDEN.setdefault(key.partition("/")[0], {})[key.partition("/")[2]] = STORED[key]

QUADS = {"codes": ".weight", "state": ".weight.quant_state.bitsandbytes__"}
TRIPLE = {"codes": ".qweight", "zeros": ".qzeros", "scales": ".scales", "groups": ".g_idx"}


def second(parts, bits):
    """GPTQ's second format of the first one's tensors."""
    shifts = bits * np.arange(32 // bits, dtype=np.uint32)
    ones = (np.uint32(1) << shifts).sum(dtype=np.uint32)
    return parts | {"zeros": (parts["zeros"].view(np.uint32) + ones).view(np.int32)}


def files(case):
    """(quantization_config, {name of a tensor: array}) of a golden case, as a checkpoint's."""
    parts = {k: x for k, x in GOLDEN[case].items() if k != "dense"}
    if case in oracles.COMPRESSED:
        form = "pack-quantized" if case.startswith("pack") else "naive-quantized"
        if case.startswith("float8"):
            parts["weight"] = parts["weight"].view(jnp.float8_e4m3fn)
        config = writers.compressed(form, **oracles.COMPRESSED[case])
        return config, {f"m.{name}": x for name, x in parts.items()}
    if case == "eight":
        config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        return config, {"m.weight": parts["codes"], "m.SCB": parts["scales"]}
    if case[:3] in ("nf4", "fp4"):
        names = {name: f".weight.{name}" for name in parts} | QUADS
        names["state"] += case[:3]
        return writers.BNB, {f"m{names[k]}": x for k, x in parts.items()}
    if case == "mxfp4":
        names = {"codes": "_blocks", "scales": "_scales"}
        return {"quant_method": "mxfp4"}, {f"m{names[k]}": x for k, x in parts.items()}
    config = writers.GPTQ | {"desc_act": case.endswith("order")}
    config |= {"bits": int(case[4])} if case != "awq" else {"bits": 4}
    if case == "awq":
        config = {"quant_method": "awq", "bits": 4, "group_size": 32}
    return config, {f"m{TRIPLE[k]}": x for k, x in parts.items()}


def gathered(folder, config, tensors):
    """The weights of a checkpoint that has these tensors."""
    items = [
        ([tensor_files.Item(n, x.shape, writers.STORED[x.dtype])], x) for n, x in tensors.items()
    ]
    tensor_files.write(folder, items, lambda x: [x], np.dtype(np.float32), 10**9)
    form = quantised.understood(config, "llama", "config.json")
    return form.gather(tensor_files.find(folder))


def matrix(shape):
    """The Param of a weight [outputs, inputs] or [E, inputs, outputs]."""
    if len(shape) == 2:
        return param.shaper(i=shape[1], o=shape[0])("i -> o")
    return param.shaper(e=shape[0], i=shape[1], o=shape[2])("e | i -> o")


def ours(e, p):
    """Elements of a weight as a row of `weight_rows` hands them over."""
    turn = {n: x if p.copies else x.T for n, x in e.parts.items()}
    return elements.packed(e._replace(parts=turn), p)


@pytest.mark.parametrize("case", sorted(GOLDEN))
def test_numbers_are_those_of_the_format_s_own_library(case, tmp_path):
    """As they are read, and as they are kept in few bits; 2^-22 for what the library computes with
    another rounding (bitsandbytes' 127ths, float32 sums of nested scales)."""
    config, tensors = files(case)
    weights = gathered(tmp_path, config, tensors)
    (tensor,) = weights.values()
    assert isinstance(tensor, compound.Compound)
    e, want = tensor.elements(), GOLDEN[case]["dense"]
    want = want.swapaxes(1, 2) if case == "mxfp4" and want.shape != tensor.shape else want
    rtol = 2**-22 if case == "eight" or "double" in case or case == "int8_tensor" else 0
    got = elements.dense(e)
    assert got.shape == tensor.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=rtol)
    kept = ours(e, matrix(tensor.shape))
    if case.startswith("fp4") or case == "float8_block":
        assert isinstance(kept, str)
        return
    assert isinstance(kept, quant.Packed)
    dense = np.asarray(quant.dense(kept))
    np.testing.assert_allclose(dense if dense.ndim == 3 else dense.T, got, rtol=2**-22)
    stored = sum(np.asarray(x).nbytes for x in kept.__dict__.values() if hasattr(x, "nbytes"))
    assert stored < 0.66 * got.nbytes / 2


@pytest.mark.parametrize("case", [c for c in GOLDEN if c.startswith("gptq")])
def test_both_formats_of_gptq_are_one_weight(case, tmp_path):
    """vllm 38966: the first stores a zero less 1, the second the zero."""
    config, tensors = files(case)
    bits = config["bits"]
    parts = second({"zeros": tensors["m.qzeros"]}, bits)
    weights = gathered(
        tmp_path,
        config | {"checkpoint_format": "gptq_v2"},
        tensors | {"m.qzeros": parts["zeros"]},
    )
    np.testing.assert_array_equal(compound.read(weights["m.weight"]), GOLDEN[case]["dense"])


def broken(case, changes=None, **tensors):
    """(config, tensors) of a golden case with others in place of its own; None leaves one out."""
    config, given = files(case)
    given = given | {f"m.{k}": x for k, x in tensors.items()}
    return config | (changes or {}), {k: x for k, x in given.items() if x is not None}


HALF = np.zeros((2, 32), np.float16)
GPTQ = GOLDEN["gptq4"]
WRONG = {
    "quant_method='aqlm' is not supported": ("awq", {"quant_method": "aqlm"}, {}),
    "gptq: bits=3 is not supported": ("gptq4", {"bits": 3}, {}),
    "checkpoint_format='marlin' is not supported": ("gptq4", {"checkpoint_format": "marlin"}, {}),
    "matrices of several formats": ("gptq4", {"dynamic": {"+:.*down": {"bits": 8}}}, {}),
    "unknown fields {'rotation': 'hadamard'}": ("gptq4", {"rotation": "hadamard"}, {}),
    "group_size=0 given": ("gptq4", {"group_size": 0}, {}),
    "m.qzeros is I32 \\[2, 4\\]; I32 \\[4, 4\\]": ("gptq4", {"group_size": 16}, {}),
    "m.scales is F16 \\[2, 30\\]": ("gptq4", {}, {"scales": HALF[:, :30]}),
    "tensor m.g_idx is missing": ("gptq4_order", {}, {"g_idx": None}),
    "tensor m.scales is missing": ("gptq4", {}, {"scales": None}),
    "m.qweight is F16": ("gptq4", {}, {"qweight": HALF}),
    "g_idx has groups 0 to 2; there are 2": (
        "gptq4_order", {}, {"g_idx": np.arange(64, dtype=np.int32) // 31},
    ),
    "g_idx is not in the order of the inputs": ("gptq4_order", {"desc_act": False}, {}),
    "qzeros has 15 with checkpoint_format gptq": (
        "gptq4", {}, {"qzeros": np.full_like(GPTQ["zeros"], -1)},
    ),
    "qzeros has 8 with sym=true, and 7 is": (
        "gptq4", {"sym": True}, {"qzeros": np.full_like(GPTQ["zeros"], np.int32(-2004318072))},
    ),
    "version='gemv' is not supported": ("awq", {"version": "gemv"}, {}),
    "zero_point=False is not supported": ("awq", {"zero_point": False}, {}),
    "group_size=48 does not divide its 64 inputs": ("awq", {"group_size": 48}, {}),
    "load_in_4bit=True and load_in_8bit=True": ("nf4_64", {"load_in_8bit": True}, {}),
    "matrices in \\['fp4', 'nf4'\\]": (
        "nf4_64", {}, {"weight.quant_state.bitsandbytes__fp4": np.zeros(3, np.uint8)},
    ),
    "is no state": (
        "nf4_64", {}, {"weight.quant_state.bitsandbytes__nf4": np.zeros(3, np.uint8)},
    ),
    "380 bytes given, and \\[6, 128\\] takes 384": (
        "nf4_64", {}, {"weight": np.zeros((380, 1), np.uint8)},
    ),
    "m.weight.absmax is F32 \\[9\\]; F32 \\[12\\]": (
        "nf4_64", {}, {"weight.absmax": np.zeros(9, np.float32)},
    ),
    "m.SCB is F32 \\[5\\]": ("eight", {}, {"SCB": np.zeros(5, np.float32)}),
    "a scale of 255": ("mxfp4", {}, {"_scales": None, "x": None}),
    "no tensor is named": ("mxfp4", {"quant_method": "fp8"}, {}),
    "format='marlin-24' is not supported": ("pack4", {"format": "marlin-24"}, {}),
    "kv_cache_scheme={'num_bits': 8} is not supported": (
        "pack4", {"kv_cache_scheme": {"num_bits": 8}}, {},
    ),
    "m.weight_packed is I32 \\[12, 7\\]": (
        "pack4", {}, {"weight_packed": GOLDEN["pack4"]["weight_packed"][:, :7]},
    ),
    "tensor m.weight_zero_point is missing": ("pack4_zeros", {}, {"weight_zero_point": None}),
    "m.weight_scale is F32 \\[12, 3\\]": (
        "pack4", {}, {"weight_scale": np.ones((12, 3), np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_read_is_refused_by_name(words, tmp_path):
    case, changes, tensors = WRONG[words]
    config, given = broken(case, changes, **tensors)
    if "scale of 255" in words:
        given["m_scales"] = np.full((2, 6, 2), 255, np.uint8)
    with pytest.raises(ValueError, match=words):
        for tensor in gathered(tmp_path, config, given).values():
            compound.read(tensor)


@pytest.mark.parametrize(
    "field, words",
    [
        ({"num_bits": 3}, "num_bits=3"),
        ({"symmetric": False, "type": "float", "num_bits": 8}, "symmetric=false"),
        ({"strategy": "tensor_group"}, "strategy='tensor_group'"),
        ({"group_size": None}, "group_size=None given with strategy group"),
        ({"strategy": "block", "block_structure": 7}, "block_structure=7"),
        ({"actorder": "sideways"}, "actorder='sideways'"),
        ({"dynamic": True}, "dynamic=True"),
        ({"rounding": "up"}, "unknown fields"),
    ],
)
def test_settings_of_compressed_tensors_are_read_or_refused(field, words):
    weights = {"num_bits": 4, **oracles.GROUPED} | field
    with pytest.raises(ValueError, match=words):
        quantised.understood(writers.compressed("pack-quantized", **weights), None, "config.json")


def test_several_groups_and_inputs_that_are_rounded():
    config = writers.compressed("pack-quantized", num_bits=4, **oracles.GROUPED)
    several = config | {"config_groups": {"a": config["config_groups"]["group_0"], "b": {}}}
    with pytest.raises(ValueError, match="config_groups has 2 groups: matrices of several formats"):
        quantised.understood(several, None, "config.json")
    rounded = json.loads(json.dumps(config))
    rounded["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    assert not quantised.understood(config, None, "config.json").notices
    (notice,) = quantised.understood(rounded, None, "config.json").notices
    assert "input_activations" in notice and "here they are not" in notice
    rounded["config_groups"]["group_0"]["output_activations"] = {"num_bits": 8}
    with pytest.raises(ValueError, match="output_activations is not supported"):
        quantised.understood(rounded, None, "config.json")


def test_settings_in_a_file_of_their_own(tmp_path):
    """AutoGPTQ's and AutoAWQ's older files; one that contradicts config.json is refused."""
    assert quantised.declared(tmp_path, {}, "config.json") is None
    own = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "damp_percent": 0.01}
    (tmp_path / "quantize_config.json").write_text(json.dumps(own))
    form = quantised.declared(tmp_path, {"model_type": "llama"}, "config.json")
    assert form is not None and form.name == "int4 of GPTQ"
    record = {"quantization_config": own | {"quant_method": "gptq", "bits": 8}}
    with pytest.raises(ValueError, match=r"disagree: {'bits': \(8, 4\)}"):
        quantised.declared(tmp_path, record, "config.json")
    with pytest.raises(ValueError, match="not supported with model_type=gpt2"):
        quantised.declared(tmp_path, {"model_type": "gpt2"}, "config.json")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_are_packed_as_they_are_unpacked(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 37)).astype(np.uint8)
    packed = compound.pack(codes, bits)
    np.testing.assert_array_equal(packed, writers.words(codes, bits))
    np.testing.assert_array_equal(compound.unpack(packed, bits)[:, :37], codes)
