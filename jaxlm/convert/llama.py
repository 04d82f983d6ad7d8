"""LLaMA checkpoints."""

from typing import Any

from jaxlm.convert import table
from jaxlm.convert.fields import Fields
from jaxlm.convert.table import Table, linear, same
from jaxlm.models import llama

ROWS = [
    same("attn_norm", "input_layernorm.weight"),
    same("ffn_norm", "post_attention_layernorm.weight"),
    linear("attn/q", "self_attn.q_proj.weight"),
    linear("attn/k", "self_attn.k_proj.weight"),
    linear("attn/v", "self_attn.v_proj.weight"),
    linear("attn/o", "self_attn.o_proj.weight"),
    same("attn/q_bias", "self_attn.q_proj.bias"),
    same("attn/k_bias", "self_attn.k_proj.bias"),
    same("attn/v_bias", "self_attn.v_proj.bias"),
    linear("ffn/gate", "mlp.gate_proj.weight"),
    linear("ffn/up", "mlp.up_proj.weight"),
    linear("ffn/down", "mlp.down_proj.weight"),
]
OUTER = [
    same("embed/table", "model.embed_tokens.weight"),
    same("norm", "model.norm.weight"),
    linear("unembed", "lm_head.weight"),
]


def names(cfg: llama.Config) -> Table:
    """The rows of a Config."""
    return Table(
        OUTER, {"stack": table.Stack("model.layers.{i}.", ROWS)}, (r"rotary_emb\.inv_freq",)
    )


def read(f: Fields) -> llama.Config:
    """Our Config of a `llama` config.json."""
    embed, heads = f.take("hidden_size"), f.take("num_attention_heads")
    f.only("hidden_act", "silu", "swish")
    return llama.Config(
        vocab=f.take("vocab_size"),
        embed=embed,
        layers=f.take("num_hidden_layers"),
        heads=heads,
        kv=f.get("num_key_value_heads", heads),
        head=f.get("head_dim", embed // heads),
        ffn=f.take("intermediate_size"),
        eps=f.get("rms_norm_eps", 1e-6),
        context=f.get("max_position_embeddings", 2048),
        tied=f.get("tie_word_embeddings", False),
    )


def write(cfg: llama.Config) -> dict[str, Any]:
    """The `llama` config.json of a Config. Raises: ValueError for what it cannot say."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv,
        "head_dim": cfg.head,
        "intermediate_size": cfg.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.eps,
        "max_position_embeddings": cfg.context,
        "tie_word_embeddings": cfg.tied,
    }
