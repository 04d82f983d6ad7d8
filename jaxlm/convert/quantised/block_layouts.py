"""Blocks with a scale of their own: GPT-OSS's experts in MXFP4, DeepSeek's float8.

    mxfp4   experts.NAME_blocks uint8[E, outputs, inputs / 32, 16], the first number in the low bits
            experts.NAME_scales uint8[E, outputs, inputs / 32]: E8M0
            of experts.NAME float[E, inputs, outputs]
    fp8     weight float8 E4M3 [outputs, inputs]
            weight_scale_inv float32[outputs / 128, inputs / 128]: what the block is multiplied by

Open Compute Project, Microscaling Formats 1.0; DeepSeek-AI 2024 (V3), section 3.3.
"""

import numpy as np

from jaxlm.convert.config_json import Fields
from jaxlm.convert.quantised import compound
from jaxlm.convert.quantised.compound import Compound, Format
from jaxlm.convert.quantised.elements import Elements
from jaxlm.convert.tensor_files import DTYPES, Tensor
from jaxlm.ops.quant import mxfp4 as codes

INPUTS = "its matrices' inputs are to be rounded to float8, too (activation_scheme); here none is"


def mxfp4(f: Fields) -> Format:
    """The Format of a quantization_config of method "mxfp4", as GPT-OSS has it."""
    for name in ("quant_method", "modules_to_not_convert", "dequantize"):
        f.get(name, None)
    f.refuse_rest()
    suffixes = {"codes": "_blocks", "scales": "_scales"}
    return Format(
        "mxfp4", lambda tensors: compound.gather(tensors, suffixes, "codes", _experts, weight="")
    )


def _experts(name: str, parts: dict[str, Tensor]) -> Compound:
    compound.expect(name, parts["codes"], (None, None, None, codes.BLOCK // 2), ("U8",))
    experts, outputs, blocks, _ = parts["codes"].shape
    compound.expect(name, parts["scales"], (experts, outputs, blocks), ("U8",))
    inputs = blocks * codes.BLOCK

    def decode(arrays: dict[str, np.ndarray]) -> Elements:
        if (arrays["scales"] == 255).any():
            raise ValueError("a scale of 255, which is not a number in E8M0")
        octets = arrays["codes"]
        code = np.stack([octets & 15, octets >> 4], -1).reshape(experts, outputs, inputs)
        scale = compound.spread(arrays["scales"], codes.BLOCK)
        # [experts, inputs, outputs]
        return Elements("mxfp4", {"code": code.swapaxes(1, 2), "scale": scale.swapaxes(1, 2)})

    return Compound(name, parts, (experts, inputs, outputs), decode)


def fp8(f: Fields) -> Format:
    """The Format of a quantization_config of method "fp8", as DeepSeek-V3 has it."""
    f.only("fmt", "e4m3")
    f.only("scale_fmt", "float")
    block = f.get("weight_block_size", [128, 128])
    if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)):
        raise ValueError(f"weight_block_size={block!r} given; [rows, columns]")
    rows, columns = block
    if min(block) < 1:
        raise ValueError(f"weight_block_size={block!r} given; sizes of at least 1")
    for name in ("quant_method", "activation_scheme", "modules_to_not_convert", "dequantize"):
        f.get(name, None)
    f.refuse_rest()

    def make(name: str, parts: dict[str, Tensor]) -> Compound:
        compound.expect(name, parts["codes"], (None, None), ("F8_E4M3",))
        outputs, inputs = parts["codes"].shape
        counts = (-(-outputs // rows), -(-inputs // columns))
        compound.expect(name, parts["scales"], counts, tuple(DTYPES))

        def decode(arrays: dict[str, np.ndarray]) -> Elements:
            scale = np.repeat(arrays["scales"].astype(np.float32), rows, 0)[:outputs]
            scale = np.repeat(scale, columns, 1)[:, :inputs]
            return Elements("float8", {"code": arrays["codes"].view(np.uint8), "scale": scale})

        return Compound(name, parts, (outputs, inputs), decode)

    suffixes = {"codes": ".weight", "scales": ".weight_scale_inv"}
    skipped = (".input_scale", ".activation_scale")
    return Format(
        "float8 in blocks",
        lambda tensors: compound.gather(tensors, suffixes, "scales", make, skipped=skipped),
        (INPUTS,),
    )
