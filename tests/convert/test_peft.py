"""Adapters as peft's files: an update of theirs is an update of ours, there and back; and live."""

import json
import pathlib

import numpy as np
import pytest

from jaxlm import convert, models
from jaxlm.convert import peft, read, tensor_files, write
from jaxlm.core import param
from jaxlm.objectives import lora as adapter
from tests.convert import cases, golden

# One case of each way to lay heads out: apart, GPT-2's Conv1D, one after the other, group by group
# (with all and with one key), pairs side by side.
FAST = ("gpt2", "gpt_neox", "phi3", "gptj", "falcon")


def stacked_matrices(cfg):
    """Paths of all matrices of which a layer has one; not the routers, which are no layer there."""
    flat = param.flatten(models.spec(cfg))
    return tuple(p for p, w in flat.items() if adapter.quantised(w))


def drawn(cfg, lora, seed=0):
    r = np.random.default_rng(seed)
    spec = adapter.spec(models.spec(cfg), lora)
    return param.map(lambda p: 0.1 * r.standard_normal(p.shape, np.float32), spec)


def record_of(kind):
    with np.load(pathlib.Path(golden.__file__).parent / "golden.npz") as stored:
        return golden.records(stored)[cases.FIRST[kind]]


def tensors_of(folder, kind, cfg, params):
    folder.mkdir()
    write.weights(folder, kind, cfg, params)
    return {name: tensor_files.read(t) for name, t in tensor_files.find(folder).items()}


def merged(cfg, lora, base, adapters):
    """The base with every update added, by plain NumPy."""
    flat, changed = param.flatten(adapters), dict(param.flatten(base))
    for path, p in param.flatten(models.spec(cfg)).items():
        if f"{path}/a" in flat:
            a, b = flat[f"{path}/a"], flat[f"{path}/b"]
            n = p.shape[0] if p.copies else 1
            product = a.reshape(n, -1, a.shape[-1]) @ b.reshape(n, a.shape[-1], -1)
            changed[path] = changed[path] + lora.scale * product.reshape(p.shape)
    return param.nested(changed)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=[] if k in FAST else [pytest.mark.slow])
        for k in cases.FIRST
        if k in convert.ARCHITECTURES
    ],
)
def test_their_matrix_plus_their_update_is_ours_merged(kind, tmp_path):
    """What peft adds to each tensor, B A times its scale, is what our merged weights differ by; and
    the files, read again, are the same update."""
    cfg, base = golden.ours(cases.FIRST[kind], record_of(kind))
    root = kind in ("phi3", "gpt_neox")
    lora = adapter.Lora(
        rank=3, alpha=5.0, targets=stacked_matrices(cfg), scaling="root" if root else "rank"
    )
    adapters = drawn(cfg, lora)
    where = tmp_path / "adapter"
    where.mkdir()
    names = peft.write(where, kind, cfg, lora, adapters)
    settings = json.loads((where / peft.CONFIG).read_text())
    before = tensors_of(tmp_path / "before", kind, cfg, base)
    after = tensors_of(tmp_path / "after", kind, cfg, merged(cfg, lora, base, adapters))
    pairs = {n: tensor_files.read(t) for n, t in tensor_files.find(where).items()}
    assert pairs.keys() == {f"base_model.model.{n}.lora_{x}.weight" for n in names for x in "AB"}
    for name in names:
        a, b = (pairs[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        rank = settings["rank_pattern"].get(name, settings["r"])
        scale = settings["alpha_pattern"].get(name, settings["lora_alpha"]) / (
            rank**0.5 if root else rank
        )
        update = scale * b @ a
        assert a.shape[0] == rank == b.shape[1]
        change = after[f"{name}.weight"] - before[f"{name}.weight"]
        change = change.T if settings["fan_in_fan_out"] and "lm_head" not in name else change
        np.testing.assert_allclose(change, update, atol=2e-6, err_msg=name)
    again, weights = peft.load(str(where), kind, cfg)
    assert again.scale == pytest.approx(lora.scale) and again.scaling == lora.scaling
    want = param.flatten(merged(cfg, lora, base, adapters))
    got = param.flatten(merged(cfg, again, base, weights))
    for path, w in want.items():
        np.testing.assert_allclose(got[path], w, atol=1e-6, err_msg=path)


def test_some_of_a_fused_module(tmp_path):
    """Queries and values of GPT-2's one matrix: two blocks, and keys stay as they are."""
    cfg, base = golden.ours("gpt2", record_of("gpt2"))
    lora = adapter.Lora(rank=2, alpha=4.0, targets=("stack/*/q", "stack/*/v"))
    adapters = drawn(cfg, lora)
    peft.write(tmp_path, "gpt2", cfg, lora, adapters)
    settings = json.loads((tmp_path / peft.CONFIG).read_text())
    assert settings["target_modules"] == ["c_attn"] and settings["fan_in_fan_out"]
    assert set(settings["rank_pattern"].values()) == {4} and set(
        settings["alpha_pattern"].values()
    ) == {8}
    pairs = {n: tensor_files.read(t) for n, t in tensor_files.find(tmp_path).items()}
    b = pairs["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    third = b.shape[0] // 3
    assert not b[third : 2 * third].any() and not b[:third, 2:].any() and b[:third, :2].all()
    again, weights = peft.load(tmp_path, "gpt2", cfg)
    want = param.flatten(merged(cfg, lora, base, adapters))
    for path, w in param.flatten(merged(cfg, again, base, weights)).items():
        np.testing.assert_allclose(w, want[path], atol=1e-6, err_msg=path)


def test_a_router_is_no_linear_layer(tmp_path):
    cfg, _ = golden.ours(cases.FIRST["mixtral"], record_of("mixtral"))
    lora = adapter.Lora(rank=2, targets=("stack/*/router",))
    with pytest.raises(ValueError, match="adapter.targets: .*router.* not a linear layer"):
        peft.write(tmp_path, "mixtral", cfg, lora, drawn(cfg, lora))


def test_what_cannot_be_read_is_named(tmp_path):
    cfg, _ = golden.ours("llama", record_of("llama"))
    lora = adapter.Lora(rank=2, targets=("stack/*/down",))
    peft.write(tmp_path, "llama", cfg, lora, drawn(cfg, lora))
    file = tmp_path / peft.CONFIG
    right = json.loads(file.read_text())
    assert right["target_modules"] == ["down_proj"]
    for wrong, message in (
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"peft_type": "LOHA"}, "only LORA is read"),
        ({"r": 3}, r"\(2, 48\).* is right"),
    ):
        file.write_text(json.dumps(right | wrong))
        with pytest.raises(ValueError, match=message):
            peft.load(tmp_path, "llama", cfg)
    file.write_text(json.dumps(right))
    other, _ = golden.ours("gpt2", record_of("gpt2"))
    with pytest.raises(ValueError, match="has no adapter with .*down_proj"):
        peft.load(tmp_path, "gpt2", other)
    with pytest.raises(FileNotFoundError, match="holds no adapter of peft"):
        peft.load(tmp_path / "nothing", "llama", cfg)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "gpt_neox", "gemma2", "qwen2"])
def test_live_peft_loads_ours_and_ours_loads_theirs(kind, tmp_path):
    """transformers with our adapter on top has our logits, and we have those of an adapter that
    peft made; merged by peft, too."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("peft")
    from jaxlm.models import model as model_
    from jaxlm.ops.attention import At
    from tests.convert import oracle

    oracle.save(cases.FIRST[kind], tmp_path / "model")
    cfg, base = read.load(tmp_path / "model")
    lora = adapter.Lora(rank=2, alpha=6.0, targets=stacked_matrices(cfg))
    ids = cases.tokens(cases.FIRST[kind], 2, 12, cfg.vocab)
    at = At(np.ones_like(ids), np.broadcast_to(np.arange(12, dtype=np.int32), ids.shape))
    model = models.build(cfg)

    def ours(lora, adapters):
        return model_.logits(model, adapter.joined(lora, base, adapters, None), ids, at)

    adapters = drawn(cfg, lora)
    (tmp_path / "ours").mkdir()
    peft.write(tmp_path / "ours", kind, cfg, lora, adapters, str(tmp_path / "model"))
    with_ours = theirs.PeftModel.from_pretrained(oracle.load(tmp_path / "model"), tmp_path / "ours")
    want = np.asarray(ours(lora, adapters))
    assert np.abs(want - np.asarray(model_.logits(model, base, ids, at))).max() > 0.05
    np.testing.assert_allclose(oracle.logits(with_ours, ids), want, atol=3e-5)
    merged_ = with_ours.merge_and_unload()
    np.testing.assert_allclose(oracle.logits(merged_, ids), want, atol=3e-5)

    wanted = {"gpt2": ["c_attn", "c_proj"], "phi3": ["qkv_proj"], "gpt_neox": ["query_key_value"]}
    adapted = theirs.get_peft_model(
        oracle.load(tmp_path / "model"),
        theirs.LoraConfig(
            r=4, lora_alpha=3, target_modules=wanted.get(kind, ["q_proj", "down_proj"]),
            use_rslora=kind == "phi3", task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(tmp_path / "theirs")
    again, weights = peft.load(tmp_path / "theirs", kind, cfg)
    np.testing.assert_allclose(ours(again, weights), oracle.logits(adapted, ids), atol=3e-5)
