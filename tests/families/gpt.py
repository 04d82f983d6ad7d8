"""GPT-1, GPT-2 and a BLOOM without biases, tiny."""

import dataclasses

from jaxlm.models import gpt
from tests.families.sizes import T, V

GPT = gpt.Config(vocab=V, embed=16, layers=3, heads=2, context=T)
CASES = {
    "gpt": GPT,
    "gpt-post": dataclasses.replace(GPT, norm="post"),
    "gpt-alibi": dataclasses.replace(
        GPT, positions="alibi", embed_norm=True, bias=False, ffn=24, activation="relu", tied=False,
        query_scalar=1.0, scale_by_layer=True,
    ),
}  # fmt: skip

# A key bias adds the same to every score of a query, where positions do not turn it: its gradient
# is 0 but for rounding.
VOID = {"gpt": ("k_bias",), "gpt-post": ("k_bias",)}

_GPT2 = {
    "model_type": "gpt2", "architecture": "GPT2LMHeadModel", "vocab_size": 97, "n_embd": 32,
    "n_layer": 3, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}  # fmt: skip
_GPT1 = _GPT2 | {"model_type": "openai-gpt", "architecture": "OpenAIGPTLMHeadModel"}
_OPT = {
    "model_type": "opt", "architecture": "OPTForCausalLM", "vocab_size": 97, "hidden_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32,
    "max_position_embeddings": 128, "dropout": 0.0,
}  # fmt: skip
_BLOOM = {
    "model_type": "bloom", "architecture": "BloomForCausalLM", "vocab_size": 97, "hidden_size": 32,
    "n_layer": 3, "n_head": 4,
}  # fmt: skip
ORACLES = {
    "gpt2": _GPT2,
    "gpt2-untied": _GPT2 | {
        "n_inner": 48, "activation_function": "gelu", "tie_word_embeddings": False,
    },
    # Stanford's Mistral project; the third field is about rounding in float16
    "gpt2-by-layer": _GPT2 | {
        "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
    },
    "gpt2-unscaled": _GPT2 | {
        "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False,
    },
    "gpt1": _GPT1,
    "gpt1-relu": _GPT1 | {"afn": "relu", "layer_norm_epsilon": 1e-3},
    "opt": _OPT,
    "opt-post": _OPT | {"do_layer_norm_before": False, "tie_word_embeddings": False},
    "opt-no-bias": _OPT | {"enable_bias": False, "activation_function": "gelu_new"},
    "bloom": _BLOOM,
    # slopes of a number of heads that is no power of two
    "bloom-12": _BLOOM | {"hidden_size": 48, "n_head": 12, "tie_word_embeddings": False},
}  # fmt: skip
