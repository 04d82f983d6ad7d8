"""Gemma checkpoints: `gemma`, `gemma2`, `gemma3_text`, and the text part of `gemma3`, which also
reads images.

Gemma 3 has a record of rotary positions for each type of layer; before transformers 5 it had
`rope_theta` and `rope_scaling` for the global layers and `rope_local_base_freq` for the local ones.
"""

import dataclasses
from typing import Any

from jaxlm.convert import config_json, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import layer_types, rope_parameters
from jaxlm.convert.weight_rows import Row, Table, linear, same
from jaxlm.models import gemma

ROWS = [
    same("attn_norm", "input_layernorm.weight"),
    linear("attn/q", "self_attn.q_proj.weight"),
    linear("attn/k", "self_attn.k_proj.weight"),
    linear("attn/v", "self_attn.v_proj.weight"),
    linear("attn/o", "self_attn.o_proj.weight"),
    same("attn/q_norm", "self_attn.q_norm.weight"),
    same("attn/k_norm", "self_attn.k_norm.weight"),
    linear("ffn/gate", "mlp.gate_proj.weight"),
    linear("ffn/up", "mlp.up_proj.weight"),
    linear("ffn/down", "mlp.down_proj.weight"),
]
# Gemma 1's second norm has the name that later Gemmas have for the end of attention.
PLAIN = [same("ffn_norm", "post_attention_layernorm.weight")]
SANDWICH = [
    same("attn_post_norm", "post_attention_layernorm.weight"),
    same("ffn_norm", "pre_feedforward_layernorm.weight"),
    same("ffn_post_norm", "post_feedforward_layernorm.weight"),
]
BUFFERS = (r"rotary_emb\.inv_freq",)
# Gemma 3 other than its text: names as released, and as transformers 5 has them in memory.
IMAGES = (r"^(model\.)?vision_tower\.", r"^(model\.)?multi_modal_projector\.")
TEXT = (
    (r"^language_model\.model\.", "model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^model\.language_model\.", "model."),
    (r"^language_model\.", "model."),
)


def _table(rows: list[Row]) -> Table:
    outer = [
        same("embed/table", "model.embed_tokens.weight"),
        same("norm", "model.norm.weight"),
        linear("unembed", "lm_head.weight"),
    ]
    return Table(outer, {"stack": weight_rows.Stack("model.layers.{i}.", rows)}, BUFFERS)


def names(cfg: gemma.Config) -> Table:
    """The rows of a Config."""
    return _table(ROWS + (SANDWICH if cfg.sandwich else PLAIN))


def read1(f: Fields) -> gemma.Config:
    """Our Config of a `gemma` config.json. Its "gelu" is the tanh form, whatever the field is."""
    f.only("hidden_act", "gelu_pytorch_tanh", "gelu")
    f.only("use_bidirectional_attention", False)
    sizes = _sizes(f, 256000, 3072, 28, 16, 16, 24576, 8192)
    turns = rope_parameters.read(f, sizes["context"])
    rope_parameters.whole(turns)
    return gemma.Config(**sizes, theta=turns.theta, scaling=turns.scaling)


def _cap(f: Fields, name: str, default: float | None) -> float | None:
    value = f.maybe(name, default)
    if value is not None and value <= 0:
        raise ValueError(f"{name}={value}: a cap is above 0, or null where there is none")
    return value


def read2(f: Fields) -> gemma.Config:
    """Our Config of a `gemma2` config.json."""
    sizes = _sizes(f, 256000, 2304, 26, 8, 4, 9216, 8192)
    turns = rope_parameters.read(f, sizes["context"])
    rope_parameters.whole(turns)
    return gemma.Config(
        **sizes,
        **_sandwich(f, sizes, 2),
        theta=turns.theta,
        scaling=turns.scaling,
        score_softcap=_cap(f, "attn_logit_softcapping", 50.0),
        softcap=_cap(f, "final_logit_softcapping", 30.0),
    )


def read3(f: Fields) -> gemma.Config:
    """Our Config of a `gemma3_text` config.json."""
    sizes = _sizes(f, 262208, 2304, 26, 8, 4, 9216, 131072)
    # transformers does not apply it in Gemma 3: a value would be read otherwise elsewhere
    f.only("attn_logit_softcapping", None)
    every = f.get("sliding_window_pattern", 6)
    far, near = _rotary3(f, sizes["context"])
    return gemma.Config(
        **sizes,
        **_sandwich(f, sizes, every),
        theta=far.theta,
        scaling=far.scaling,
        local_theta=None if near == far else near.theta,
        softcap=_cap(f, "final_logit_softcapping", None),
        qk_norm=True,
    )


def _sizes(
    f: Fields, vocab: int, embed: int, layers: int, heads: int, kv: int, ffn: int, context: int
) -> dict[str, Any]:
    f.only("hidden_activation", "gelu_pytorch_tanh")
    f.only("use_bidirectional_attention", False)
    f.only("attention_bias", False)
    return {
        "vocab": f.get("vocab_size", vocab),
        "embed": f.get("hidden_size", embed),
        "layers": f.get("num_hidden_layers", layers),
        "heads": f.get("num_attention_heads", heads),
        "kv": f.get("num_key_value_heads", kv),
        "head": f.get("head_dim", 256),
        "ffn": f.get("intermediate_size", ffn),
        "eps": f.get("rms_norm_eps", 1e-6),
        "context": f.get("max_position_embeddings", context),
        "tied": f.get("tie_word_embeddings", True),
    }


def _sandwich(f: Fields, sizes: dict[str, Any], every: int) -> dict[str, Any]:
    """Config fields that Gemma 2 and 3 share; by default every `every`-th layer is global."""
    default: list[layer_types.Reach] = [*(every - 1) * ["local"], "global"] * sizes["layers"]
    pattern = layer_types.read(f, sizes["layers"], default)
    window = f.maybe("sliding_window", 4096)
    scalar = f.get("query_pre_attn_scalar", 256)
    return {
        "pattern": pattern,
        "window": window if "local" in pattern else None,
        "query_scalar": None if scalar == sizes["head"] else scalar,
        "sandwich": True,
    }


def _rotary3(f: Fields, context: int) -> tuple[rope_parameters.Rope, rope_parameters.Rope]:
    """The rotary positions of global and of local layers."""
    nested = f.get("rope_parameters", {})
    old = f.get("rope_scaling", {})
    given = {
        "full_attention": {"rope_theta": f.get("rope_theta", 1e6)},
        "sliding_attention": {"rope_theta": f.get("rope_local_base_freq", 1e4)},
    }
    unknown = sorted(nested.keys() - given.keys())
    if unknown:
        raise ValueError(f"rope_parameters: {unknown} are no types of layers; {sorted(given)} are")
    for kind, record in [*nested.items(), ("full_attention", old)]:
        record = record or {}
        if "rope_type" not in record and record.get("type", "default") != "default":
            # transformers 5 fills in the rope_type, "default", and takes no notice of the type
            name = "rope_scaling" if record is old else f"rope_parameters.{kind}"
            raise ValueError(f"{name}: {record} has a type, where rope_type is read")
        given[kind] |= record
    far, near = (
        rope_parameters.parse(r, context, f"rope_parameters.{k}") for k, r in given.items()
    )
    rope_parameters.whole(far)
    rope_parameters.whole(near)
    if near.scaling is not None and near != far:
        raise ValueError(
            f"rope_parameters.sliding_attention: {near.scaling} is not supported; local layers are "
            "not scaled, or as the global ones are"
        )
    return far, near


def write1(cfg: gemma.Config) -> dict[str, Any]:
    """The `gemma` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, sandwich=False, qk_norm=False, score_softcap=None, softcap=None, local_theta=None,
        window=None,
    )  # fmt: skip
    if cfg.query_scalar not in (None, cfg.head):
        raise ValueError(
            f"model.query_scalar={cfg.query_scalar} has no counterpart (always model.head)"
        )
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "hidden_act": "gelu_pytorch_tanh",
        **_said(cfg),
        **rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context),
    }


def write2(cfg: gemma.Config) -> dict[str, Any]:
    """The `gemma2` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, sandwich=True, qk_norm=False, local_theta=None)
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **_said(cfg),
        **_said_sandwich(cfg),
        "attn_logit_softcapping": cfg.score_softcap,
        "final_logit_softcapping": cfg.softcap,
        **rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context),
    }


def write3(cfg: gemma.Config) -> dict[str, Any]:
    """The `gemma3_text` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, sandwich=True, qk_norm=True, score_softcap=None)
    far = rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context)
    near = far["rope_parameters"]
    if cfg.local_theta is not None:
        near = rope_parameters.parameters(cfg.head, cfg.local_theta, None)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **_said(cfg),
        **_said_sandwich(cfg),
        "final_logit_softcapping": cfg.softcap,
        **far,
        "rope_parameters": {
            "full_attention": far["rope_parameters"],
            "sliding_attention": near,
        },
        "rope_local_base_freq": near["rope_theta"],
    }


def _said(cfg: gemma.Config) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv,
        "head_dim": cfg.head,
        "intermediate_size": cfg.ffn,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": cfg.eps,
        "tie_word_embeddings": cfg.tied,
    }


def _said_sandwich(cfg: gemma.Config) -> dict[str, Any]:
    return {
        "layer_types": layer_types.write(cfg.kinds),
        "sliding_window": cfg.window,
        "query_pre_attn_scalar": cfg.head if cfg.query_scalar is None else cfg.query_scalar,
    }


def read_images(f: Fields) -> gemma.Config:
    """Our Config of the text in a `gemma3` config.json. Whether the output matrix is the embedding
    table is decided outside `text_config`, as in transformers, whatever is set inside it."""
    inner = f.part("text_config")
    cfg = read3(inner)
    inner.refuse_rest()
    return dataclasses.replace(cfg, tied=f.get("tie_word_embeddings", True))


def names_images(cfg: gemma.Config) -> Table:
    """The rows of the text in a `gemma3` checkpoint; what sees images is left out."""
    plain = names(cfg)
    return plain._replace(ignored=plain.ignored + IMAGES, renames=TEXT)


def write_images(cfg: gemma.Config) -> dict[str, Any]:
    """Raises: ValueError, as there is nothing that sees images."""
    raise ValueError("a model that reads text alone is no gemma3; it is a gemma3_text")


GEMMA1 = read1, write1, names
GEMMA2 = read2, write2, names
GEMMA3 = read3, write3, names
GEMMA3_IMAGES = read_images, write_images, names_images
