"""Gemma checkpoints: `gemma`, `gemma2`, `gemma3_text`, and the text part of `gemma3`, which also
reads images.

Gemma 3 has a record of rotary positions for each type of layer; before transformers 5 it had
`rope_theta` and `rope_scaling` for the global layers and `rope_local_base_freq` for the local ones.
"""

import dataclasses
from typing import Any

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.config_rows import Architecture, always, field, only, same_as
from jaxlm.convert.families import layer_types, rope_parameters
from jaxlm.convert.families.llama import ATTENTION, FFN, IGNORED, LAYERS, OUTER
from jaxlm.convert.weight_rows import Table, same
from jaxlm.models import gemma

ROWS = [
    same("attn_norm", "input_layernorm.weight"),
    *ATTENTION,
    same("attn/q_norm", "self_attn.q_norm.weight"),
    same("attn/k_norm", "self_attn.k_norm.weight"),
    *FFN,
]
# Gemma 1's second norm has the name that later Gemmas have for the end of attention.
PLAIN = [same("ffn_norm", "post_attention_layernorm.weight")]
SANDWICH = [
    same("attn_post_norm", "post_attention_layernorm.weight"),
    same("ffn_norm", "pre_feedforward_layernorm.weight"),
    same("ffn_post_norm", "post_feedforward_layernorm.weight"),
]
# Gemma 3 other than its text: names as released, and as transformers 5 has them in memory.
IMAGES = (r"^(model\.)?vision_tower\.", r"^(model\.)?multi_modal_projector\.")
TEXT = (
    (r"^language_model\.model\.", "model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^model\.language_model\.", "model."),
    (r"^language_model\.", "model."),
)


def names(cfg: gemma.Config) -> Table:
    """The rows of a Config."""
    rows = ROWS + (SANDWICH if cfg.sandwich else PLAIN)
    return Table(OUTER, {"stack": weight_rows.Stack(LAYERS, rows)}, IGNORED)


def names_images(cfg: gemma.Config) -> Table:
    """The rows of the text in a `gemma3` checkpoint; the vision tower is left out."""
    table = names(cfg)
    return table._replace(ignored=table.ignored + IMAGES, renames=TEXT)


def _sizes(
    *, vocab: int, embed: int, layers: int, heads: int, kv: int, ffn: int
) -> list[config_rows.Row]:
    """Fields that all have, with the defaults of a model_type."""
    return [
        only("hidden_activation", "gelu_pytorch_tanh", export=True),
        only("use_bidirectional_attention", False),
        only("attention_bias", False),
        field("vocab", "vocab_size", vocab),
        field("embed", "hidden_size", embed),
        field("layers", "num_hidden_layers", layers),
        field("heads", "num_attention_heads", heads),
        field("kv", "num_key_value_heads", kv),
        field("head", "head_dim", 256),
        field("ffn", "intermediate_size", ffn),
        field("eps", "rms_norm_eps", 1e-6),
        field("tied", "tie_word_embeddings", True),
    ]


def _cap(ours: str, theirs: str, default: float | None) -> config_rows.Row:
    """A cap of scores or logits; null is none."""

    def read(f: Fields, cfg: Any) -> dict[str, Any]:
        value = f.maybe(theirs, default)
        if value is not None and value <= 0:
            raise ValueError(f"{theirs}={value}: a cap is above 0, or null where there is none")
        return {ours: value}

    return config_rows.Row((ours,), read, lambda cfg: {theirs: getattr(cfg, ours)})


def _window() -> config_rows.Row:
    """A window, whose size is given where no layer has it, too."""

    def read(f: Fields, cfg: Any) -> dict[str, Any]:
        window = f.maybe("sliding_window", 4096)
        return {"window": window if "local" in cfg.pattern else None}

    return config_rows.Row(("window",), read, lambda cfg: {"sliding_window": cfg.window})


# Fields that Gemma 2 and 3 share.
LATER = [
    _window(),
    field("query_scalar", "query_pre_attn_scalar", 256, none=same_as("head")),
    always(sandwich=True),
]


def _read_rope(f: Fields, cfg: Any) -> dict[str, Any]:
    """The rotary positions of global and of local layers in Gemma 3."""
    context = f.get("max_position_embeddings", 131072)
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
        rope_parameters.unsplit(rope_parameters.parse(r, context, f"rope_parameters.{k}"))
        for k, r in given.items()
    )
    if near.scaling is not None and near != far:
        raise ValueError(
            f"rope_parameters.sliding_attention: {near.scaling} is not supported; local layers are "
            "not scaled, or as the global ones are"
        )
    local = None if near == far else near.theta
    return {"context": context, "theta": far.theta, "scaling": far.scaling, "local_theta": local}


def _write_rope(cfg: gemma.Config) -> dict[str, Any]:
    record = rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context)
    far = near = record["rope_parameters"]
    if cfg.local_theta is not None:
        near = rope_parameters.parameters(cfg.head, cfg.local_theta, None)
    return record | {
        "rope_parameters": {"full_attention": far, "sliding_attention": near},
        "rope_local_base_freq": near["rope_theta"],
    }


def _read_text(f: Fields, cfg: Any) -> dict[str, Any]:
    """The text of a `gemma3`. Whether the output matrix is the embedding table is decided outside
    `text_config`, as in transformers, whatever is set inside it."""
    inner = f.part("text_config")
    values = config_rows.read(GEMMA3.fields, inner)
    inner.refuse_rest()
    return values | {"tied": f.get("tie_word_embeddings", True)}


ALL = tuple(own.name for own in dataclasses.fields(gemma.Config))


def _refuse_images(cfg: gemma.Config) -> dict[str, Any]:
    raise ValueError("a gemma3 reads images too; a model of text alone is a gemma3_text")


GEMMA1_FIELDS = [
    # "gelu" is the tanh form here, whatever the field is
    only("hidden_act", "gelu_pytorch_tanh", "gelu", export=True),
    *_sizes(vocab=256000, embed=3072, layers=28, heads=16, kv=16, ffn=24576),
    rope_parameters.row(8192),
]
GEMMA1 = Architecture("gemma", gemma.Config, "GemmaForCausalLM", GEMMA1_FIELDS, names)
GEMMA2_FIELDS = [
    *_sizes(vocab=256000, embed=2304, layers=26, heads=8, kv=4, ffn=9216),
    rope_parameters.row(8192),
    layer_types.row(lambda f, cfg: layer_types.every(2, cfg.layers)),
    *LATER,
    _cap("score_softcap", "attn_logit_softcapping", 50.0),
    _cap("softcap", "final_logit_softcapping", 30.0),
]
GEMMA2 = Architecture("gemma2", gemma.Config, "Gemma2ForCausalLM", GEMMA2_FIELDS, names)
GEMMA3_FIELDS = [
    *_sizes(vocab=262208, embed=2304, layers=26, heads=8, kv=4, ffn=9216),
    config_rows.Row(("context", "theta", "scaling", "local_theta"), _read_rope, _write_rope),
    layer_types.row(
        lambda f, cfg: layer_types.every(f.get("sliding_window_pattern", 6), cfg.layers)
    ),
    *LATER,
    # transformers does not apply it in Gemma 3: a value would be read otherwise elsewhere
    only("attn_logit_softcapping", None),
    _cap("softcap", "final_logit_softcapping", None),
    always(qk_norm=True),
]
GEMMA3 = Architecture("gemma3_text", gemma.Config, "Gemma3ForCausalLM", GEMMA3_FIELDS, names)
GEMMA3_IMAGES_FIELDS = [config_rows.Row(ALL, _read_text, _refuse_images)]
GEMMA3_IMAGES = Architecture(
    "gemma3", gemma.Config, "Gemma3ForConditionalGeneration", GEMMA3_IMAGES_FIELDS, names_images
)
