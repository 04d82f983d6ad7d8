"""Weights in few bits: checkpoints of others, read and written, and runs that are made here.

To add a format: a function from its quantization_config to a Format, and a line in METHODS.
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.convert import tensor_files
from jaxlm.convert.config_json import Fields
from jaxlm.convert.quantised import (
    bitsandbytes_layout,
    block_layouts,
    compressed_tensors_layout,
    gptq_layout,
)
from jaxlm.convert.quantised.compound import Format
from jaxlm.core import json_file

METHODS: dict[str, Callable[[Fields], Format]] = {
    "gptq": gptq_layout.gptq,
    "awq": gptq_layout.awq,
    "compressed-tensors": compressed_tensors_layout.compressed_tensors,
    "bitsandbytes": bitsandbytes_layout.bitsandbytes,
    "mxfp4": block_layouts.mxfp4,
    "fp8": block_layouts.fp8,
}
# Files of older libraries with what is in config.json elsewhere; the method that each means.
FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# Their matrices are [inputs, outputs], which quantised checkpoints of them are not.
CONV1D = ("gpt2", "openai-gpt")


def declared(
    folder: str | os.PathLike[str], record: Mapping[str, Any], where: str
) -> Format | None:
    """The Format that a checkpoint with this config.json stores its weights in; None where it says
    nothing of few bits.

    Raises: ValueError for a method or settings that are not read here, and for files that
    contradict each other.
    """
    folder, own = pathlib.Path(folder), record.get("quantization_config")
    for name, method in FILES.items():
        if not (folder / name).is_file():
            continue
        apart = {"quant_method": method} | json_file.read_object(tensor_files.inside(folder, name))
        both = {k: (own[k], v) for k, v in apart.items() if own and k in own and own[k] != v}
        if both:
            raise ValueError(f"{where} and {name} disagree: {both}; they must be the same")
        own, where = own or apart, where if own else str(folder / name)
    return None if not own else understood(own, record.get("model_type"), where)


def understood(record: Any, kind: str | None, where: str) -> Format:
    """The Format of a quantization_config, every field of it accounted for. Raises: ValueError."""
    method = record.get("quant_method") if isinstance(record, Mapping) else None
    if method not in METHODS:
        raise ValueError(
            f"{where}: quant_method={method!r} is not supported in quantization_config; there is "
            f"{sorted(METHODS)}"
        )
    if kind in CONV1D:
        raise ValueError(f"{where}: quantization_config is not supported with model_type={kind}")
    try:
        return METHODS[method](Fields(record, "quantization_config"))
    except ValueError as error:
        text = str(error).partition(" If you know")[0]
        raise ValueError(f"{where}: {method}: {text}") from error
