"""Qwen's config.json as released, and its experts in both layouts."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlm.convert import read, write
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import qwen
from jaxlm.models import qwen as family
from jaxlm.ops import rope
from tests.convert import test_checkpoint as checkpoint

# What the released files say, less what every architecture's have.
QWEN2_7B = {
    "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
    "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "use_mrope": False,
    "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
QWEN3_30B = {
    "attention_bias": False, "attention_dropout": 0.0, "decoder_sparse_step": 1, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
    "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
    "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN15_MOE = {
    "attention_dropout": 0.0, "decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 5632, "max_position_embeddings": 8192, "max_window_layers": 21,
    "model_type": "qwen2_moe", "moe_intermediate_size": 1408, "norm_topk_prob": False,
    "num_attention_heads": 16, "num_experts": 60, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 16, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632, "sliding_window": 32768,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def config(architecture, record):
    fields = Fields(record)
    cfg = architecture.read(fields)
    fields.refuse_rest()
    return cfg


def test_released_configs_are_the_presets():
    assert config(qwen.QWEN2, QWEN2_7B) == family.PRESETS["qwen2.5-7b"]
    assert config(qwen.QWEN3_MOE, QWEN3_30B) == family.PRESETS["qwen3-30b-a3b"]
    assert config(qwen.QWEN2_MOE, QWEN15_MOE) == family.PRESETS["qwen1.5-moe-a2.7b"]


def test_the_long_context_that_the_model_cards_advise():
    advised = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    cfg = config(qwen.QWEN2, QWEN2_7B | {"rope_scaling": advised})
    assert cfg.scaling == rope.Yarn(4.0, 32768) and cfg.context == 131072


def test_windows():
    on = {"use_sliding_window": True, "sliding_window": 5, "num_hidden_layers": 6}
    late = config(qwen.QWEN2, QWEN2_7B | on | {"max_window_layers": 2})
    assert late.kinds == 2 * ("global",) + 4 * ("local",) and late.window == 5
    never = config(qwen.QWEN2, QWEN2_7B | on)
    assert never.pattern == ("global",) and never.window is None
    types = 3 * ["sliding_attention", "full_attention"]
    listed = config(qwen.QWEN2, QWEN2_7B | on | {"max_window_layers": 2, "layer_types": types})
    assert listed.pattern == ("local", "global")
    everywhere = config(qwen.QWEN3_MOE, QWEN3_30B | on)
    assert everywhere.kinds == 6 * ("local_moe",)
    mixed = config(qwen.QWEN2_MOE, QWEN15_MOE | on | {"max_window_layers": 3})
    assert mixed.kinds == tuple(f"{k}_moe" for k in ("local", "global") * 2 + ("global",) * 2)


def test_dense_layers_among_those_with_experts():
    small = QWEN3_30B | {"num_hidden_layers": 6}
    every = config(qwen.QWEN3_MOE, small | {"decoder_sparse_step": 3, "mlp_only_layers": [5]})
    assert every.dense == (0, 1, 3, 4, 5)
    assert every.kinds == ("global", "global", "global_moe", "global", "global", "global")
    again = config(qwen.QWEN3_MOE, write.architecture(every)[1])
    assert again == every


@pytest.mark.parametrize(
    ("architecture", "record", "change", "message"),
    [
        (qwen.QWEN2, QWEN2_7B, {"hidden_act": "gelu"}, "hidden_act"),
        (qwen.QWEN2, QWEN2_7B, {"use_mrope": True}, "use_mrope"),
        (qwen.QWEN2, QWEN2_7B, {"layer_types": 28 * ["linear_attention"]}, "linear_attention"),
        (qwen.QWEN2, QWEN2_7B, {"layer_types": 28 * ["sliding_attention"]}, "window"),
        (qwen.QWEN2, QWEN2_7B, {"rope_scaling": {"type": "mrope"}}, "mrope"),
        (qwen.QWEN3_MOE, QWEN3_30B, {"num_experts_per_tok": 129}, "model.active"),
        (qwen.QWEN3_MOE, QWEN3_30B, {"shared_expert_intermediate_size": 8}, "shared_expert"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(architecture, record, change, message):
    with pytest.raises(ValueError, match=message):
        config(architecture, record | change)


SMALL = family.Config(
    vocab=24, embed=8, layers=2, heads=2, kv=1, head=4, ffn=12, context=32, qk_norm=True,
    experts=3, active=2, expert_ffn=6, dense=(0,),
)  # fmt: skip


def test_what_no_qwen_is_is_not_exported():
    for changes, message in (
        ({"capacity": 1.25}, "capacity"),
        ({"bias": True}, "bias"),
        ({"pattern": ("local", "global"), "window": 4}, "pattern"),
    ):
        with pytest.raises(ValueError, match=message):
            write.architecture(dataclasses.replace(SMALL, **changes))


def test_experts_one_by_one_and_all_in_two_tensors(tmp_path):
    params = checkpoint.save(tmp_path, SMALL)
    stored = checkpoint.tensors(tmp_path)
    prefix = "model.layers.1.mlp.experts."
    names = [f"{prefix}{e}.{m}_proj.weight" for e in range(3) for m in ("gate", "up", "down")]
    gate, up, down = ([stored.pop(n) for n in names[i::3]] for i in range(3))
    stored[f"{prefix}gate_up_proj"] = np.concatenate([np.stack(gate), np.stack(up)], 1)
    stored[f"{prefix}down_proj"] = np.stack(down)
    checkpoint.put(tmp_path, stored)
    again, loaded = read.load(tmp_path)
    assert again == SMALL and checkpoint.equal(loaded, params)


@pytest.mark.parity
def test_both_layouts_of_transformers_are_the_same_model(tmp_path):
    from tests.convert import oracle

    theirs = oracle.save("qwen2-moe", tmp_path)
    stacked = tmp_path / "whole"
    theirs.save_pretrained(stacked, save_original_format=False)
    fused = checkpoint.tensors(stacked)
    assert any(name.endswith("experts.gate_up_proj") for name in fused)
    assert not any(".experts.0." in name for name in fused)
    (cfg, each), (same, together) = read.load(tmp_path), read.load(stacked)
    assert cfg == same and checkpoint.equal(each, together)
    assert json.loads((stacked / "config.json").read_text())["model_type"] == "qwen2_moe"
