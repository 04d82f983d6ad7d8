"""Gemma 1, and all that Gemma 2 and 3 add at once, tiny."""

import dataclasses

from jaxlm.models import gemma
from jaxlm.ops import rope
from tests.families.sizes import T, V

GEMMA = gemma.Config(vocab=V, embed=16, layers=2, heads=4, kv=2, head=4, ffn=24, context=T)
CASES = {
    "gemma": GEMMA,
    "gemma-all": dataclasses.replace(
        GEMMA, layers=3, pattern=("local", "global"), window=3, theta=1e6, local_theta=1e4,
        scaling=rope.Linear(8.0), query_scalar=6, score_softcap=5.0, softcap=3.0, sandwich=True,
        qk_norm=True, tied=False,
    ),
}  # fmt: skip
VOID: dict[str, tuple[str, ...]] = {}

_GEMMA1 = {
    "model_type": "gemma", "architecture": "GemmaForCausalLM", "vocab_size": 97, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
_GEMMA2 = _GEMMA1 | {
    "model_type": "gemma2", "architecture": "Gemma2ForCausalLM", "sliding_window": 5,
    "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    "num_hidden_layers": 3,
}  # fmt: skip
_GEMMA3 = _GEMMA1 | {
    "model_type": "gemma3_text", "architecture": "Gemma3ForCausalLM", "sliding_window": 5,
    "query_pre_attn_scalar": 24, "num_hidden_layers": 4, "sliding_window_pattern": 3,
}  # fmt: skip
ORACLES = {
    "gemma-mqa": _GEMMA1 | {"num_key_value_heads": 1},
    "gemma-untied": _GEMMA1 | {"tie_word_embeddings": False},
    # smaller heads keep scores small: the last bit of an angle counts by their size
    "gemma-yarn": _GEMMA1 | {
        "head_dim": 8, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "gemma2": _GEMMA2,
    "gemma2-linear": _GEMMA2 | {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
    "gemma3": _GEMMA3,
    "gemma3-old": _GEMMA3 | {
        "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma3-untied": _GEMMA3 | {
        "layer_types": ["full_attention"] + 3 * ["sliding_attention"], "tie_word_embeddings": False,
        "final_logit_softcapping": 3.0,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    },
}  # fmt: skip
