"""Names of tensors as files of every architecture have them: with the prefix of transformers' base
model and without it, as AutoModel saves them, and with buffers that old files hold."""

import json

import numpy as np
import pytest

from jaxlm import convert
from jaxlm.convert import read, weight_rows, write
from jaxlm.convert.config_json import Fields
from tests.convert import cases
from tests.convert.test_checkpoint import equal, put, refusal, tensors, weights

KINDS = sorted(k for k in convert.ARCHITECTURES if k != "gemma3")
# Buffers of old files, by the name of a layer's attention.
BUFFERS = {
    "gpt2": ["h.1.attn.bias", "h.0.attn.masked_bias"],
    "openai-gpt": ["h.0.attn.bias"],
    "gptj": ["h.0.attn.bias", "h.1.attn.masked_bias"],
    "gpt_neox": ["layers.0.attention.bias", "layers.1.attention.masked_bias"]
    + ["layers.0.attention.rotary_emb.inv_freq"],
    "falcon": ["h.0.self_attention.rotary_emb.inv_freq"],
    "cohere": ["layers.0.self_attn.rotary_emb.inv_freq"],
    "deepseek_v3": ["layers.3.embed_tokens.weight", "layers.3.shared_head.head.weight"],
}


def save(folder, kind, **changes):
    """A checkpoint of a model_type's first oracle as this library writes it: (Config, weights)."""
    absent = {"sliding_window": None} if kind == "mixtral" else {}  # in every file of transformers
    record = cases.ORACLES[cases.FIRST[kind]] | absent | changes
    cfg = convert.ARCHITECTURES[kind].read(
        Fields({k: v for k, v in record.items() if k != "architecture"})
    )
    params = weights(cfg)
    write.configs(folder, write.architecture(cfg, kind)[1], {}, "float32")
    write.weights(folder, kind, cfg, params)
    cfg, params = read.load(folder)  # as `settle` leaves it
    return cfg, params


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_the_prefix_or_with_it_everywhere_are_read(kind, tmp_path):
    """AutoModel saves decoders without `model.` (Qwen3-Embedding has such files), which
    transformers loads; here they were refused as hundreds of unknown and missing tensors."""
    cfg, params = save(tmp_path, kind)
    prefix = convert.ARCHITECTURES[kind].names(cfg).prefix + "."
    original = tensors(tmp_path)
    bare = {name.removeprefix(prefix): x for name, x in original.items()}
    everywhere = {prefix + name: x for name, x in bare.items()}
    assert bare.keys() != original.keys() or kind == "t5"
    assert everywhere.keys() != original.keys() or cfg.tied
    old = {name: np.ones(3, np.float32) for name in BUFFERS.get(kind, ())}
    for named in (bare | old, everywhere | {prefix + name: x for name, x in old.items()}):
        put(tmp_path, named)
        loaded, again = read.load(tmp_path)
        assert loaded == cfg and equal(again, params)
    # but what is none of these is not overlooked, and the same weight twice is no choice
    put(tmp_path, bare | {"h.0.attn.c_proj.extra_bias": np.ones(3, np.float32)})
    assert "unknown tensor h.0.attn.c_proj.extra_bias" in refusal(tmp_path)
    twice = next(name for name in bare if prefix + name not in bare)
    put(tmp_path, bare | {prefix + twice: bare[twice]})
    assert "are both" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["qwen3", "gptj", "bert", "t5"])
def test_a_file_without_the_head_is_tied_or_refused_with_the_reason(kind, tmp_path):
    """transformers would draw an absent output matrix at random and warn."""
    changes = {} if kind in ("bert", "t5") else {"tie_word_embeddings": False}
    save(tmp_path, kind, **changes)
    head = ("lm_head.", "cls.")
    original = {n: x for n, x in tensors(tmp_path).items() if not n.startswith(head)}
    put(tmp_path, original)
    if kind == "t5":
        assert read.load(tmp_path)[0].tied
        return
    message = refusal(tmp_path)
    assert "missing tensor" in message and "transformers would draw it at random" in message
    assert "unknown tensor" not in message
    if kind == "qwen3":
        record = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(record | {"tie_word_embeddings": True}))
        assert read.load(tmp_path)[0].tied


@pytest.mark.parametrize("start", ["language_model.model.", "model.language_model."])
@pytest.mark.parametrize("outer", [{}, {"tie_word_embeddings": True}])
def test_a_gemma3_with_images_as_transformers_saves_it(start, outer, tmp_path):
    """transformers 5 writes tie_word_embeddings beside text_config, and there it counts: a
    checkpoint was refused for a field that says what is the default."""
    cfg, params = save(tmp_path, "gemma3_text")
    text = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    record = {"model_type": "gemma3", "text_config": text, "vision_config": {}, **outer}
    (tmp_path / "config.json").write_text(json.dumps(record))
    original = {name.replace("model.", start): x for name, x in tensors(tmp_path).items()}
    put(tmp_path, original | {"vision_tower.patch.weight": np.ones(3, np.float32)})
    loaded, again = read.load(tmp_path)
    assert loaded == cfg and equal(again, params)


def test_a_name_is_known_whatever_its_numbers_are():
    rows = [weight_rows.same("norm", "/model.layers.{i}.norm.weight")]
    known = weight_rows.Table([], {"stack": weight_rows.Stack("model.layers.{i}.", rows)})
    assert known.renamed(["layers.17.norm.weight", "odd.3.weight"]) == {
        "layers.17.norm.weight": "model.layers.17.norm.weight",
        "odd.3.weight": "odd.3.weight",
    }
