"""DeepSeek's checkpoints: whether multi-token prediction is in them is for the tensors to say."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import read, tensor_files, write
from jaxlm.core import param
from jaxlm.ops.attention import At
from tests.families.deepseek import CASES

CFG = dataclasses.replace(CASES["deepseek"], layers=2, ahead=2)


@pytest.fixture
def saved(tmp_path):
    """(folder, weights, tensors by name) of an exported checkpoint that looks two tokens ahead."""
    r = np.random.default_rng(0)
    w = param.map(lambda p: r.standard_normal(p.shape, np.float32), models.spec(CFG))
    kind, record = write.architecture(CFG)
    assert kind == "deepseek_v3" and record["num_nextn_predict_layers"] == 2
    write.weights(tmp_path, kind, CFG, w)
    write.configs(tmp_path, record, {}, "float32")
    return tmp_path, w, {n: tensor_files.read(t) for n, t in tensor_files.find(tmp_path).items()}


def rewrite(folder, tensors):
    items = [([tensor_files.Item(n, x.shape)], [x]) for n, x in tensors.items()]
    tensor_files.write(folder, items, lambda arrays: arrays, np.dtype(np.float32), 10**9)


def equal(a, b):
    a, b = param.flatten(a), param.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_layers_ahead_are_those_behind_the_last(saved):
    folder, w, tensors = saved
    cfg, loaded = read.load(folder)
    assert cfg == CFG
    equal(loaded, w)
    layer = jax.tree.map(lambda x: x[1], w["ahead"]["0"]["0_moe"])
    join = np.concatenate(list(layer["join"]))  # token first, then hidden state
    np.testing.assert_array_equal(tensors["model.layers.3.eh_proj.weight"], join.T)
    for ours, theirs in (
        (layer["token_norm"], "enorm.weight"),
        (layer["hidden_norm"], "hnorm.weight"),
        (layer["norm"], "shared_head.norm.weight"),
        (layer["layer"]["moe"]["down"][5].T, "mlp.experts.5.down_proj.weight"),
        (layer["layer"]["moe"]["select_bias"], "mlp.gate.e_score_correction_bias"),
    ):
        np.testing.assert_array_equal(tensors[f"model.layers.3.{theirs}"], ours)


def test_without_its_tensors_a_model_looks_one_token_ahead(saved):
    """transformers writes num_nextn_predict_layers and none of the tensors."""
    folder, w, tensors = saved
    rewrite(folder, {n: x for n, x in tensors.items() if not n.startswith("model.layers.2.")
                     and not n.startswith("model.layers.3.")})  # fmt: skip
    cfg, loaded = read.load(folder)
    assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 2
    assert cfg == dataclasses.replace(CFG, ahead=0)
    equal(loaded, {name: tree for name, tree in w.items() if name != "ahead"})


def test_the_releases_copies_of_embedding_and_output_matrix_are_left(saved):
    folder, w, tensors = saved
    copies = {
        "model.layers.2.embed_tokens.weight": tensors["model.embed_tokens.weight"],
        "model.layers.2.shared_head.head.weight": tensors["lm_head.weight"],
    }
    rewrite(folder, tensors | copies)
    equal(read.load(folder)[1], w)


def test_half_a_layer_ahead_is_refused(saved):
    folder, _, tensors = saved
    del tensors["model.layers.3.hnorm.weight"]
    rewrite(folder, tensors)
    with pytest.raises(ValueError, match=r"missing tensor model\.layers\.3\.hnorm\.weight"):
        read.load(folder)


def test_experts_in_two_tensors_are_the_same_weights(saved):
    folder, w, tensors = saved
    fused = {n: x for n, x in tensors.items() if ".experts." not in n}
    for layer in ("model.layers.1", "model.layers.2", "model.layers.3"):
        each = [f"{layer}.mlp.experts.{e}." for e in range(CFG.experts)]
        gate, up, down = (
            np.stack([tensors[f"{p}{name}_proj.weight"] for p in each])
            for name in ("gate", "up", "down")
        )
        fused[f"{layer}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], 1)
        fused[f"{layer}.mlp.experts.down_proj"] = down
    rewrite(folder, fused)
    equal(read.load(folder)[1], w)


def test_v2_is_another_model_type():
    cfg = dataclasses.replace(CASES["deepseek-v2"], groups=1, groups_chosen=1)
    kind, record = write.architecture(cfg)
    assert (kind, record["topk_method"], record["q_lora_rank"]) == ("deepseek_v2", "greedy", None)
    with pytest.raises(ValueError, match=r"deepseek_v3: model.score='softmax'(.|\n)*_v2: .*ahead"):
        write.architecture(dataclasses.replace(cfg, ahead=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [("attention_bias", True), ("scoring_func", "softmax"), ("num_key_value_heads", 2),
     ("moe_layer_freq", 2), ("topk_method", "greedy"), ("quantization_config", {"bits": 8})],
)  # fmt: skip
def test_what_is_not_built_is_refused(saved, field, value):
    folder = saved[0]
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {field: value}))
    with pytest.raises(ValueError, match=field):
        read.load(folder)


@pytest.mark.parity
def test_the_layer_ahead_is_transformers_own(saved):
    """transformers drafts with these layers: MtpModel, around one of its own decoder layers."""
    import torch
    import transformers
    from transformers.modeling_layers import MtpModel

    folder, w, tensors = saved
    w = jax.tree.map(lambda x: 0.15 * x, w)
    main = transformers.DeepseekV3ForCausalLM(transformers.AutoConfig.from_pretrained(folder))
    drafter = MtpModel(main, CFG.ahead).eval()
    drafter.config._attn_implementation = "eager"
    theirs = {n: torch.tensor(0.15 * x) for n, x in tensors.items()}

    def named(name):
        """Their tensor of a layer ahead, by its name in memory: experts are stacked there."""
        k, _, name = name.removeprefix("layers.").partition(".")
        prefix, name = f"model.layers.{CFG.layers + int(k)}.", name.removeprefix("mtp_block.")
        if name.startswith("mlp.experts."):
            parts = ("down",) if "down" in name else ("gate", "up")
            each = [[f"{prefix}mlp.experts.{e}.{p}_proj.weight" for p in parts] for e in range(8)]
            return torch.stack([torch.cat([theirs[n] for n in names]) for names in each])
        return theirs[prefix + name.replace("post_norm", "shared_head.norm")]

    own = {n for n in drafter.state_dict() if n.startswith("layers.")}
    state = {n: named(n) for n in own}
    state |= {"embed_tokens.weight": theirs["model.embed_tokens.weight"]}
    keys = drafter.load_state_dict(state, strict=False)
    assert not keys.unexpected_keys and all("shared_head" in n for n in keys.missing_keys)
    r = np.random.default_rng(1)
    tokens = r.integers(0, CFG.vocab, (1, 8))
    x = r.standard_normal((1, 8, CFG.embed), np.float32)
    at = At(np.ones((1, 8), np.int32), np.arange(8, dtype=np.int32)[None])
    logits = jax.jit(lambda w: models.build(CFG).ahead(w, x, tokens, at)[0])(w)
    want = torch.tensor(x)
    for k, got in enumerate(logits, 1):
        with torch.no_grad():
            want = drafter.forward_layer(
                k - 1, want[:, : 8 - k], torch.arange(8 - k)[None], None,
                input_ids=torch.tensor(tokens[:, k:]),
            )  # fmt: skip
        np.testing.assert_allclose(got[:, : 8 - k], want, atol=2e-5, err_msg=f"depth {k}")
    assert np.abs(want.numpy()).max() > 0.1
