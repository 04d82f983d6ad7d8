"""Experts on disk, in both layouts; layer patterns; what Mistral's readers refuse."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import numpy as safetensors

from jaxlm import convert, models
from jaxlm.convert import read, write
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import mistral as rows
from jaxlm.core import param
from jaxlm.models import mistral
from tests.families.mistral import CASES, MISTRAL

MIXTRAL = dataclasses.replace(MISTRAL, window=None)


def drawn(cfg):
    r = np.random.default_rng(0)
    return param.map(lambda p: r.standard_normal(p.shape, np.float32), models.spec(cfg))


def exported(folder, kind, cfg, params):
    """A checkpoint's folder, and its tensors."""
    folder.mkdir(exist_ok=True)
    record = convert.ARCHITECTURES[kind].write(cfg)
    (folder / "config.json").write_text(json.dumps(record))
    (file,) = write.weights(folder, kind, cfg, params)
    return safetensors.load_file(folder / file)


def same(a, b):
    a, b = param.flatten(a), param.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_mixtral_reads_one_tensor_an_expert_and_all_in_two(tmp_path):
    params = drawn(MIXTRAL)
    tensors = exported(tmp_path, "mixtral", MIXTRAL, params)
    layer = "model.layers.2."
    w1 = tensors[f"{layer}block_sparse_moe.experts.3.w1.weight"]
    gate = params["stack"]["0"]["0_global"]["moe"]["gate"]
    np.testing.assert_array_equal(w1, gate[2, 3].T)
    cfg, again = read.load(tmp_path)
    assert cfg == MIXTRAL
    same(again, params)
    for i in range(3):
        layer = f"model.layers.{i}."
        old = f"{layer}block_sparse_moe."
        tensors[f"{layer}mlp.gate.weight"] = tensors.pop(f"{old}gate.weight")
        each = [
            [tensors.pop(f"{old}experts.{e}.{name}.weight") for name in ("w1", "w3", "w2")]
            for e in range(4)
        ]
        gate_up = np.stack([np.concatenate(x[:2]) for x in each])
        tensors[f"{layer}mlp.experts.gate_up_proj"] = gate_up
        tensors[f"{layer}mlp.experts.down_proj"] = np.stack([x[2] for x in each])
    (file,) = tmp_path.glob("*.safetensors")
    safetensors.save_file(tensors, file)
    same(read.load(tmp_path)[1], params)


def test_gpt_oss_has_gate_and_up_in_turns(tmp_path):
    cfg = dataclasses.replace(CASES["mistral-oss"], tied=False)
    params = drawn(cfg)
    tensors = exported(tmp_path, "gpt_oss", cfg, params)
    fused = tensors["model.layers.1.mlp.experts.gate_up_proj"]
    flat = param.flatten(params)
    (gate,), (up,) = (
        [x for path, x in flat.items() if path.endswith(f"_global/moe/{name}")]
        for name in ("gate", "up")
    )
    np.testing.assert_array_equal(fused, np.stack([gate[0], up[0]], -1).reshape(4, 16, 16))
    back, again = read.load(tmp_path)
    assert back.kinds == cfg.kinds == ("local", "global", "local")
    same(again, params)


def test_layer_types_become_the_shortest_pattern():
    record = convert.ARCHITECTURES["gpt_oss"].write(models.presets()["gpt-oss-20b"])
    assert rows.GPT_OSS.read(Fields(record)) == models.presets()["gpt-oss-20b"]
    record["layer_types"] = ["full_attention"] * 24
    assert rows.GPT_OSS.read(Fields(record)).pattern == ("global",)
    with pytest.raises(ValueError, match="layer_types"):
        rows.GPT_OSS.read(Fields(record | {"layer_types": ["chunked_attention"] * 24}))


def test_every_preset_is_written_and_read_again():
    for name, kind in (("mistral-7b", "mistral"), ("mixtral-8x22b", "mixtral")):
        known, cfg = convert.ARCHITECTURES[kind], models.presets()[name]
        fields = Fields(known.write(cfg))
        assert known.read(fields) == cfg
        fields.refuse_rest()


def test_what_a_config_json_cannot_express_is_refused():
    write_mixtral = convert.ARCHITECTURES["mixtral"].write
    with pytest.raises(ValueError, match="capacity"):
        write_mixtral(dataclasses.replace(MIXTRAL, capacity=1.0))
    with pytest.raises(ValueError, match="experts"):
        write_mixtral(models.presets()["mistral-7b"])
    with pytest.raises(ValueError, match="pattern"):
        write_mixtral(dataclasses.replace(MIXTRAL, window=3, pattern=("local", "global")))
    with pytest.raises(ValueError, match="sinks"):
        convert.ARCHITECTURES["gpt_oss"].write(dataclasses.replace(MIXTRAL, bias=True, limit=1.0))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("experts", None, "model.limit: 1.0 given; it must be None without model.experts"),
        ("active", 5, "count=5"),
        ("capacity", 0.0, "model.capacity: 0.0"),
        ("pattern", ("near",), "model.pattern"),
        ("window", 0, "model.window: 0 given"),
    ],
)
def test_configs_that_make_no_model_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        mistral.Config(**{"experts": 4, "limit": 1.0, field: value})
