"""PaLM's parallel block and its relatives, tiny."""

import dataclasses

from jaxlm.models import palm
from tests.families.sizes import T, V

PALM = palm.Config(
    vocab=V, embed=16, layers=3, heads=4, kv=2, head=4, ffn=24, context=T, rotary=4,
    logit_scale=0.25,
)  # fmt: skip
CASES = {
    "palm": PALM,
    "palm-all": dataclasses.replace(
        PALM, block="sequential", shared_norm=False, norm_bias=True, attn_bias=True, qk_norm=True,
        rotary=2, alibi=0.5, activation="gelu", gated=False, ffn_bias=True, tied=False,
        unembed_bias=True,
    ),
}  # fmt: skip
VOID: dict[str, tuple[str, ...]] = {}

_SIZES = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
_GPTJ = {
    "model_type": "gptj", "architecture": "GPTJForCausalLM", "vocab_size": 97, "n_embd": 32,
    "n_layer": 3, "n_head": 4, "n_positions": 128, "rotary_dim": 4,
}  # fmt: skip
_NEOX = _SIZES | {
    "model_type": "gpt_neox", "architecture": "GPTNeoXForCausalLM", "intermediate_size": 48,
}  # fmt: skip
_FALCON = _SIZES | {"model_type": "falcon", "architecture": "FalconForCausalLM"}
_FALCON_40B = _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
# with 4 heads ALiBi's slopes are powers of two, which bfloat16 holds exactly
_FALCON_RW = _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
_COHERE = _SIZES | {
    "model_type": "cohere", "architecture": "CohereForCausalLM", "intermediate_size": 48,
    "num_key_value_heads": 2, "logit_scale": 0.5,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
ORACLES = {
    "gptj": _GPTJ,
    "gptj-tied": _GPTJ | {
        "rotary_dim": 8, "n_inner": 48, "activation_function": "gelu", "tie_word_embeddings": True,
    },
    "neox": _NEOX,
    "neox-sequential": _NEOX | {
        "use_parallel_residual": False, "hidden_act": "gelu_fast", "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5,
        },
    },
    "neox-linear": _NEOX | {
        "attention_bias": False, "rope_parameters": _LINEAR | {"partial_rotary_factor": 0.5},
    },
    "neox-yarn": _NEOX | {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 32, "partial_rotary_factor": 1.0,
        },
    },
    "falcon-7b": _FALCON,
    "falcon-40b": _FALCON_40B | {"ffn_hidden_size": 48, "tie_word_embeddings": False},
    "falcon-11b": _FALCON_40B | {
        "num_ln_in_parallel_attn": 1, "bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500042.0},
    },
    "falcon-multi-head": _FALCON | {"multi_query": False, "rope_parameters": _LINEAR},
    "falcon-rw": _FALCON_RW,
    "falcon-rw-parallel": _FALCON_RW | {"parallel_attn": True, "multi_query": True},
    "cohere": _COHERE,
    "cohere-qk-norm": _COHERE | {
        "use_qk_norm": True, "attention_bias": True, "logit_scale": 0.25, "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 8e6},
    },
    "cohere-multi-query": _COHERE | {
        "logit_scale": 0.0625, "num_key_value_heads": 1, "tie_word_embeddings": False,
        "rope_parameters": _LINEAR,
    },
}  # fmt: skip
