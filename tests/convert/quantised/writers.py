"""Checkpoints in few bits, written number by number: random codes of each format, packed by plain
NumPy as its files have them, and the weights that they represent by its formula in float64."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np

from jaxlm import models
from jaxlm.convert import tensor_files, write
from jaxlm.ops.quant import mxfp4, nf4

STORED = {np.dtype(v): k for k, v in tensor_files.READ.items()}
GROUP = 32


def words(codes, bits, axis=-1):
    """int32 words of codes along an axis, from the low bits on; the last one filled with zeros."""
    codes = np.moveaxis(codes, axis, -1).astype(np.uint64)
    each = 32 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    codes = codes.reshape(*codes.shape[:-1], -1, each)
    joined = (codes << (bits * np.arange(each, dtype=np.uint64))).sum(-1)
    return np.moveaxis(joined.astype(np.uint32).view(np.int32), -1, axis)


def grid(rng, outputs, inputs, bits, groups):
    """(codes [outputs, inputs], zeros and float16 scales [outputs, groups])."""
    codes = rng.integers(0, 2**bits, (outputs, inputs))
    zeros = rng.integers(2 ** (bits - 1) - 1, 2 ** (bits - 1) + 2, (outputs, groups))
    return codes, zeros, ((1 + rng.random((outputs, groups))) / 2**bits / 4).astype(np.float16)


def values(codes, zeros, scales, group):
    """float32[outputs, inputs]; group: that of each input."""
    return ((codes - zeros[:, group]) * scales.astype(np.float64)[:, group]).astype(np.float32)


def gptq(rng, outputs, inputs, bits=4, offset=1, order=True, sym=False):
    codes, zeros, scales = grid(rng, outputs, inputs, bits, inputs // GROUP)
    zeros = np.full_like(zeros, 2 ** (bits - 1)) if sym else zeros
    group = np.arange(inputs) // GROUP
    group = (rng.permutation(group) if order else group).astype(np.int32)
    parts = {".qweight": words(codes.T, bits, 0), ".qzeros": words((zeros - offset).T, bits)}
    parts |= {".scales": scales.T, ".g_idx": group}
    return parts, values(codes, zeros, scales, group)


def awq(rng, outputs, inputs):
    codes, zeros, scales = grid(rng, outputs, inputs, 4, inputs // GROUP)
    eights = np.arange(outputs).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].ravel()
    parts = {".qweight": words(codes.T[:, eights], 4), ".qzeros": words(zeros.T[:, eights], 4)}
    return parts | {".scales": scales.T}, values(codes, zeros, scales, np.arange(inputs) // GROUP)


def packed(rng, outputs, inputs, bits=4, order=False):
    codes, zeros, scales = grid(rng, outputs, inputs, bits, inputs // GROUP)
    group = np.arange(inputs) // GROUP
    group = (rng.permutation(group) if order else group).astype(np.int32)
    parts = {".weight_packed": words(codes, bits), ".weight_scale": scales}
    parts |= {".weight_zero_point": words(zeros, bits, 0)}
    parts |= {".weight_shape": np.array([outputs, inputs], np.int64)}
    parts |= {".weight_g_idx": group} if order else {}
    return parts, values(codes, zeros, scales, group)


def numbers(rng, outputs, inputs):
    codes = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scales = ((1 + rng.random((outputs, 1))) / 600).astype(np.float32)
    dense = (codes.astype(np.float32) * scales).astype(np.float32)
    return {".weight": codes, ".weight_scale": scales, ".input_scale": np.ones(1, "f4")}, dense


def float8(rng, outputs, inputs, block=None):
    units = (rng.standard_normal((outputs, inputs)) * 100).clip(-448, 448)
    units = units.astype(jnp.float8_e4m3fn)
    rows, columns = block or (1, inputs)
    counts = (-(-outputs // rows), -(-inputs // columns))
    scales = ((1 + rng.random(counts)) / 1000).astype(np.float32)
    each = np.repeat(np.repeat(scales, rows, 0)[:outputs], columns, 1)[:, :inputs]
    name = ".weight_scale" if block is None else ".weight_scale_inv"
    return {".weight": units, name: scales}, units.astype(np.float32) * each


def four(rng, outputs, inputs, kind="nf4", double=False):
    """bitsandbytes' levels in blocks of 64; fp4 stands for any that are not nf4's."""
    size = outputs * inputs
    codes = rng.integers(0, 16, size)
    levels = np.array(nf4.LEVELS, np.float32) if kind == "nf4" else rng.random(16).astype("f4")
    state = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": [outputs, inputs]}
    parts = {".weight": (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)[:, None]}
    blocks = -(-size // 64)
    if double:
        eight = rng.integers(0, 256, blocks).astype(np.uint8)
        most = (0.05 + 0.05 * rng.random(-(-blocks // 256))).astype(np.float32)
        scales = nf4.dynamic_levels()[eight] * np.repeat(most, 256)[:blocks] + np.float32(0.25)
        parts |= {".weight.absmax": eight, ".weight.nested_absmax": most}
        parts |= {".weight.nested_quant_map": nf4.dynamic_levels()}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
    else:
        scales = (0.2 + 0.2 * rng.random(blocks)).astype(np.float32)
        parts[".weight.absmax"] = scales
    parts[".weight.quant_map"] = levels
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    parts[f".weight.quant_state.bitsandbytes__{kind}"] = text
    dense = (levels[codes] * np.repeat(scales, 64)[:size]).reshape(outputs, inputs)
    return parts, dense


def eight(rng, outputs, inputs):
    codes = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    scales = (0.2 + 0.2 * rng.random(outputs)).astype(np.float32)
    dense = codes.astype(np.float32) * (scales / np.float32(127))[:, None]
    return {".weight": codes, ".SCB": scales, ".weight_format": np.zeros((), np.uint8)}, dense


def experts(rng, count, outputs, inputs):
    """GPT-OSS's experts: (tensors by suffix, the weight [E, inputs, outputs])."""
    codes = rng.integers(0, 16, (count, outputs, inputs))
    scales = rng.integers(122, 125, (count, outputs, inputs // 32)).astype(np.uint8)
    levels = np.array([*mxfp4.MAGNITUDES, *(-x for x in mxfp4.MAGNITUDES)])
    dense = levels[codes] * np.repeat(2.0 ** (scales.astype(float) - 127), 32, -1)
    blocks = codes.reshape(count, outputs, -1, 32)
    blocks = (blocks[..., 0::2] | blocks[..., 1::2] << 4).astype(np.uint8)
    return {"_blocks": blocks, "_scales": scales}, dense.swapaxes(1, 2).astype(np.float32)


def compressed(form, **weights):
    group = {"targets": ["Linear"], "weights": {"dynamic": False, **weights}}
    return {
        "quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group},
        "ignore": ["lm_head"], "quantization_status": "compressed",
    }  # fmt: skip


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT4 = {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": GROUP}
# {case: (quantization_config, encoder of a matrix, its settings, what is kept of it here)}
CASES = {
    "gptq": (GPTQ, gptq, {}, "Integers"),
    "gptq_v2_sym8": (
        GPTQ | {"bits": 8, "sym": True, "desc_act": False, "checkpoint_format": "gptq_v2"},
        gptq, {"bits": 8, "offset": 0, "order": False, "sym": True}, "Integers",
    ),
    "gptq2": (GPTQ | {"bits": 2, "desc_act": False}, gptq, {"bits": 2, "order": False}, "Integers"),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM"},
        awq, {}, "Integers",
    ),
    "compressed": (compressed("pack-quantized", **INT4), packed, {}, "Integers"),
    "compressed_order": (
        compressed("pack-quantized", **INT4, actorder="group"), packed, {"order": True}, "Integers",
    ),
    "compressed_int8": (
        compressed("int-quantized", num_bits=8, strategy="channel"), numbers, {}, "Integers",
    ),
    "compressed_float8": (
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        float8, {}, "Float8",
    ),
    "deepseek_fp8": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 32]},
        float8, {"block": (16, 32)}, None,
    ),
    "nf4": (BNB, four, {}, "Nf4"),
    "nf4_double": (BNB, four, {"double": True}, "Nf4"),
    "fp4": (BNB | {"bnb_4bit_quant_type": "fp4"}, four, {"kind": "fp4"}, None),
    "bitsandbytes8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True}, eight, {}, "Integers",
    ),
}  # fmt: skip


def save(folder, record, tensors):
    """A checkpoint of these tensors, in their own dtypes."""
    folder.mkdir(parents=True)
    items = [
        ([tensor_files.Item(name, x.shape, STORED[x.dtype])], x) for name, x in tensors.items()
    ]
    tensor_files.write(folder, items, lambda x: [x], np.dtype(np.float32), 10**9)
    write.configs(folder, record, {}, "float32")


def plain(folder, cfg, params):
    """(config.json, tensors by name) of a model as transformers has it."""
    kind, record = write.architecture(cfg)
    folder.mkdir()
    write.weights(folder, kind, cfg, params)
    tensors = {n: tensor_files.read(t) for n, t in tensor_files.find(folder).items()}
    return record, tensors


def checkpoint(folder: pathlib.Path, case: str, cfg: models.AnyConfig, params) -> None:
    """folder/few and folder/dense: a model with the matrices of its layers in the format of a case,
    and the one with the weights that these represent."""
    folder.mkdir()
    record, tensors = plain(folder / "plain", cfg, params)
    config, encode, settings, _ = CASES[case]
    rng = np.random.default_rng(len(case))
    few, dense = {}, {}
    for name, w in tensors.items():
        few[name] = dense[name] = w
        if ".layers." in name and w.ndim == 2 and not name.endswith("router.weight"):
            parts, dense[name] = encode(rng, *w.shape, **settings)
            del few[name]
            few |= {name.removesuffix(".weight") + k: x for k, x in parts.items()}
    save(folder / "few", record | {"quantization_config": config}, few)
    save(folder / "dense", record, dense)
