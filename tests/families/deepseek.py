"""DeepSeek V3 with multi-token prediction, and V2 without the queries' latent, tiny."""

import dataclasses

from jaxlm.models import deepseek
from jaxlm.ops import rope
from tests.families.sizes import T, V

DEEPSEEK = deepseek.Config(
    vocab=V, embed=16, layers=3, dense=1, heads=4, q_rank=8, rank=8, nope=4, rotary=4, value=6,
    ffn=24, experts=8, active=2, expert_ffn=8, groups=4, groups_chosen=2, context=T, ahead=1,
    scaling=rope.Yarn(8.0, 4, mscale=1.0, mscale_all=0.7),
)  # fmt: skip
CASES = {
    "deepseek": DEEPSEEK,
    "deepseek-v2": dataclasses.replace(
        DEEPSEEK, q_rank=None, shared=2, score="softmax", select_bias=False, renormalise=False,
        group_best=1, ahead=0, scaling=None,
    ),
}  # fmt: skip

# It decides which experts are chosen, and nothing else.
SELECTS = ("select_bias",)
VOID = {"deepseek": SELECTS}

_TINY = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "kv_lora_rank": 16,
    "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6, "v_head_dim": 10,
    "first_k_dense_replace": 1, "max_position_embeddings": 128,
}  # fmt: skip
_V2 = {"model_type": "deepseek_v2", "architecture": "DeepseekV2ForCausalLM"} | _TINY
_V3 = {
    "model_type": "deepseek_v3", "architecture": "DeepseekV3ForCausalLM", "n_group": 4,
    "topk_group": 2,
} | _TINY  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
ORACLES: dict[str, dict] = {
    "deepseek-v3": _V3,
    "deepseek-v3-yarn": _V3 | {
        "rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "q_lora_rank": None,
        "routed_scaling_factor": 1.5, "rope_interleave": False,
    },
    "deepseek-v3-all-dense": _V3 | {"first_k_dense_replace": 3, "tie_word_embeddings": True},
    "deepseek-v2": _V2 | {
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "routed_scaling_factor": 16.0,
    },
    "deepseek-v2-lite": _V2 | {
        "rope_parameters": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.9}, "q_lora_rank": None,
    },
}  # fmt: skip
