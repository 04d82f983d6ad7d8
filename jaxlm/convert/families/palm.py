"""GPT-J, GPT-NeoX, Falcon and Cohere checkpoints.

PaLM itself was never released; a Config of its shape is written as `cohere`. Dropout, which all of
them were released without, is not kept.
"""

from typing import Any

from jaxlm.convert import config_json, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import fused_heads, rope_parameters
from jaxlm.convert.weight_rows import Row, Table, linear, same
from jaxlm.models import palm

QKV = ("attn/q", "attn/k", "attn/v")
QKV_BIAS = ("attn/q_bias", "attn/k_bias", "attn/v_bias")


def _norm(ours: str, theirs: str) -> list[Row]:
    """Both weights of a LayerNorm."""
    return [same(f"{ours}/scale", f"{theirs}.weight"), same(f"{ours}/bias", f"{theirs}.bias")]


def _biased(ours: str, theirs: str) -> list[Row]:
    """A torch.nn.Linear and its bias."""
    return [linear(ours, f"{theirs}.weight"), same(f"{ours}_bias", f"{theirs}.bias")]


def _turned(cfg: palm.Config, ours: str, theirs: str) -> list[Row]:
    """`_biased` of a file that rotates neighbouring dimensions."""
    rows = _biased(ours, theirs)
    return (
        [fused_heads.interleaved(r, cfg.rotary) for r in rows] if cfg.rotary is not None else rows
    )


def _turns(cfg: palm.Config) -> int:
    """The dimensions of a head that positions turn. Raises: ValueError where none are."""
    if cfg.rotary is None:
        raise ValueError("model.rotary=None has no counterpart (at least 2 dimensions are rotated)")
    return cfg.rotary


def gptj_names(cfg: palm.Config) -> Table:
    """The rows of a `gptj` checkpoint."""
    rows = [
        *_norm("attn_norm", "ln_1"),
        *_turned(cfg, "attn/q", "attn.q_proj"),
        *_turned(cfg, "attn/k", "attn.k_proj"),
        linear("attn/v", "attn.v_proj.weight"),
        linear("attn/o", "attn.out_proj.weight"),
        *_biased("ffn/up", "mlp.fc_in"),
        *_biased("ffn/down", "mlp.fc_out"),
    ]
    outer = [
        same("embed/table", "transformer.wte.weight"),
        *_norm("norm", "transformer.ln_f"),
        *_biased("unembed", "lm_head"),
    ]
    stacks = {"stack": weight_rows.Stack("transformer.h.{i}.", rows)}
    return Table(outer, stacks, (r"\.attn\.(bias|masked_bias)$",), prefix="transformer")


def gptj_read(f: Fields) -> palm.Config:
    """Our Config of a `gptj` config.json."""
    embed = f.take("n_embd", "hidden_size")
    count = f.take("n_head", "num_attention_heads")
    rotary = f.take("rotary_dim")
    if rotary is None:
        raise ValueError("rotary_dim=None is not supported; it is the number of turned dimensions")
    f.only("rotary", True)
    f.only("scale_attn_weights", True)
    return palm.Config(
        vocab=f.take("vocab_size"),
        embed=embed,
        layers=f.take("n_layer", "num_hidden_layers"),
        heads=count,
        kv=count,
        head=embed // count,
        ffn=f.get("n_inner", 4 * embed),
        context=f.get("n_positions", 2048, "max_position_embeddings"),
        norm_bias=True,
        rotary=rotary,
        activation=f.among("activation_function", "gelu_new", config_json.ACTIVATIONS),
        gated=False,
        ffn_bias=True,
        eps=f.get("layer_norm_epsilon", 1e-5),
        tied=f.get("tie_word_embeddings", False),
        unembed_bias=True,
    )


def gptj_write(cfg: palm.Config) -> dict[str, Any]:
    """The `gptj` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, block="parallel", shared_norm=True, norm_bias=True, attn_bias=False, qk_norm=False,
        theta=10000.0, scaling=None, alibi=None, gated=False, ffn_bias=True, unembed_bias=True,
        logit_scale=None, kv=cfg.heads, embed=cfg.heads * cfg.head,
    )  # fmt: skip
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "vocab_size": cfg.vocab,
        "n_embd": cfg.embed,
        "n_layer": cfg.layers,
        "n_head": cfg.heads,
        "n_inner": cfg.ffn,
        "n_positions": cfg.context,
        "rotary_dim": _turns(cfg),
        "activation_function": config_json.activation(cfg.activation),
        "layer_norm_epsilon": cfg.eps,
        "tie_word_embeddings": cfg.tied,
    }


def neox_names(cfg: palm.Config) -> Table:
    """The rows of a `gpt_neox` checkpoint, as transformers writes and as its modules are named."""
    rows = [
        *_norm("attn_norm", "input_layernorm"),
        *_norm("ffn_norm", "post_attention_layernorm"),
        fused_heads.grouped(QKV, "attention.query_key_value.weight"),
        fused_heads.grouped(QKV_BIAS, "attention.query_key_value.bias"),
        *_biased("attn/o", "attention.dense"),
        *_biased("ffn/up", "mlp.dense_h_to_4h"),
        *_biased("ffn/down", "mlp.dense_4h_to_h"),
    ]
    outer = [
        same("embed/table", "gpt_neox.embed_in.weight"),
        *_norm("norm", "gpt_neox.final_layer_norm"),
        linear("unembed", "embed_out.weight"),
    ]
    stacks = {"stack": weight_rows.Stack("gpt_neox.layers.{i}.", rows)}
    ignored = (r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",)
    return Table(outer, stacks, ignored, ((r"^lm_head\.", "embed_out."),), "gpt_neox")


def neox_read(f: Fields) -> palm.Config:
    """Our Config of a `gpt_neox` config.json."""
    embed, count = f.take("hidden_size"), f.take("num_attention_heads")
    context = f.get("max_position_embeddings", 2048)
    found = rope_parameters.read(
        f, context, f.get("rotary_emb_base", 10000.0), f.get("rotary_pct", 0.25)
    )
    return palm.Config(
        vocab=f.take("vocab_size"),
        embed=embed,
        layers=f.take("num_hidden_layers"),
        heads=count,
        kv=count,
        head=embed // count,
        ffn=f.take("intermediate_size"),
        context=context,
        block="parallel" if f.get("use_parallel_residual", True) else "sequential",
        shared_norm=False,
        norm_bias=True,
        attn_bias=f.get("attention_bias", True),
        rotary=int(embed // count * found.share),
        theta=found.theta,
        scaling=found.scaling,
        activation=f.among("hidden_act", "gelu", config_json.ACTIVATIONS),
        gated=False,
        ffn_bias=True,
        eps=f.get("layer_norm_eps", 1e-5),
        tied=f.get("tie_word_embeddings", False),
    )


def neox_write(cfg: palm.Config) -> dict[str, Any]:
    """The `gpt_neox` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, shared_norm=False, norm_bias=True, qk_norm=False, alibi=None, gated=False,
        ffn_bias=True, unembed_bias=False, logit_scale=None, kv=cfg.heads,
        embed=cfg.heads * cfg.head,
    )  # fmt: skip
    share = _turns(cfg) / cfg.head
    # transformers 4 takes the share from rotary_pct and the base from rotary_emb_base
    turned = rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context, share)
    return turned | {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn,
        "hidden_act": config_json.activation(cfg.activation),
        "use_parallel_residual": cfg.block == "parallel",
        "attention_bias": cfg.attn_bias,
        "rotary_pct": share,
        "rotary_emb_base": turned["rope_theta"],
        "layer_norm_eps": cfg.eps,
        "tie_word_embeddings": cfg.tied,
    }


def falcon_names(cfg: palm.Config) -> Table:
    """The rows of a `falcon` checkpoint."""
    first, second = "input_layernorm", "post_attention_layernorm"
    if cfg.block == "parallel" and not cfg.shared_norm:
        first, second = "ln_attn", "ln_mlp"
    rows = [
        *_norm("attn_norm", first),
        *_norm("ffn_norm", second),
        fused_heads.grouped(QKV, "self_attention.query_key_value.weight"),
        fused_heads.grouped(QKV_BIAS, "self_attention.query_key_value.bias"),
        *_biased("attn/o", "self_attention.dense"),
        *_biased("ffn/up", "mlp.dense_h_to_4h"),
        *_biased("ffn/down", "mlp.dense_4h_to_h"),
    ]
    outer = [
        same("embed/table", "transformer.word_embeddings.weight"),
        *_norm("norm", "transformer.ln_f"),
        linear("unembed", "lm_head.weight"),
    ]
    stacks = {"stack": weight_rows.Stack("transformer.h.{i}.", rows)}
    ignored = (r"\.self_attention\.rotary_emb\.inv_freq$", r"\.self_attention\.maybe_rotary\.")
    return Table(outer, stacks, ignored, prefix="transformer")


def falcon_read(f: Fields) -> palm.Config:
    """Our Config of a `falcon` config.json. ALiBi's slopes are exact here; transformers rounds
    them, and their products with positions, to bfloat16."""
    embed, count = f.take("hidden_size", "n_embed"), f.take("num_attention_heads")
    head, context = embed // count, f.get("max_position_embeddings", 2048)
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
    f.only("apply_residual_connection_post_layernorm", False)
    kv, alone = f.get("num_kv_heads", count), f.get("multi_query", True)
    if not grouped:
        kv = 1 if alone else count
    alibi, found = f.get("alibi", False), rope_parameters.whole(rope_parameters.read(f, context))
    biased = f.get("bias", False)
    return palm.Config(
        vocab=f.take("vocab_size"),
        embed=embed,
        layers=f.take("num_hidden_layers"),
        heads=count,
        kv=kv,
        head=head,
        ffn=f.get("ffn_hidden_size", 4 * embed),
        context=context,
        block="parallel" if parallel else "sequential",
        shared_norm=parallel and norms == 1,
        norm_bias=True,
        attn_bias=biased,
        rotary=None if alibi else head,
        theta=found.theta,
        scaling=None if alibi else found.scaling,
        alibi=head**-0.5 if alibi else None,
        activation=f.among("activation", "gelu", config_json.ACTIVATIONS),
        gated=False,
        ffn_bias=biased,
        eps=f.get("layer_norm_epsilon", 1e-5),
        tied=f.get("tie_word_embeddings", True),
    )


def falcon_write(cfg: palm.Config) -> dict[str, Any]:
    """The `falcon` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, norm_bias=True, qk_norm=False, gated=False, ffn_bias=cfg.attn_bias,
        unembed_bias=False, logit_scale=None, embed=cfg.heads * cfg.head,
        rotary=cfg.head if cfg.alibi is None else None,
        alibi=None if cfg.alibi is None else cfg.head**-0.5,
    )  # fmt: skip
    one_or_all = cfg.kv in (1, cfg.heads)
    if cfg.block == "sequential" and not one_or_all:
        raise ValueError(
            f"model.kv={cfg.kv} has no counterpart with a sequential block; use 1 or model.heads"
        )
    grouped = cfg.block == "parallel" and not (cfg.shared_norm and one_or_all)
    return rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context) | {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_kv_heads": cfg.kv,
        "ffn_hidden_size": cfg.ffn,
        "activation": config_json.activation(cfg.activation),
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": (1 if cfg.shared_norm else 2) if grouped else None,
        "multi_query": cfg.kv == 1,
        "parallel_attn": cfg.block == "parallel",
        "alibi": cfg.alibi is not None,
        "bias": cfg.attn_bias,
        "layer_norm_epsilon": cfg.eps,
        "tie_word_embeddings": cfg.tied,
    }


def cohere_names(cfg: palm.Config) -> Table:
    """The rows of a `cohere` checkpoint."""
    norms = [
        fused_heads.per_head("attn/q_norm", "self_attn.q_norm.weight"),
        fused_heads.per_head("attn/k_norm", "self_attn.k_norm.weight"),
    ]
    rows = [
        *_norm("attn_norm", "input_layernorm"),
        *_turned(cfg, "attn/q", "self_attn.q_proj"),
        *_turned(cfg, "attn/k", "self_attn.k_proj"),
        *_biased("attn/v", "self_attn.v_proj"),
        *_biased("attn/o", "self_attn.o_proj"),
        *(fused_heads.interleaved(row, cfg.head) for row in norms),
        linear("ffn/gate", "mlp.gate_proj.weight"),
        linear("ffn/up", "mlp.up_proj.weight"),
        linear("ffn/down", "mlp.down_proj.weight"),
    ]
    outer = [
        same("embed/table", "model.embed_tokens.weight"),
        *_norm("norm", "model.norm"),
        linear("unembed", "lm_head.weight"),
    ]
    stacks = {"stack": weight_rows.Stack("model.layers.{i}.", rows)}
    ignored = (r"\.rotary_emb\.inv_freq$",)
    return Table(outer, stacks, ignored)


def cohere_read(f: Fields) -> palm.Config:
    """Our Config of a `cohere` config.json."""
    embed, count = f.take("hidden_size"), f.take("num_attention_heads")
    head, context = f.get("head_dim", embed // count), f.get("max_position_embeddings", 8192)
    found = rope_parameters.whole(rope_parameters.read(f, context, 500000.0))
    scale = float(f.get("logit_scale", 0.0625))
    return palm.Config(
        vocab=f.take("vocab_size"),
        embed=embed,
        layers=f.take("num_hidden_layers"),
        heads=count,
        kv=f.get("num_key_value_heads", count),
        head=head,
        ffn=f.take("intermediate_size"),
        context=context,
        attn_bias=f.get("attention_bias", False),
        qk_norm=f.get("use_qk_norm", False),
        rotary=head,
        theta=found.theta,
        scaling=found.scaling,
        activation=f.among("hidden_act", "silu", config_json.ACTIVATIONS),
        eps=f.get("layer_norm_eps", 1e-5),
        tied=f.get("tie_word_embeddings", True),
        logit_scale=None if scale == 1.0 else scale,
    )


def cohere_write(cfg: palm.Config) -> dict[str, Any]:
    """The `cohere` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, block="parallel", shared_norm=True, norm_bias=False, rotary=cfg.head, alibi=None,
        gated=True, ffn_bias=False, unembed_bias=False,
    )  # fmt: skip
    return rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context) | {
        "architectures": ["CohereForCausalLM"],
        "model_type": "cohere",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv,
        "head_dim": cfg.head,
        "intermediate_size": cfg.ffn,
        "hidden_act": config_json.activation(cfg.activation),
        "attention_bias": cfg.attn_bias,
        "use_qk_norm": cfg.qk_norm,
        "logit_scale": 1.0 if cfg.logit_scale is None else cfg.logit_scale,
        "layer_norm_eps": cfg.eps,
        "tie_word_embeddings": cfg.tied,
    }


# (read, write, names) of each model_type.
GPTJ = (gptj_read, gptj_write, gptj_names)
NEOX = (neox_read, neox_write, neox_names)
FALCON = (falcon_read, falcon_write, falcon_names)
COHERE = (cohere_read, cohere_write, cohere_names)
