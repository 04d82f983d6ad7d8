"""GPT-J, GPT-NeoX, Falcon and Cohere checkpoints.

PaLM itself was never released; a Config of its shape is written as `cohere`. Dropout, which all of
them were released without, is not kept.
"""

from typing import Any

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_json import ACTIVATIONS, Fields
from jaxlm.convert.config_rows import Architecture, always, choice, field, only, required, same_as
from jaxlm.convert.families import fused_heads, rope_parameters
from jaxlm.convert.families.llama import FFN, WIDTHS
from jaxlm.convert.weight_rows import Row, Table, biased, layer_norm, linear, same
from jaxlm.models import palm

QKV = ("attn/q", "attn/k", "attn/v")
QKV_BIAS = ("attn/q_bias", "attn/k_bias", "attn/v_bias")


def _interleaved(cfg: palm.Config, ours: str, theirs: str) -> list[Row]:
    """A linear and its bias in a file that rotates neighbouring dimensions."""
    rows = biased(ours, theirs)
    return (
        [fused_heads.interleaved(r, cfg.rotary) for r in rows] if cfg.rotary is not None else rows
    )


def gptj_names(cfg: palm.Config) -> Table:
    """The rows of a `gptj` checkpoint."""
    rows = [
        *layer_norm("attn_norm", "ln_1"),
        *_interleaved(cfg, "attn/q", "attn.q_proj"),
        *_interleaved(cfg, "attn/k", "attn.k_proj"),
        linear("attn/v", "attn.v_proj.weight"),
        linear("attn/o", "attn.out_proj.weight"),
        *biased("ffn/up", "mlp.fc_in"),
        *biased("ffn/down", "mlp.fc_out"),
    ]
    outer = [
        same("embed/table", "transformer.wte.weight"),
        *layer_norm("norm", "transformer.ln_f"),
        *biased("unembed", "lm_head"),
    ]
    stacks = {"stack": weight_rows.Stack("transformer.h.{i}.", rows)}
    return Table(outer, stacks, (r"\.attn\.(bias|masked_bias)$",), prefix="transformer")


# Names as transformers writes them, and as its modules are named.
NEOX_ROWS = [
    *layer_norm("attn_norm", "input_layernorm"),
    *layer_norm("ffn_norm", "post_attention_layernorm"),
    fused_heads.grouped(QKV, "attention.query_key_value.weight"),
    fused_heads.grouped(QKV_BIAS, "attention.query_key_value.bias"),
    *biased("attn/o", "attention.dense"),
    *biased("ffn/up", "mlp.dense_h_to_4h"),
    *biased("ffn/down", "mlp.dense_4h_to_h"),
]
NEOX_OUTER = [
    same("embed/table", "gpt_neox.embed_in.weight"),
    *layer_norm("norm", "gpt_neox.final_layer_norm"),
    linear("unembed", "embed_out.weight"),
]
NEOX_IGNORED = (r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",)
NEOX_WEIGHTS = Table(
    NEOX_OUTER,
    {"stack": weight_rows.Stack("gpt_neox.layers.{i}.", NEOX_ROWS)},
    NEOX_IGNORED,
    ((r"^lm_head\.", "embed_out."),),
    "gpt_neox",
)


def falcon_names(cfg: palm.Config) -> Table:
    """The rows of a `falcon` checkpoint."""
    first, second = "input_layernorm", "post_attention_layernorm"
    if cfg.block == "parallel" and not cfg.shared_norm:
        first, second = "ln_attn", "ln_mlp"
    rows = [
        *layer_norm("attn_norm", first),
        *layer_norm("ffn_norm", second),
        fused_heads.grouped(QKV, "self_attention.query_key_value.weight"),
        fused_heads.grouped(QKV_BIAS, "self_attention.query_key_value.bias"),
        *biased("attn/o", "self_attention.dense"),
        *biased("ffn/up", "mlp.dense_h_to_4h"),
        *biased("ffn/down", "mlp.dense_4h_to_h"),
    ]
    outer = [
        same("embed/table", "transformer.word_embeddings.weight"),
        *layer_norm("norm", "transformer.ln_f"),
        linear("unembed", "lm_head.weight"),
    ]
    stacks = {"stack": weight_rows.Stack("transformer.h.{i}.", rows)}
    ignored = (r"\.self_attention\.rotary_emb\.inv_freq$", r"\.self_attention\.maybe_rotary\.")
    return Table(outer, stacks, ignored, prefix="transformer")


def cohere_names(cfg: palm.Config) -> Table:
    """The rows of a `cohere` checkpoint."""
    norms = [
        fused_heads.per_head("attn/q_norm", "self_attn.q_norm.weight"),
        fused_heads.per_head("attn/k_norm", "self_attn.k_norm.weight"),
    ]
    rows = [
        *layer_norm("attn_norm", "input_layernorm"),
        *_interleaved(cfg, "attn/q", "self_attn.q_proj"),
        *_interleaved(cfg, "attn/k", "self_attn.k_proj"),
        *biased("attn/v", "self_attn.v_proj"),
        *biased("attn/o", "self_attn.o_proj"),
        *(fused_heads.interleaved(row, cfg.head) for row in norms),
        *FFN,
    ]
    outer = [
        same("embed/table", "model.embed_tokens.weight"),
        *layer_norm("norm", "model.norm"),
        linear("unembed", "lm_head.weight"),
    ]
    stacks = {"stack": weight_rows.Stack("model.layers.{i}.", rows)}
    ignored = (r"\.rotary_emb\.inv_freq$",)
    return Table(outer, stacks, ignored)


def _write_head(cfg: palm.Config) -> dict[str, Any]:
    if cfg.embed != cfg.heads * cfg.head:
        config_rows.refuse(cfg, "head", "always model.embed / model.heads")
    return {}


# Heads that divide the width.
HEAD = config_rows.Row(("head",), lambda f, cfg: {"head": config_rows.head_size(cfg)}, _write_head)
PLAIN_FFN = always(norm_bias=True, gated=False)
TIED = field("tied", "tie_word_embeddings", True)


def _read_neox_rope(f: Fields, cfg: Any) -> dict[str, Any]:
    context = f.get("max_position_embeddings", 2048)
    theta, share = f.get("rotary_emb_base", 10000.0), f.get("rotary_pct", 0.25)
    rotary = rope_parameters.read(f, context, theta, share)
    return {
        "context": context,
        "rotary": int(cfg.head * rotary.share),
        "theta": rotary.theta,
        "scaling": rotary.scaling,
    }


def _write_neox_rope(cfg: palm.Config) -> dict[str, Any]:
    if cfg.rotary is None:
        config_rows.refuse(cfg, "rotary", "at least 2 dimensions")
    share = cfg.rotary / cfg.head
    record = rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context, share)
    # transformers 4 takes the share from rotary_pct and the base from rotary_emb_base
    return record | {"rotary_pct": share, "rotary_emb_base": record["rope_theta"]}


def _read_falcon_heads(f: Fields, cfg: Any) -> dict[str, Any]:
    """Key heads and norms of a block, which the new architecture has more choices of."""
    grouped = f.get("new_decoder_architecture", False)
    parallel = f.get("parallel_attn", True)
    if grouped and not parallel:
        raise ValueError("parallel_attn=False is not supported with new_decoder_architecture")
    norms = f.get("num_ln_in_parallel_attn", 2 if grouped else 1)
    if norms not in ((1, 2) if grouped else (1,)):
        raise ValueError(
            f"num_ln_in_parallel_attn={norms} is not supported with "
            f"new_decoder_architecture={grouped}"
        )
    kv, multi_query = f.get("num_kv_heads", cfg.heads), f.get("multi_query", True)
    if not grouped:
        kv = 1 if multi_query else cfg.heads
    block = "parallel" if parallel else "sequential"
    return {"kv": kv, "block": block, "shared_norm": parallel and norms == 1}


def _write_falcon_heads(cfg: palm.Config) -> dict[str, Any]:
    one_or_all = cfg.kv in (1, cfg.heads)
    if cfg.block == "sequential" and not one_or_all:
        config_rows.refuse(cfg, "kv", "1 or model.heads in a sequential block")
    grouped = cfg.block == "parallel" and not (cfg.shared_norm and one_or_all)
    return {
        "num_kv_heads": cfg.kv,
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": (1 if cfg.shared_norm else 2) if grouped else None,
        "multi_query": cfg.kv == 1,
        "parallel_attn": cfg.block == "parallel",
    }


def _read_falcon_positions(f: Fields, cfg: Any) -> dict[str, Any]:
    """Rotary positions or ALiBi. The slopes are exact here; transformers rounds them, and their
    products with positions, to bfloat16."""
    rope = rope_parameters.row(2048).read(f, cfg)
    if f.get("alibi", False):
        return rope | {"rotary": None, "scaling": None, "alibi": cfg.head**-0.5}
    return rope | {"rotary": cfg.head, "alibi": None}


def _write_falcon_positions(cfg: palm.Config) -> dict[str, Any]:
    if cfg.alibi is not None and cfg.alibi != cfg.head**-0.5:
        config_rows.refuse(cfg, "alibi", "None or model.head ** -0.5")
    if cfg.rotary != (cfg.head if cfg.alibi is None else None):
        config_rows.refuse(cfg, "rotary", "model.head, or None with ALiBi")
    return rope_parameters.row(2048).write(cfg) | {"alibi": cfg.alibi is not None}


GPTJ_FIELDS = [
    required("vocab", "vocab_size"),
    required("embed", "n_embd", "hidden_size"),
    required("layers", "n_layer", "num_hidden_layers"),
    required("heads", "n_head", "num_attention_heads"),
    HEAD,
    field("ffn", "n_inner", lambda cfg: 4 * cfg.embed),
    field("context", "n_positions", 2048, "max_position_embeddings"),
    required("rotary", "rotary_dim"),
    choice("activation", "activation_function", "gelu_new", ACTIVATIONS),
    field("eps", "layer_norm_epsilon", 1e-5),
    field("tied", "tie_word_embeddings", False),
    PLAIN_FFN,
    always(kv=same_as("heads"), ffn_bias=True, unembed_bias=True),
    only("rotary", True),
    only("scale_attn_weights", True),
]
GPTJ = Architecture("gptj", palm.Config, "GPTJForCausalLM", GPTJ_FIELDS, gptj_names)
NEOX_FIELDS = [
    *WIDTHS,
    HEAD,
    config_rows.Row(("context", "rotary", "theta", "scaling"), _read_neox_rope, _write_neox_rope),
    choice("block", "use_parallel_residual", True, {True: "parallel", False: "sequential"}),
    field("attn_bias", "attention_bias", True),
    choice("activation", "hidden_act", "gelu", ACTIVATIONS),
    field("eps", "layer_norm_eps", 1e-5),
    field("tied", "tie_word_embeddings", False),
    PLAIN_FFN,
    always(kv=same_as("heads"), ffn_bias=True, shared_norm=False),
]
NEOX = Architecture("gpt_neox", palm.Config, "GPTNeoXForCausalLM", NEOX_FIELDS, NEOX_WEIGHTS)
FALCON_FIELDS = [
    required("vocab", "vocab_size"),
    required("embed", "hidden_size", "n_embed"),
    required("layers", "num_hidden_layers"),
    required("heads", "num_attention_heads"),
    HEAD,
    config_rows.Row(("kv", "block", "shared_norm"), _read_falcon_heads, _write_falcon_heads),
    field("ffn", "ffn_hidden_size", lambda cfg: 4 * cfg.embed),
    config_rows.Row(
        ("context", "rotary", "theta", "scaling", "alibi"),
        _read_falcon_positions,
        _write_falcon_positions,
    ),
    choice("activation", "activation", "gelu", ACTIVATIONS),
    field("attn_bias", "bias", False),
    field("eps", "layer_norm_epsilon", 1e-5),
    TIED,
    PLAIN_FFN,
    always(ffn_bias=same_as("attn_bias")),
    only("apply_residual_connection_post_layernorm", False),
]
FALCON = Architecture("falcon", palm.Config, "FalconForCausalLM", FALCON_FIELDS, falcon_names)
COHERE_FIELDS = [
    *WIDTHS,
    field("kv", "num_key_value_heads", same_as("heads")),
    field("head", "head_dim", config_rows.head_size),
    rope_parameters.row(8192, 500000.0),
    field("attn_bias", "attention_bias", False),
    field("qk_norm", "use_qk_norm", False),
    choice("activation", "hidden_act", "silu", ACTIVATIONS),
    field("eps", "layer_norm_eps", 1e-5),
    TIED,
    field("logit_scale", "logit_scale", 0.0625, none=1.0),
    always(rotary=same_as("head")),
]
COHERE = Architecture("cohere", palm.Config, "CohereForCausalLM", COHERE_FIELDS, cohere_names)
