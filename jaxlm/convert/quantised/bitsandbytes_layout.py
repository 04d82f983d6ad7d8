"""bitsandbytes' files: NF4 and FP4 in blocks, scales of 8 bits perhaps; integers of 8 bits.

    4 bits   weight uint8[n / 2, 1]: the weight [outputs, inputs] flat, the first number in the high
             bits; absmax float32[blocks] or uint8, then with nested_absmax, nested_quant_map;
             quant_map float32[16]; quant_state.bitsandbytes__nf4: JSON as bytes
    8 bits   weight int8[outputs, inputs], SCB float32[outputs]: w = weight * SCB / 127

Dettmers et al. 2022 and 2023, as bitsandbytes 0.50 and transformers 5 save them.
"""

import json
import math
from typing import Any

import numpy as np

from jaxlm.convert import tensor_files
from jaxlm.convert.config_json import Fields
from jaxlm.convert.quantised import compound
from jaxlm.convert.quantised.compound import Compound, Format
from jaxlm.convert.quantised.elements import Elements
from jaxlm.convert.tensor_files import READ, Tensor
from jaxlm.ops.quant import nf4

FACTS = (
    "_load_in_4bit", "_load_in_8bit", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight", "llm_int8_skip_modules", "llm_int8_threshold", "quant_method",
)  # fmt: skip
STATE = ".weight.quant_state.bitsandbytes__"
EIGHT = "bitsandbytes rounds these matrices' inputs to 8 bits, too, but for outliers; here none is"


def bitsandbytes(f: Fields) -> Format:
    """The Format of a quantization_config of method "bitsandbytes". Raises: ValueError unless it is
    of 4 or of 8 bits."""
    four, eight = bool(f.get("load_in_4bit", False)), bool(f.get("load_in_8bit", False))
    for name in FACTS:
        f.get(name, None)
    f.refuse_rest()
    if four == eight:
        raise ValueError(f"load_in_4bit={four} and load_in_8bit={eight}; one of them is true")
    if eight:
        suffixes = {"codes": ".weight", "scales": ".SCB"}
        skipped = (".weight_format",)
        return Format(
            "int8 of bitsandbytes",
            lambda t: compound.gather(t, suffixes, "scales", _int8, skipped=skipped),
            (EIGHT,),
        )
    return Format("4 bits of bitsandbytes", _gather4)


def _int8(name: str, parts: dict[str, Tensor]) -> Compound:
    compound.expect(name, parts["codes"], (None, None), ("I8",))
    shape = parts["codes"].shape
    compound.expect(name, parts["scales"], shape[:1], ("F32",))

    def decode(arrays: dict[str, np.ndarray]) -> Elements:
        code = arrays["codes"].view(np.uint8) ^ np.uint8(128)  # the code of 0 is 128
        scale = arrays["scales"] / np.float32(127)
        return Elements(
            "integers", {"code": code, "scale": np.broadcast_to(scale[:, None], shape)}, 8
        )

    return Compound(name, parts, (shape[0], shape[1]), decode)


def _gather4(tensors: dict[str, Tensor]) -> compound.Tensors:
    kinds = sorted({n.partition(STATE)[2] for n in tensors if STATE in n})
    if len(kinds) > 1:
        raise ValueError(f"matrices in {kinds}; a checkpoint of a single format is read")
    kind = kinds[0] if kinds else "nf4"
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    suffixes = {"codes": ".weight", "state": STATE + kind}
    suffixes |= {part: f".weight.{part}" for part in parts}
    return compound.gather(tensors, suffixes, "state", _four, parts[2:])


def _four(name: str, parts: dict[str, Tensor]) -> Compound:
    try:
        state = json.loads(tensor_files.read(parts["state"]).tobytes())
        shape = tuple(int(n) for n in state["shape"])
        block, kind = int(state["blocksize"]), state["quant_type"]
        nested = "nested_absmax" in parts
        group = int(state["nested_blocksize"]) if nested else 1
        offset = np.float32(state["nested_offset"]) if nested else np.float32(0)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: {parts['state'].stored} is no state: {error!r}") from error
    if kind not in ("nf4", "fp4") or len(shape) != 2 or min(*shape, block, group) < 1:
        raise ValueError(f"{name}: {state}; nf4 or fp4 of a matrix is read")
    size = math.prod(shape)
    blocks = -(-size // block)
    stored = math.prod(parts["codes"].shape) * np.dtype(READ[parts["codes"].dtype]).itemsize
    if stored != (size + 1) // 2:
        raise ValueError(f"{name}: {stored} bytes given, and {[*shape]} takes {(size + 1) // 2}")
    compound.expect(name, parts["absmax"], (blocks,), ("U8",) if nested else ("F32",))
    compound.expect(name, parts["quant_map"], (16,), ("F32",))
    if nested:
        compound.expect(name, parts["nested_absmax"], (-(-blocks // group),), ("F32",))
        compound.expect(name, parts["nested_quant_map"], (256,), ("F32",))

    def decode(arrays: dict[str, np.ndarray]) -> Elements:
        def each(x: np.ndarray, count: int) -> np.ndarray:
            return np.repeat(x, count)[:size].reshape(shape)

        octets = np.ascontiguousarray(arrays["codes"]).view(np.uint8).ravel()
        code = np.stack([octets >> 4, octets & 15], -1).ravel()[:size].reshape(shape)
        found: dict[str, Any] = {"code": code}
        if nested:
            found["scale_code"] = each(arrays["absmax"], block)
            found["largest"] = each(np.repeat(arrays["nested_absmax"], group)[:blocks], block)
            found["offset"] = np.broadcast_to(offset, shape)
            eight = arrays["nested_quant_map"]
            scale = eight[found["scale_code"]] * found["largest"] + offset
        else:
            eight, scale = nf4.dynamic_levels(), each(arrays["absmax"], block)
            found["scale"] = scale
        levels = arrays["quant_map"]
        known = np.array_equal(levels, np.array(nf4.LEVELS, np.float32))
        # their last bits depend on the machine that made them
        close = np.allclose(eight, nf4.dynamic_levels(), rtol=2**-22, atol=0)
        if kind == "nf4" and known and close:
            return Elements("nf4", found)
        why = "fp4, whose levels have no form here" if kind == "fp4" else "levels of its own"
        return Elements("values", {"value": levels[code] * scale}, why=why)

    return Compound(name, parts, shape, decode)
