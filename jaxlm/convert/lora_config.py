"""peft's adapter_config.json: read so that no field of LoraConfig is overlooked.

`tests/convert/test_peft_law.py` sets every field of LoraConfig to another value: where the adapted
model's logits move, the field is followed here or refused by name.
"""

import math
import os
import pathlib
import re
from collections.abc import Collection
from typing import Any

from jaxlm.convert import tensor_files
from jaxlm.core import json_file

NAME = "adapter_config.json"

# Fields that are followed, with peft's defaults.
FOLLOWED: dict[str, Any] = {
    "r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "rank_pattern": {},
    "alpha_pattern": {},
}  # fmt: skip
# Fields that decide which layers have adapters; a layer that has tensors all the same is refused.
CHOOSING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# Fields that change nothing an adapter computes, as the law shows.
HARMLESS = (
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "fan_in_fan_out",
    "inference_mode", "loftq_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
)  # fmt: skip
# Initialisations that leave the weights underneath as they are. All others (PiSSA, OLoRA, CorDA,
# LoftQ, LoRA-GA, ...) take something away from them, which the files do not hold.
INITS = (True, False, None, "gaussian", "orthogonal", "eva")


def read(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields, defaults filled in.

    Raises: FileNotFoundError without the file; ValueError for a kind of adapter, an initialisation
    or a field that is not supported.
    """
    file = pathlib.Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no adapter of peft: it has no {NAME}")
    record = json_file.read_object(tensor_files.inside(file.parent, file.name))
    if record.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type={record.get('peft_type')!r}; only LORA is read")
    init = record.get("init_lora_weights", True)
    if not any(init is known or init == known for known in INITS):
        raise ValueError(
            f"{file}: init_lora_weights={init!r} is not supported: this initialisation changed the "
            "weights underneath, and the adapter belongs on those. Let peft save it as plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion), or merge it there "
            "(merge_and_unload) and import the whole model"
        )
    known = {*FOLLOWED, *CHOOSING, *HARMLESS, "init_lora_weights"}
    for name, value in record.items():
        if value and value != "none" and name not in known:
            raise ValueError(f"{file}: {name}={value!r} is not supported")
    return FOLLOWED | {k: v for k, v in record.items() if v is not None}


def refuse_unchosen(
    file: str | os.PathLike[str], record: dict[str, Any], modules: Collection[str]
) -> None:
    """Raises: ValueError for a module with tensors that the config gives no adapter to: peft leaves
    them out, and what was meant is unknown."""
    for module in modules:
        culprit = _against(record, module)
        if culprit is not None:
            raise ValueError(
                f"{file}: {culprit}={record[culprit]!r} leaves out {module}, which has tensors"
            )


def _against(record: dict[str, Any], module: str) -> str | None:
    """The field by which a module has no adapter; None where it has one."""
    if record.get("exclude_modules") and _matches(record["exclude_modules"], module):
        return "exclude_modules"
    targets = record.get("target_modules")
    if targets and targets != "all-linear" and not _matches(targets, module):
        return "target_modules"
    layers = record.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return None
    names = record.get("layers_pattern") or r"[^.]*"
    names = [names] if isinstance(names, str) else names
    matches = [re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module) for name in names]
    number = next((int(match[1]) for match in matches if match), None)
    if number in ([layers] if isinstance(layers, int) else layers):
        return None
    return "layers_to_transform" if number is not None else "layers_pattern"


def _matches(wanted: str | list[str], module: str) -> bool:
    """Whether a module is one of those wanted: by a pattern of whole names, or by their ends."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == end or module.endswith(f".{end}") for end in wanted)


def rank(record: dict[str, Any], module: str) -> int:
    """The rank of a module's adapter."""
    return _of(record["rank_pattern"], module, record["r"])


def scale(record: dict[str, Any], module: str | None = None) -> float:
    """Factor on the product of a module's two matrices. module: None for modules that no pattern
    names."""
    r, alpha = record["r"], record["lora_alpha"]
    if module is not None:
        r, alpha = rank(record, module), _of(record["alpha_pattern"], module, alpha)
    return alpha / (math.sqrt(r) if record["use_rslora"] else r)


def _of(pattern: dict[str, Any], name: str, other: Any) -> Any:
    """The value of the first pattern that a module's name ends in."""
    for ending, value in pattern.items():
        if re.match(rf"(.*\.)?({ending})$", name):
            return value
    return other
