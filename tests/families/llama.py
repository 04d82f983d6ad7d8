"""LLaMA, plain and with everything, tiny."""

import dataclasses

from jaxlm.models import llama
from jaxlm.ops import rope
from tests.families.sizes import T, V

LLAMA = llama.Config(vocab=V, embed=16, layers=3, heads=4, kv=2, head=4, ffn=24, context=T)
CASES = {
    "llama": LLAMA,
    "llama-all": dataclasses.replace(
        LLAMA, bias=True, qk_norm=True, window=3, tied=True, softcap=20.0
    ),
    "llama-post": dataclasses.replace(
        LLAMA, norm="post", qk_norm_all=True, out_bias=True, ffn_bias=True, activation="relu2",
        rotary_share=0.5, scaling=rope.Yarn(factor=4.0, original=4),
    ),
}  # fmt: skip
VOID: dict[str, tuple[str, ...]] = {}

_LLAMA = {
    "model_type": "llama", "architecture": "LlamaForCausalLM", "vocab_size": 97, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
}  # fmt: skip
_OLMO2 = {
    "model_type": "olmo2", "architecture": "Olmo2ForCausalLM", "vocab_size": 97, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_PHI3 = _OLMO2 | {"model_type": "phi3", "architecture": "Phi3ForCausalLM", "pad_token_id": 0}
_SHORT, _LONG = [1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 4.0, 8.0]


def _rope(rope_type: str, **parameters: object) -> dict:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4, **parameters}}


# Rows are longer than an original context of 16, and shorter than one of 4096.
ORACLES: dict[str, dict] = {
    "llama": _LLAMA | {"num_key_value_heads": 4},
    "llama-tied": _LLAMA | {"tie_word_embeddings": True, "hidden_act": "gelu"},
    "llama-bias": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-old-theta": _LLAMA | {"rope_theta": 5e5},
    "llama-linear": _LLAMA | _rope("linear", factor=4.0),
    "llama-old-linear": _LLAMA | {
        "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}
    },
    "llama-dynamic": _LLAMA | {"max_position_embeddings": 16} | _rope("dynamic", factor=4.0),
    "llama-llama3": _LLAMA | _rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16,
    ),
    "llama-yarn": _LLAMA | _rope("yarn", factor=4.0, original_max_position_embeddings=4),
    "llama-yarn-mscale": _LLAMA | _rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.1,
        beta_fast=8.0, beta_slow=2.0, truncate=False,
    ),
    "llama-longrope": _LLAMA | _rope(
        "longrope", factor=4.0, original_max_position_embeddings=4096, short_factor=_SHORT,
        long_factor=_LONG,
    ),
    "olmo2": _OLMO2,
    "olmo2-bias": _OLMO2 | {"attention_bias": True, "tie_word_embeddings": True},
    "olmo2-yarn": _OLMO2 | _rope("yarn", factor=8.0, original_max_position_embeddings=8),
    "phi3": _PHI3,
    "phi3-window": _PHI3 | {"sliding_window": 5, "tie_word_embeddings": True},
    "phi3-partial": _PHI3 | {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "phi3-longrope": _PHI3 | {"original_max_position_embeddings": 16} | _rope(
        "longrope", factor=4.0, original_max_position_embeddings=16, short_factor=_SHORT,
        long_factor=_LONG,
    ),
}  # fmt: skip
