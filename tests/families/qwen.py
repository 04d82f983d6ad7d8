"""Qwen 2 with windows and YaRN, and Qwen 3 with experts as Qwen 2 MoE has them, tiny."""

import dataclasses

from jaxlm.models import qwen
from jaxlm.ops import rope
from tests.families.sizes import T, V

QWEN = qwen.Config(
    vocab=V, embed=16, layers=3, heads=4, kv=2, head=4, ffn=24, context=T, bias=True, tied=True,
    pattern=("global", "local", "local"), window=3, scaling=rope.Yarn(factor=4.0, original=4),
)  # fmt: skip
CASES = {
    "qwen": QWEN,
    "qwen-moe": dataclasses.replace(
        QWEN, pattern=("global",), window=None, scaling=None, qk_norm=True, out_bias=True,
        tied=False, experts=4, active=2, expert_ffn=8, shared_ffn=12, dense=(0,),
    ),
}  # fmt: skip
VOID: dict[str, tuple[str, ...]] = {}

_QWEN2 = {
    "model_type": "qwen2", "architecture": "Qwen2ForCausalLM", "vocab_size": 97, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
_QWEN3 = _QWEN2 | {
    "model_type": "qwen3", "architecture": "Qwen3ForCausalLM", "head_dim": 16,
}  # fmt: skip
_QWEN3_MOE = _QWEN3 | {
    "model_type": "qwen3_moe", "architecture": "Qwen3MoeForCausalLM", "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
}  # fmt: skip
_QWEN2_MOE = _QWEN2 | {
    "model_type": "qwen2_moe", "architecture": "Qwen2MoeForCausalLM", "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
}  # fmt: skip
_YARN = {
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip
ORACLES = {
    "qwen2": _QWEN2,
    "qwen2-window": _QWEN2 | {
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen2-yarn": _QWEN2 | _YARN,
    "qwen2-old-yarn": _QWEN2 | {
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "qwen3": _QWEN3,
    "qwen3-window": _QWEN3 | {
        "use_sliding_window": True, "sliding_window": 5, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3-yarn": _QWEN3 | _YARN,
    "qwen3-bias": _QWEN3 | {"attention_bias": True},
    "qwen3-moe": _QWEN3_MOE | {"decoder_sparse_step": 2, "norm_topk_prob": False},
    "qwen3-moe-window": _QWEN3_MOE | {
        "mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 5,
        "tie_word_embeddings": True,
    },
    "qwen3-moe-bias": _QWEN3_MOE | {"attention_bias": True},
    "qwen2-moe": _QWEN2_MOE | {"mlp_only_layers": [0]},
    "qwen2-moe-window": _QWEN2_MOE | {
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
        "norm_topk_prob": True, "qkv_bias": False,
    },
}  # fmt: skip
