"""T5 checkpoints: the table once as `shared.weight`, relative-position biases in block 0 alone."""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxlm.convert import config_json, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.weight_rows import Row, Table, linear, same
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


def _bias(ours: str, theirs: str) -> Row:
    """A table [buckets, heads], as it is in their file."""
    return Row(
        (ours,),
        (theirs,),
        lambda arrays, ps: [arrays[0]],
        lambda arrays, ps: [arrays[0]],
        lambda ps: [ps[0].shape],
    )


def names(cfg: t5.Config) -> Table:
    """The rows of a Config."""
    outer = [
        same("embed/table", "shared.weight"),
        _bias("encoder_bias", f"encoder.{_BIAS}"),
        same("encoder_norm", "encoder.final_layer_norm.weight"),
        _bias("bias", f"decoder.{_BIAS}"),
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


def read(f: Fields) -> t5.Config:
    """Our Config of a `t5` config.json."""
    layers = f.take("num_layers")
    act, gated = f.among("feed_forward_proj", "relu", FORMS)
    # transformers derives both from feed_forward_proj, and lets a file overrule that
    f.only("dense_act_fn", *(name for name, ours in config_json.ACTIVATIONS.items() if ours == act))
    f.only("is_gated_act", gated)
    f.only("is_encoder_decoder", True)
    f.only("is_decoder", False)
    tied = f.get("tie_word_embeddings", True)
    return t5.Config(
        vocab=f.take("vocab_size"),
        embed=f.take("d_model"),
        encoder=layers,
        layers=f.get("num_decoder_layers", layers),
        heads=f.take("num_heads"),
        head=f.take("d_kv"),
        ffn=f.take("d_ff"),
        context=f.get("n_positions", 512),
        act=act,
        gated=gated,
        buckets=f.get("relative_attention_num_buckets", 32),
        farthest=f.get("relative_attention_max_distance", 128),
        tied=tied,
        # transformers has no other word for it in the files of v1.1
        scaled=f.get("scale_decoder_outputs", tied),
        start=f.get("decoder_start_token_id", 0),
        eps=f.get("layer_norm_epsilon", 1e-6),
    )


def settle(cfg: t5.Config, tensors: Collection[str]) -> t5.Config:
    """The Config of a checkpoint without an output matrix is tied, whatever its config.json has for
    it: there tie_word_embeddings=False only leaves out the scaling."""
    return cfg if "lm_head.weight" in tensors else dataclasses.replace(cfg, tied=True)


def write(cfg: t5.Config) -> dict[str, Any]:
    """The `t5` config.json of a Config. Raises: ValueError for what it cannot express."""
    forms = {form: name for name, form in FORMS.items()}
    if (cfg.act, cfg.gated) not in forms:
        raise ValueError(
            f"model.act={cfg.act!r}, model.gated={cfg.gated}: model_type='t5' has {sorted(FORMS)}"
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab,
        "d_model": cfg.embed,
        "num_layers": cfg.encoder,
        "num_decoder_layers": cfg.layers,
        "num_heads": cfg.heads,
        "d_kv": cfg.head,
        "n_positions": cfg.context,
        "d_ff": cfg.ffn,
        "feed_forward_proj": forms[cfg.act, cfg.gated],
        "relative_attention_num_buckets": cfg.buckets,
        "relative_attention_max_distance": cfg.farthest,
        "dropout_rate": cfg.dropout,
        "layer_norm_epsilon": cfg.eps,
        "tie_word_embeddings": cfg.tied,
        "scale_decoder_outputs": cfg.scaled,
        "decoder_start_token_id": cfg.start,
        "pad_token_id": cfg.start,
    }
