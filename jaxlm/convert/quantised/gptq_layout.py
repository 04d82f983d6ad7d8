"""GPTQ's and AWQ's files: integers in words of 32 bits, with a zero and a scale for each group.

    GPTQ    qweight int32[inputs * bits / 32, outputs]    along inputs, from the low bits on
            qzeros int32[groups, outputs * bits / 32]     "gptq" (v1): zero - 1; "gptq_v2": zero
            scales float16[groups, outputs]               g_idx int32[inputs]: the group of an input
    AWQ     qweight int32[inputs, outputs / 8]            the outputs 0 2 4 6 1 3 5 7 of every eight
            qzeros int32[groups, outputs / 8], alike      scales float16[groups, outputs]

w = scale * (code - zero). Frantar et al. 2023 and Lin et al. 2024, as AutoGPTQ and AutoAWQ save
them.
"""

import functools
from typing import Any

import numpy as np

from jaxlm.convert.config_json import Fields
from jaxlm.convert.quantised import compound
from jaxlm.convert.quantised.compound import Compound, Format
from jaxlm.convert.quantised.elements import Elements
from jaxlm.convert.tensor_files import DTYPES, Tensor

# How the codes were found, or what a library does with them.
GPTQ_FACTS = (
    "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "dataset", "mse",
    "model_name_or_path", "model_file_base_name", "block_name_to_quantize", "model_seqlen",
    "module_name_preceding_first_block", "modules_in_block_to_quantize", "use_cuda_fp16",
    "use_exllama", "disable_exllama", "exllama_config", "max_input_length", "batch_size",
    "cache_block_outputs", "pad_token_id", "backend", "meta", "lm_head", "tokenizer",
    "quant_method",
)  # fmt: skip
AWQ_FACTS = (
    "modules_to_not_convert", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "backend",
    "exllama_config", "quant_method", "model_name_or_path",
)  # fmt: skip
NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
TENSORS = {"codes": ".qweight", "zeros": ".qzeros", "scales": ".scales"}


def _group(f: Fields, *names: str) -> int | None:
    """Inputs that share a scale; None is all. Raises: ValueError for what is no number of them."""
    size = f.take(*names)
    if size == -1:
        return None
    if type(size) is not int or size < 1:
        raise ValueError(f"group_size={size!r} given; a number of inputs, or -1 for all of them")
    return size


def _skip(f: Fields, names: tuple[str, ...]) -> None:
    for name in names:
        f.get(name, None)
    f.refuse_rest()


def gptq(f: Fields) -> Format:
    """The Format of a quantization_config of method "gptq".

    Raises: ValueError for bits other than 2, 4 and 8, other layouts, and matrices of several bits.
    """
    bits = f.take("bits", "w_bit")
    if bits not in (2, 4, 8):
        raise ValueError(f"bits={bits!r} is not supported in GPTQ's files; there is 2, 4, 8")
    size, ordered, even = _group(f, "group_size"), f.take("desc_act"), f.take("sym")
    offset = f.among("checkpoint_format", "gptq", {"gptq": 1, "gptq_v2": 0})
    f.only("is_marlin_format", False)
    f.only("pack_dtype", "int32")
    for pattern, other in (f.get("dynamic", None) or {}).items():
        if not pattern.startswith("-:"):  # those are left as they were
            raise ValueError(
                f"dynamic={{{pattern!r}: {other!r}}} is not supported: matrices of several formats "
                "in one checkpoint; one of a single format is read"
            )
    _skip(f, GPTQ_FACTS)
    make = functools.partial(_gptq, bits, size, bool(ordered), bool(even), offset)
    suffixes = TENSORS | {"groups": ".g_idx"}
    optional = () if ordered else ("groups",)
    name = f"int{bits} of GPTQ"
    return Format(name, lambda tensors: compound.gather(tensors, suffixes, "codes", make, optional))


def _gptq(
    bits: int,
    size: int | None,
    ordered: bool,
    even: bool,
    offset: int,
    name: str,
    parts: dict[str, Tensor],
) -> Compound:
    """The Compound of a matrix. ordered: desc_act; even: sym; offset: zeros are stored less it."""
    each = 32 // bits
    compound.expect(name, parts["codes"], (None, None), ("I32",))
    words, outputs = parts["codes"].shape
    inputs = words * each
    count = 1 if size is None else -(-inputs // size)
    compound.expect(name, parts["zeros"], (count, -(-outputs // each)), ("I32",))
    compound.expect(name, parts["scales"], (count, outputs), tuple(DTYPES))
    if "groups" in parts:
        compound.expect(name, parts["groups"], (inputs,), ("I32",))

    def decode(arrays: dict[str, np.ndarray]) -> Elements:
        code = compound.unpack(arrays["codes"].T, bits)  # [outputs, inputs]
        zeros = compound.unpack(arrays["zeros"], bits)[:, :outputs]  # [groups, outputs]
        plain = np.arange(inputs) // (inputs if size is None else size)
        group = arrays.get("groups", plain)
        _check_groups(group, plain, count, ordered)
        parts: dict[str, Any] = {"code": code, "scale": arrays["scales"].T[:, group]}
        _check_zeros(zeros, bits, offset, even)
        if not even:
            parts["zero"] = (zeros + np.uint8(offset)).T[:, group]
        if ordered:
            parts["group"] = np.broadcast_to(group.astype(np.int32), code.shape)
        return Elements("integers", parts, bits, size)

    return Compound(name, parts, (outputs, inputs), decode)


def _check_groups(group: np.ndarray, plain: np.ndarray, count: int, ordered: bool) -> None:
    if group.min() < 0 or group.max() >= count:
        raise ValueError(f"g_idx has groups {group.min()} to {group.max()}; there are {count}")
    if not ordered and (group != plain).any():
        raise ValueError(
            "g_idx is not in the order of the inputs, and desc_act=false: some libraries follow "
            "the one and some the other; desc_act=true is right for such a g_idx"
        )


def _check_zeros(zeros: np.ndarray, bits: int, offset: int, even: bool) -> None:
    """zeros: as they are stored."""
    half, most = 2 ** (bits - 1), 2**bits - 1
    kind = {1: "gptq (v1, zero - 1)", 0: "gptq_v2"}[offset]
    if even and (zeros != half - offset).any():
        odd = int(zeros[zeros != half - offset][0])
        raise ValueError(
            f"qzeros has {odd} with sym=true, and {half - offset} is what checkpoint_format {kind} "
            f"stores for a zero of {half}; if the file is of the other format, correct "
            "checkpoint_format, and if it is not symmetric, sym"
        )
    if offset and (zeros == most).any():
        raise ValueError(
            f"qzeros has {most} with checkpoint_format {kind}: it is {most + 1} to some kernels "
            "and 0 to others; convert the checkpoint to gptq_v2"
        )


def awq(f: Fields) -> Format:
    """The Format of a quantization_config of method "awq". Raises: ValueError for other layouts
    than "gemm", other bits than 4, and symmetric integers."""
    bits = f.take("bits", "w_bit")
    if bits != 4:
        raise ValueError(f"bits={bits!r} is not supported in AWQ's files; there is 4")
    size = _group(f, "group_size", "q_group_size")
    for name in ("version", "format"):
        version = f.get(name, "gemm")
        if not isinstance(version, str) or version.lower() != "gemm":
            raise ValueError(f"{name}={version!r} is not supported in AWQ's files; there is 'gemm'")
    f.only("zero_point", True)
    _skip(f, AWQ_FACTS)
    make = functools.partial(_awq, size)
    return Format("int4 of AWQ", lambda t: compound.gather(t, TENSORS, "codes", make))


def _awq(size: int | None, name: str, parts: dict[str, Tensor]) -> Compound:
    compound.expect(name, parts["codes"], (None, None), ("I32",))
    inputs, words = parts["codes"].shape
    count = compound.groups(name, inputs, size)
    compound.expect(name, parts["zeros"], (count, words), ("I32",))
    compound.expect(name, parts["scales"], (count, 8 * words), tuple(DTYPES))

    def decode(arrays: dict[str, np.ndarray]) -> Elements:
        code, zero = (_in_order(compound.unpack(arrays[k], 4)).T for k in ("codes", "zeros"))
        each = inputs // count
        zero, scale = (compound.spread(x, each) for x in (zero, arrays["scales"].T))
        return Elements("integers", {"code": code, "scale": scale, "zero": zero}, 4, size)

    return Compound(name, parts, (8 * words, inputs), decode)


def _in_order(codes: np.ndarray) -> np.ndarray:
    """Codes [n, outputs] in the order of the outputs."""
    eights = codes.reshape(len(codes), -1, 8)
    return eights[..., np.argsort(NIBBLES)].reshape(codes.shape)
