"""T5 checkpoints: the table once as `shared.weight`, relative-position biases in block 0 alone."""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_json import ACTIVATIONS, Fields
from jaxlm.convert.config_rows import Architecture, choice, field, only, required, same_as, written
from jaxlm.convert.weight_rows import Row, Table, linear, same, unchanged
from jaxlm.models import t5

# feed_forward_proj -> (act, gated); "gated-gelu" is the tanh form in transformers too
FORMS = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
    "gated-relu": ("relu", True),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "silu": ("silu", False),
}
_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _attention(ours: str, theirs: str) -> list[Row]:
    return [linear(f"{ours}/{n}", f"{theirs}.{n}.weight") for n in "qkvo"]


def _rows(gated: bool, decoder: bool) -> list[Row]:
    last = 2 if decoder else 1
    rows = [
        *_attention("attn", "layer.0.SelfAttention"),
        same("attn_norm", "layer.0.layer_norm.weight"),
        linear("ffn/down", f"layer.{last}.DenseReluDense.wo.weight"),
        same("ffn_norm", f"layer.{last}.layer_norm.weight"),
    ]
    if decoder:
        rows += [
            *_attention("cross", "layer.1.EncDecAttention"),
            same("cross_norm", "layer.1.layer_norm.weight"),
        ]
    if gated:
        rows += [
            linear("ffn/gate", f"layer.{last}.DenseReluDense.wi_0.weight"),
            linear("ffn/up", f"layer.{last}.DenseReluDense.wi_1.weight"),
        ]
    else:
        rows += [linear("ffn/up", f"layer.{last}.DenseReluDense.wi.weight")]
    return rows


def names(cfg: t5.Config) -> Table:
    """The rows of a Config."""
    outer = [
        same("embed/table", "shared.weight"),
        unchanged("encoder_bias", f"encoder.{_BIAS}"),
        same("encoder_norm", "encoder.final_layer_norm.weight"),
        unchanged("bias", f"decoder.{_BIAS}"),
        same("norm", "decoder.final_layer_norm.weight"),
        linear("unembed", "lm_head.weight"),
    ]
    stacks = {
        "encoder": weight_rows.Stack("encoder.block.{i}.", _rows(cfg.gated, decoder=False)),
        "stack": weight_rows.Stack("decoder.block.{i}.", _rows(cfg.gated, decoder=True)),
    }
    # copies of shared.weight, and a bias of the first released checkpoints that nothing reads
    ignored = (r"(encoder|decoder)\.embed_tokens\.weight",)
    ignored += (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
    return Table(outer, stacks, ignored, prefix="transformer")


def settle(cfg: t5.Config, tensors: Collection[str]) -> t5.Config:
    """The Config of a checkpoint without an output matrix is tied, whatever its config.json has for
    it: there tie_word_embeddings=False only leaves out the scaling."""
    return cfg if "lm_head.weight" in tensors else dataclasses.replace(cfg, tied=True)


def _read_form(f: Fields, cfg: Any) -> dict[str, Any]:
    """Both fields that transformers derives from feed_forward_proj, and lets a file overrule."""
    names = [name for name, ours in ACTIVATIONS.items() if ours == cfg.act]
    f.only("dense_act_fn", *names)
    f.only("is_gated_act", cfg.gated)
    return {}


T5_FIELDS = [
    required("vocab", "vocab_size"),
    required("embed", "d_model"),
    required("encoder", "num_layers"),
    field("layers", "num_decoder_layers", same_as("encoder")),
    required("heads", "num_heads"),
    required("head", "d_kv"),
    required("ffn", "d_ff"),
    field("context", "n_positions", 512),
    choice(("act", "gated"), "feed_forward_proj", "relu", FORMS),
    config_rows.Row((), _read_form),
    field("buckets", "relative_attention_num_buckets", 32),
    field("farthest", "relative_attention_max_distance", 128),
    written("dropout_rate", same_as("dropout"), "dropout"),
    field("eps", "layer_norm_epsilon", 1e-6),
    field("tied", "tie_word_embeddings", True),
    # transformers has no other word for it in the files of v1.1
    field("scaled", "scale_decoder_outputs", same_as("tied")),
    field("start", "decoder_start_token_id", 0),
    written("pad_token_id", same_as("start")),
    only("is_encoder_decoder", True, export=True),
    only("is_decoder", False),
]
T5 = Architecture("t5", t5.Config, "T5ForConditionalGeneration", T5_FIELDS, names, settle)
