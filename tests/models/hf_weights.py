"""Weights of transformers' checkpoints as our trees: one table of names per family.

Each row is (our path, their name, how their array becomes ours). `{i}` is the layer; rows whose
weight the spec does not have are left out, so that biases, QK-norm and tying need no flag.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm import models
from jaxlm.core import param

Array = np.ndarray
Make = Callable[[Array, tuple[int, ...]], Array]


def _plain(a: Array, shape: tuple[int, ...]) -> Array:
    return a.reshape(shape)


def _transposed(a: Array, shape: tuple[int, ...]) -> Array:
    """torch.nn.Linear stores [out, in]."""
    return a.T.reshape(shape)


def _third(n: int) -> Make:
    """GPT's query, key and value are thirds of one [in, 3 out] (or [3 out]) array."""

    def take(a: Array, shape: tuple[int, ...]) -> Array:
        return np.split(a, 3, axis=-1)[n].reshape(shape)

    return take


def _gpt(prefix: str, table: str, positions: str) -> list[tuple[str, str, Make]]:
    rows: list[tuple[str, str, Make]] = [
        ("embed/table", table, _plain),
        ("embed/positions", positions, _plain),
        ("norm/scale", f"{prefix}ln_f.weight", _plain),
        ("norm/bias", f"{prefix}ln_f.bias", _plain),
        ("unembed", "lm_head.weight", _transposed),
    ]
    layer = prefix + "h.{i}."
    for n, name in enumerate("qkv"):
        rows += [
            (f"attn/{name}", f"{layer}attn.c_attn.weight", _third(n)),
            (f"attn/{name}_bias", f"{layer}attn.c_attn.bias", _third(n)),
        ]
    for ours, theirs in (
        ("attn/o", "attn.c_proj.weight"),
        ("attn/o_bias", "attn.c_proj.bias"),
        ("ffn/up", "mlp.c_fc.weight"),
        ("ffn/up_bias", "mlp.c_fc.bias"),
        ("ffn/down", "mlp.c_proj.weight"),
        ("ffn/down_bias", "mlp.c_proj.bias"),
        ("attn_norm/scale", "ln_1.weight"),
        ("attn_norm/bias", "ln_1.bias"),
        ("ffn_norm/scale", "ln_2.weight"),
        ("ffn_norm/bias", "ln_2.bias"),
    ):
        rows.append((ours, layer + theirs, _plain))
    return rows


LAYER = "model.layers.{i}."
NAMES: dict[str, list[tuple[str, str, Make]]] = {
    "gpt2": _gpt("transformer.", "transformer.wte.weight", "transformer.wpe.weight"),
    "gpt1": _gpt(
        "transformer.",
        "transformer.tokens_embed.weight",
        "transformer.positions_embed.weight",
    ),
    # LLaMA, Mistral, Qwen 2 and Qwen 3 use the same names
    "llama": [
        ("embed/table", "model.embed_tokens.weight", _plain),
        ("norm", "model.norm.weight", _plain),
        ("unembed", "lm_head.weight", _transposed),
        ("attn_norm", LAYER + "input_layernorm.weight", _plain),
        ("ffn_norm", LAYER + "post_attention_layernorm.weight", _plain),
        ("attn/q", LAYER + "self_attn.q_proj.weight", _transposed),
        ("attn/k", LAYER + "self_attn.k_proj.weight", _transposed),
        ("attn/v", LAYER + "self_attn.v_proj.weight", _transposed),
        ("attn/o", LAYER + "self_attn.o_proj.weight", _transposed),
        ("attn/q_bias", LAYER + "self_attn.q_proj.bias", _plain),
        ("attn/k_bias", LAYER + "self_attn.k_proj.bias", _plain),
        ("attn/v_bias", LAYER + "self_attn.v_proj.bias", _plain),
        ("attn/q_norm", LAYER + "self_attn.q_norm.weight", _plain),
        ("attn/k_norm", LAYER + "self_attn.k_norm.weight", _plain),
        ("ffn/gate", LAYER + "mlp.gate_proj.weight", _transposed),
        ("ffn/up", LAYER + "mlp.up_proj.weight", _transposed),
        ("ffn/down", LAYER + "mlp.down_proj.weight", _transposed),
    ],
}


def convert(table: str, cfg: models.AnyConfig, theirs: dict[str, Array]) -> param.Tree:
    """Our tree [float32] for a Config of one kind of layer, from their state dict.

    Raises: KeyError for a weight of ours that the table or their dict lacks.
    """
    rows = {ours: (name, make) for ours, name, make in NAMES[table]}

    def leaf(path: str, p: param.Param) -> Array:
        if not path.startswith("stack/"):
            name, make = rows[path]
            return make(theirs[name], p.shape)
        name, make = rows[path.split("/", 3)[3]]  # stack / segment / kind / weight
        layers = [make(theirs[name.format(i=i)], p.shape[1:]) for i in range(p.shape[0])]
        return np.stack(layers)

    flat = {path: leaf(path, p) for path, p in param.flatten(models.spec(cfg)).items()}
    return nested(flat)


def nested(flat: dict[str, Any]) -> param.Tree:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = value
    return tree
