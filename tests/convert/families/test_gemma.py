"""Gemma's config.json as released and as transformers 5 writes it; the text of a Gemma 3 that sees
images."""

import json

import numpy as np
import pytest

from jaxlm.convert import read, write
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import gemma
from jaxlm.models import gemma as family
from tests.convert import test_checkpoint as checkpoint

# What the released files say, less what every architecture's have. Those of Gemma 1 mean the tanh
# form by "gelu".
GEMMA_2B = {
    "attention_bias": False, "attention_dropout": 0.0, "head_dim": 256, "hidden_act": "gelu",
    "hidden_size": 2048, "intermediate_size": 16384, "max_position_embeddings": 8192,
    "model_type": "gemma", "num_attention_heads": 8, "num_hidden_layers": 18,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
    "vocab_size": 256000,
}  # fmt: skip
GEMMA2_2B = {
    "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
    "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
    "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
}  # fmt: skip
GEMMA3_1B = {
    "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None,
    "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
    "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "vocab_size": 262144,
}  # fmt: skip
IMAGES = {
    "boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144,
    "mm_tokens_per_image": 256, "model_type": "gemma3",
    "vision_config": {"hidden_size": 1152, "image_size": 896, "num_hidden_layers": 27},
}  # fmt: skip
GEMMA3_27B = IMAGES | {
    "text_config": {
        "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504,
        "model_type": "gemma3_text", "num_attention_heads": 32, "num_hidden_layers": 62,
        "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }
}  # fmt: skip


def config(architecture, record):
    fields = Fields(record)
    cfg = architecture.read(fields)
    fields.refuse_rest()
    return cfg


def test_released_configs_are_the_presets():
    assert config(gemma.GEMMA1, GEMMA_2B) == family.PRESETS["gemma-2b"]
    assert config(gemma.GEMMA2, GEMMA2_2B) == family.PRESETS["gemma2-2b"]
    assert config(gemma.GEMMA3, GEMMA3_1B) == family.PRESETS["gemma3-1b"]
    assert config(gemma.GEMMA3_IMAGES, GEMMA3_27B) == family.PRESETS["gemma3-27b"]


def test_null_switches_a_cap_off_and_absence_does_not():
    off = GEMMA2_2B | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    without = {k: v for k, v in GEMMA2_2B.items() if not k.endswith("softcapping")}
    read = [config(gemma.GEMMA2, record) for record in (off, without)]
    assert [(c.score_softcap, c.softcap) for c in read] == [(None, None), (50.0, 30.0)]


@pytest.mark.parametrize(
    ("architecture", "record", "change", "message"),
    [
        (gemma.GEMMA1, GEMMA_2B, {"attention_bias": True}, "attention_bias"),
        (gemma.GEMMA1, GEMMA_2B, {"hidden_act": "relu"}, "hidden_act"),
        (gemma.GEMMA1, GEMMA_2B, {"use_bidirectional_attention": True}, "bidirectional"),
        (gemma.GEMMA2, GEMMA2_2B, {"hidden_activation": "gelu"}, "hidden_activation"),
        (gemma.GEMMA2, GEMMA2_2B, {"attn_logit_softcapping": 0.0}, "a cap is above 0"),
        (gemma.GEMMA3, GEMMA3_1B, {"final_logit_softcapping": 0.0}, "final_logit_softcapping=0"),
        (gemma.GEMMA2, GEMMA2_2B, {"layer_types": ["full_attention"]}, "layer_types: 1 given"),
        (gemma.GEMMA2, GEMMA2_2B, {"layer_types": 26 * ["chunked"]}, "chunked"),
        (gemma.GEMMA2, GEMMA2_2B, {"sliding_window": None}, "window"),
        (gemma.GEMMA2, GEMMA2_2B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (gemma.GEMMA3, GEMMA3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (
            gemma.GEMMA3,
            GEMMA3_1B,
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "local layers",
        ),
        (
            gemma.GEMMA3,
            GEMMA3_1B,
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "has a type, where rope_type is read",
        ),
        (gemma.GEMMA3_IMAGES, GEMMA3_27B, {"text_config": {"new": 1}}, "text_config.*new"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(architecture, record, change, message):
    with pytest.raises(ValueError, match=message):
        config(architecture, record | change)


@pytest.mark.parametrize(
    ("table", "head"),
    [
        ("language_model.model.", "language_model.lm_head."),  # as released
        ("model.language_model.", "lm_head."),  # as transformers 5 holds it
    ],
)
def test_the_text_is_read_from_a_model_that_sees_images(tmp_path, table, head):
    cfg = family.Config(
        vocab=24, embed=8, layers=3, heads=2, kv=1, head=4, ffn=12, context=32, window=3,
        pattern=("local", "local", "global"), local_theta=1e3, sandwich=True, qk_norm=True,
        tied=False,
    )  # fmt: skip
    params = checkpoint.save(tmp_path, cfg)
    record = json.loads((tmp_path / "config.json").read_text())
    stored = {
        name.replace("lm_head.", head) if "lm_head" in name else name.replace("model.", table): x
        for name, x in checkpoint.tensors(tmp_path).items()
    }
    seeing = {
        "vision_tower.vision_model.post_layernorm.weight": np.ones(4, np.float32),
        "multi_modal_projector.mm_input_projection_weight": np.ones((4, 8), np.float32),
    }
    checkpoint.put(tmp_path, stored | seeing)
    (tmp_path / "config.json").write_text(json.dumps(IMAGES | {"text_config": record}))
    again, loaded = read.load(tmp_path)
    assert again == cfg and checkpoint.equal(loaded, params)
    # and it is exported as what it is
    assert write.architecture(again)[0] == "gemma3_text"
    # what is neither text nor images is still refused
    checkpoint.put(tmp_path, stored | seeing | {"audio_tower.weight": np.ones(4, np.float32)})
    assert "audio_tower" in checkpoint.refusal(tmp_path)
