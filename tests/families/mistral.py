"""A mixture of experts with a window, and with everything, tiny."""

import dataclasses

from jaxlm.models import mistral
from tests.families.sizes import T, V

MISTRAL = mistral.Config(
    vocab=V, embed=16, layers=3, heads=4, kv=2, head=4, ffn=8, context=T, window=3, experts=4
)
CASES = {
    "mistral": MISTRAL,
    "mistral-oss": dataclasses.replace(
        MISTRAL, bias=True, sinks=True, pattern=("local", "global"), limit=1.0, tied=True
    ),
}
VOID: dict[str, tuple[str, ...]] = {}

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "architecture": "MixtralForCausalLM", **SHAPE,
    "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "architecture": "GptOssForCausalLM", **SHAPE, "head_dim": 16,
    "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
# Variants whose live comparison with transformers has to hold.
ORACLES: dict[str, dict] = {
    "mistral_window": {
        "model_type": "mistral", "architecture": "MistralForCausalLM", **SHAPE, "sliding_window": 4,
    },
    "mistral_tied_yarn": {
        "model_type": "mistral", "architecture": "MistralForCausalLM", **SHAPE, "head_dim": 16,
        "sliding_window": None, "tie_word_embeddings": True, "rope_parameters": YARN,
    },
    "mixtral": MIXTRAL,
    "mixtral_window_top1": {**MIXTRAL, "sliding_window": 5, "num_experts_per_tok": 1},
    "gpt_oss": GPT_OSS,
    "gpt_oss_full": {
        **GPT_OSS, "layer_types": ["full_attention"] * 3, "swiglu_limit": 0.5,
        "num_experts_per_tok": 3,
    },
}  # fmt: skip
