"""compressed-tensors' files, as llm-compressor and vLLM have them.

    pack-quantized     weight_packed int32[outputs, inputs * bits / 32], of number + 2^(bits - 1)
                       weight_scale [outputs, groups], weight_shape int64[2]
                       weight_zero_point int32[outputs * bits / 32, groups] if not symmetric
                       weight_g_idx int32[inputs] with actorder "group"
    int-quantized      weight int8[outputs, inputs], weight_scale, weight_zero_point int8 alike
    float-quantized    weight float8 E4M3 [outputs, inputs], weight_scale
    naive-quantized    as one of the two above

weight_scale is [outputs, groups] with strategy "group", [outputs, 1] with "channel", [1] with
"tensor" and [outputs / rows, inputs / columns] with "block". w = scale * (number - zero).
"""

import functools
from typing import Any

import numpy as np

from jaxlm.convert import tensor_files
from jaxlm.convert.config_json import Fields
from jaxlm.convert.quantised import compound
from jaxlm.convert.quantised.compound import Compound, Format
from jaxlm.convert.quantised.elements import Elements
from jaxlm.convert.tensor_files import DTYPES, Tensor

PACKED, NUMBERS = "pack-quantized", ("int-quantized", "float-quantized", "naive-quantized")
# What was done on the way, or says how inputs are to be rounded.
FACTS = ("quantization_status", "global_compression_ratio", "ignore", "version", "quant_method")
ARGUMENTS = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype")
INPUTS = "its matrices' inputs are to be rounded, too (input_activations); here they are not"


def compressed_tensors(f: Fields) -> Format:
    """The Format of a quantization_config of method "compressed-tensors".

    Raises: ValueError for several groups of matrices, other formats, and what else would be
    computed otherwise: sparsity, transforms, outputs and caches that are rounded.
    """
    for name in ("sparsity_config", "transform_config", "kv_cache_scheme", "moe_sparsity_config"):
        value = f.get(name, None)
        if value and value != {"format": "dense"}:
            raise ValueError(f"{name}={value!r} is not supported; a checkpoint without is read")
    groups = f.take("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ValueError(
            f"config_groups has {len(groups or ())} groups: matrices of several formats in one "
            "checkpoint; one of a single format is read"
        )
    (group,) = groups.values()
    if not isinstance(group, dict):
        raise ValueError(f"config_groups={groups!r}: a group is a record with `weights`")
    outer = f.get("format", None)
    for name in FACTS:
        f.get(name, None)
    f.refuse_rest()
    inner = Fields(group, "quantization_config: config_groups")
    inner.get("targets", None)
    if inner.get("output_activations", None):
        raise ValueError("output_activations is not supported: outputs would be rounded")
    notices = (INPUTS,) if inner.get("input_activations", None) else ()
    form = inner.get("format", outer)
    if form not in (PACKED, *NUMBERS):
        raise ValueError(f"format={form!r} is not supported; there is {[PACKED, *NUMBERS]}")
    weights = inner.part("weights")
    inner.refuse_rest()
    settings = _settings(weights)
    if form == PACKED and settings["type"] != "int":
        raise ValueError(f"format={form!r} with type={settings['type']!r}; it is of int")
    name = f"{settings['type']}{settings['bits']} of compressed-tensors"
    make = functools.partial(_packed if form == PACKED else _numbers, settings)
    suffixes = {"codes": ".weight_packed" if form == PACKED else ".weight"}
    suffixes |= {"scales": ".weight_scale", "zeros": ".weight_zero_point"}
    suffixes |= {"shape": ".weight_shape", "groups": ".weight_g_idx"}
    optional = ["groups"] * (not settings["ordered"]) + ["zeros"] * settings["symmetric"]
    optional += ["shape"] * (form != PACKED)
    skipped = (".input_scale", ".input_zero_point")
    key = "codes" if form == PACKED else "scales"

    def gather(tensors: dict[str, Tensor]) -> compound.Tensors:
        return compound.gather(tensors, suffixes, key, make, optional, skipped=skipped)

    return Format(name, gather, notices)


def _settings(f: Fields) -> dict[str, Any]:
    """Settings by which weights are decoded. Raises: ValueError for what is not read here."""
    bits, kind = f.get("num_bits", 8), f.get("type", "int")
    if (kind, bits) not in (("int", 2), ("int", 4), ("int", 8), ("float", 8)):
        raise ValueError(f"num_bits={bits!r}, type={kind!r} is not supported; int 2, 4, 8, float 8")
    strategy, size = f.get("strategy", None), f.get("group_size", None)
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy not in ("tensor", "channel", "group", "block"):
        raise ValueError(f"strategy={strategy!r} is not supported; tensor, channel, group, block")
    if strategy == "group" and (type(size) is not int or size < 1):
        raise ValueError(f"group_size={size!r} given with strategy group; a number of inputs")
    block = f.get("block_structure", None)
    if strategy == "block" and not (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    ):
        raise ValueError(f"block_structure={block!r} given with strategy block; [rows, columns]")
    symmetric = bool(f.get("symmetric", True))
    if kind == "float" and not symmetric:
        raise ValueError("symmetric=false is not supported with type float")
    ordered = f.get("actorder", None)
    if ordered not in (None, False, "weight", "static", "group", True, "dynamic"):
        raise ValueError(f"actorder={ordered!r} is not supported; null, 'weight' or 'group'")
    f.only("dynamic", False)
    for name in ARGUMENTS:
        f.get(name, None)
    f.refuse_rest()
    return {
        "bits": bits,
        "type": kind,
        "size": size if strategy == "group" else None,
        "block": block if strategy == "block" else None,
        "strategy": strategy,
        "symmetric": symmetric,
        # "weight" orders columns while codes are chosen, and not groups
        "ordered": ordered in ("group", True, "dynamic"),
    }


def _scales(name: str, s: dict[str, Any], shape: tuple[int, int]) -> tuple[int, ...]:
    """The shape that weight_scale has, after the sizes were checked."""
    outputs, inputs = shape
    if s["strategy"] == "tensor":
        return (1,)
    if s["block"] is not None:
        return -(-outputs // s["block"][0]), -(-inputs // s["block"][1])
    return outputs, compound.groups(name, inputs, s["size"])


def _expect_scales(
    name: str, s: dict[str, Any], parts: dict[str, Tensor], shape: tuple[int, int]
) -> None:
    scales, want = parts["scales"], _scales(name, s, shape)
    flat = {(): (1,), (1, 1): (1,)} if s["strategy"] == "tensor" else {}
    if s["strategy"] == "channel":  # some leave out the axis of 1
        flat = {(shape[0],): want}
    compound.expect(
        name, scales._replace(shape=flat.get(scales.shape, scales.shape)), want, tuple(DTYPES)
    )


def _each(s: dict[str, Any], x: np.ndarray, shape: tuple[int, int], group: Any) -> np.ndarray:
    """A scale or zero for every number [outputs, inputs]."""
    outputs, inputs = shape
    if s["strategy"] == "tensor":
        return np.broadcast_to(x.reshape(1, 1), shape)
    if s["block"] is not None:
        rows, columns = s["block"]
        return np.repeat(np.repeat(x, rows, 0)[:outputs], columns, 1)[:, :inputs]
    x = x.reshape(outputs, -1)
    return compound.spread(x, inputs // x.shape[1]) if group is None else x[:, group]


def _packed(s: dict[str, Any], name: str, parts: dict[str, Tensor]) -> Compound:
    bits = s["bits"]
    compound.expect(name, parts["shape"], (2,), ("I64", "I32"))
    shape = tuple(int(n) for n in tensor_files.read(parts["shape"]))
    outputs, inputs = shape
    if min(shape) < 1:
        raise ValueError(f"{name}: {parts['shape'].stored} is {[*shape]}; sizes of a matrix")
    if s["block"] is not None or s["strategy"] == "tensor":
        raise ValueError(f"strategy={s['strategy']!r} is not supported with format {PACKED!r}")
    each = 32 // bits
    compound.expect(name, parts["codes"], (outputs, -(-inputs // each)), ("I32",))
    _expect_scales(name, s, parts, (outputs, inputs))
    count = _scales(name, s, (outputs, inputs))[1]
    if "zeros" in parts:
        compound.expect(name, parts["zeros"], (-(-outputs // each), count), ("I32",))
    if "groups" in parts:
        compound.expect(name, parts["groups"], (inputs,), ("I32",))

    def decode(arrays: dict[str, np.ndarray]) -> Elements:
        code = compound.unpack(arrays["codes"], bits)[:, :inputs]
        group = arrays.get("groups") if s["ordered"] else None
        if group is not None and (group.min() < 0 or group.max() >= count):
            raise ValueError(f"weight_g_idx has {group.min()} to {group.max()}; there are {count}")
        made: dict[str, Any] = {"code": code}
        made["scale"] = _each(s, arrays["scales"], (outputs, inputs), group)
        if not s["symmetric"]:
            zeros = compound.unpack(arrays["zeros"].T, bits)[:, :outputs].T  # [outputs, groups]
            made["zero"] = _each(s, zeros, (outputs, inputs), group)
        if group is not None:
            made["group"] = np.broadcast_to(group.astype(np.int32), shape)
        return Elements("integers", made, bits, s["size"])

    return Compound(name, parts, shape, decode)


def _numbers(s: dict[str, Any], name: str, parts: dict[str, Tensor]) -> Compound:
    compound.expect(
        name, parts["codes"], (None, None), ("F8_E4M3",) if s["type"] == "float" else ("I8",)
    )
    if s["bits"] != 8 or s["ordered"]:
        raise ValueError(f"{name}: 8 bits without actorder are read, but of {PACKED!r}")
    outputs, inputs = parts["codes"].shape
    _expect_scales(name, s, parts, (outputs, inputs))
    if "zeros" in parts and not s["symmetric"]:
        compound.expect(name, parts["zeros"], parts["scales"].shape, ("I8",))

    def decode(arrays: dict[str, np.ndarray]) -> Elements:
        shape = (outputs, inputs)
        made: dict[str, Any] = {"scale": _each(s, arrays["scales"], shape, None)}
        if s["type"] == "float":
            made["code"] = arrays["codes"].view(np.uint8)
            return Elements("float8", made | {"scale": made["scale"].astype(np.float32)})
        made["code"] = arrays["codes"].view(np.uint8) ^ np.uint8(128)  # number + 128
        if not s["symmetric"]:
            zeros = arrays["zeros"].view(np.uint8) ^ np.uint8(128)
            made["zero"] = _each(s, zeros, shape, None)
        return Elements("integers", made, 8, s["size"])

    return Compound(name, parts, (outputs, inputs), decode)
