"""Mistral, Mixtral and GPT-OSS checkpoints."""

from collections.abc import Sequence

import numpy as np

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_rows import Architecture, always, field, nullable, only, required, same_as
from jaxlm.convert.families import expert_weights, layer_types, rope_parameters
from jaxlm.convert.families.llama import (
    ATTENTION,
    ATTENTION_BIASES,
    FFN,
    IGNORED,
    LAYERS,
    OUTER,
    PRE,
    WIDTHS,
)
from jaxlm.convert.weight_rows import Arrays, Row, Table, linear, same
from jaxlm.core import param
from jaxlm.models import mistral

ROWS = [*PRE, *ATTENTION]
# GPT-OSS's own
BIASES = [
    *ATTENTION_BIASES,
    same("attn/sinks", "self_attn.sinks"),
    linear("moe/router", "mlp.router.weight"),
    same("moe/router_bias", "mlp.router.bias"),
]
# Rotary positions of GPT-OSS where its config.json has none.
STRETCHED = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def mixtral_names(cfg: mistral.Config) -> Table:
    """The rows of a Config with experts: one tensor for each expert and matrix, as on disk, or all
    of a layer's in two (`mlp.experts.gate_up_proj`)."""
    count = cfg.experts or 0
    rows = [
        linear("moe/router", "block_sparse_moe.gate.weight"),
        linear("moe/router", "mlp.gate.weight"),
        *expert_weights.rows("moe", "block_sparse_moe.experts.", count, ("w1", "w3", "w2")),
        *expert_weights.rows("moe", "mlp.experts.", count, ("w1", "w3", "w2")),
    ]
    return Table(OUTER, {"stack": weight_rows.Stack(LAYERS, ROWS + rows)}, IGNORED)


def _alternating(even: str, odd: str, theirs: str) -> Row:
    """Two of our weights [E, ..., F] as one of theirs [E, ..., 2F], element after element."""

    def write(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        return [np.stack(arrays, axis=-1).reshape(*arrays[0].shape[:-1], -1)]  # [E, ..., 2F]

    return Row(
        (f"moe/{even}", f"moe/{odd}"),
        (f"mlp.experts.{theirs}",),
        lambda arrays, ps: [arrays[0][..., ::2], arrays[0][..., 1::2]],
        write,
        lambda ps: [(*ps[0].shape[:-1], 2 * ps[0].shape[-1])],
    )


# All experts' matrices are in two tensors that multiply from the right, gate and up alternating.
GPT_OSS_ROWS = [
    *ROWS,
    *BIASES,
    _alternating("gate", "up", "gate_up_proj"),
    _alternating("gate_bias", "up_bias", "gate_up_proj_bias"),
    weight_rows.unchanged("moe/down", "mlp.experts.down_proj"),
    weight_rows.unchanged("moe/down_bias", "mlp.experts.down_proj_bias"),
]
FIELDS = [
    *WIDTHS,
    only("hidden_act", "silu", "swish", export=True),
    nullable("kv", "num_key_value_heads", 8, null=same_as("heads")),
    field("tied", "tie_word_embeddings", False),
]
EXPERTS = [
    required("experts", "num_local_experts", "num_experts"),
    required("active", "num_experts_per_tok"),
]
MISTRAL_FIELDS = [
    *FIELDS,
    field("head", "head_dim", config_rows.head_size),
    rope_parameters.row(131072),
    field("eps", "rms_norm_eps", 1e-6),
    nullable("window", "sliding_window", 4096),
]
MISTRAL_WEIGHTS = Table(OUTER, {"stack": weight_rows.Stack(LAYERS, ROWS + FFN)}, IGNORED)
MISTRAL = Architecture(
    "mistral", mistral.Config, "MistralForCausalLM", MISTRAL_FIELDS, MISTRAL_WEIGHTS
)
MIXTRAL_FIELDS = [
    *FIELDS,
    field("head", "head_dim", config_rows.head_size),
    rope_parameters.row(131072, 1e6),
    field("eps", "rms_norm_eps", 1e-5),
    nullable("window", "sliding_window", None),
    *EXPERTS,
]
MIXTRAL = Architecture(
    "mixtral", mistral.Config, "MixtralForCausalLM", MIXTRAL_FIELDS, mixtral_names
)
GPT_OSS_FIELDS = [
    *FIELDS,
    nullable("head", "head_dim", 64, null=config_rows.head_size),
    rope_parameters.row(131072, 150000.0, absent=STRETCHED),
    field("eps", "rms_norm_eps", 1e-5),
    nullable("window", "sliding_window", 128),
    layer_types.row(lambda f, cfg: layer_types.every(2, cfg.layers)),
    *EXPERTS,
    field("limit", "swiglu_limit", 7.0),
    field("alpha", "swiglu_alpha", 1.702),
    only("attention_bias", True, export=True),
    always(bias=True, sinks=True),
]
GPT_OSS_WEIGHTS = Table(OUTER, {"stack": weight_rows.Stack(LAYERS, GPT_OSS_ROWS)}, IGNORED)
GPT_OSS = Architecture(
    "gpt_oss", mistral.Config, "GptOssForCausalLM", GPT_OSS_FIELDS, GPT_OSS_WEIGHTS
)
