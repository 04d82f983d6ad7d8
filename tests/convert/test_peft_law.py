"""The law of import over peft's LoraConfig: every field is set to another value, in the config that
makes an adapter and in the file beside one that is there. Where the adapted model's logits move,
`peft.load` follows or refuses the field by name.
"""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import lora_config, peft, read
from jaxlm.models import model as model_
from jaxlm.objectives import lora as adapter
from jaxlm.ops.attention import At
from tests.convert import cases

pytestmark = [pytest.mark.parity, pytest.mark.xdist_group("peft law")]

LAYERS = "model.layers"
# Other values of every field; what is not here fails the law, as a field of a newer peft should.
OTHER = {
    "r": [3],
    "lora_alpha": [9],
    "lora_dropout": [0.5],
    "use_rslora": [True],
    "rank_pattern": [{"q_proj": 2}, {"layers.0.self_attn.q_proj": 5}],
    "alpha_pattern": [{"down_proj": 3}, {"layers.1.mlp.down_proj": 11}],
    "target_modules": [["q_proj"], r".*\.down_proj", "all-linear"],
    "exclude_modules": [["q_proj"], r".*layers\.0\..*"],
    "layers_to_transform": [[1], 0],
    "layers_pattern": ["layers", ["blocks"]],
    "fan_in_fan_out": [True],
    "bias": ["all", "lora_only"],
    "modules_to_save": [["lm_head"]],
    "init_lora_weights": [
        False, "gaussian", "eva", "orthogonal", "pissa", "pissa_niter_4", "olora", "corda", "loftq",
        "mica", "lora_ga",
    ],
    "megatron_config": [{"a": 1}],
    "megatron_core": ["other.core"],
    "trainable_token_indices": [[1, 2]],
    "loftq_config": [{"loftq_bits": 8}],
    "eva_config": [{"rho": 1.5}],
    "corda_config": [{"corda_method": "kpm"}],
    "lora_ga_config": [{"direction": "random"}],
    "use_dora": [True],
    "velora_config": [{"num_groups": 2}],
    "alora_invocation_tokens": [[5, 6]],
    "use_qalora": [True],
    "qalora_group_size": [8],
    "monteclora_config": [{"num_samples": 2}],
    "layer_replication": [[[0, 2], [1, 2]]],
    "runtime_config": [{"ephemeral_gpu_offload": True}],
    "lora_bias": [True],
    "target_parameters": [["mlp.down_proj.weight"]],
    "use_bdlora": [{"nblocks": 2, "target_modules_bd_a": ["down_proj"], "match_strict": False}],
    "arrow_config": [{"top_k": 1}],
    "kasa_config": [{"beta": 0.1}],
    "ensure_weight_tying": [True],
    "auto_mapping": [{"a": "b"}],
    "base_model_name_or_path": ["other"],
    "inference_mode": [False],
    "peft_type": ["LOHA"],
    "peft_version": ["0.1.0"],
    "revision": ["main"],
    "task_type": ["FEATURE_EXTRACTION"],
}  # fmt: skip
# These only go together with another, which is then changed as well.
WITH = {
    "layers_pattern": {"layers_to_transform": [0, 1]},
    "qalora_group_size": {},
}  # fmt: skip
# The first layers' names, beside the adapters' own, that a value of the file would ask for.
PLAIN = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A tiny LLaMA's folder, our Config and weights, ids, and plain adapters of peft on it."""
    pytest.importorskip("peft")
    from tests.convert import oracle

    folder = tmp_path_factory.mktemp("peft")
    oracle.save("llama-bias", folder / "model")
    cfg, params = read.load(folder / "model")
    ids = cases.tokens("llama-bias", 1, 12, cfg.vocab)
    make(folder, {}, folder / "plain")
    return folder, cfg, params, ids, theirs(folder, folder / "plain", ids)


def make(folder, changed, target):
    """Adapters of a LoraConfig with changed fields, all that it trains drawn at random."""
    import peft as theirs
    import torch

    from tests.convert import oracle

    known = {f.name for f in dataclasses.fields(theirs.LoraConfig)}
    model = theirs.get_peft_model(
        oracle.load(folder / "model"),
        theirs.LoraConfig(**{k: v for k, v in (PLAIN | changed).items() if k in known}),
    )
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and ("lora_B" in name or "lora_" not in name):
                p.add_(0.1 * torch.randn(p.shape, generator=noise))
    model.save_pretrained(target)


def theirs(folder, source, ids):
    """float32[1, T, V] by a fresh model with the adapters that peft loads."""
    import peft as theirs

    from tests.convert import oracle

    model = theirs.PeftModel.from_pretrained(oracle.load(folder / "model"), source)
    return oracle.logits(model.eval().base_model.model, ids)


def fault(given, source, name):
    """What is wrong with our reading of adapters; None where it follows peft or refuses by name."""
    folder, cfg, params, ids, plain = given
    try:
        lora, weights = peft.load(source, "llama", cfg)
    except ValueError as error:
        return None if name in str(error) else f"refused without its name: {error}"
    try:
        want = theirs(folder, source, ids)
    except Exception as error:  # theirs raise whatever their own code meets
        return f"taken here, and peft raises {type(error).__name__}: {str(error)[:80]}"
    was, same = peft.load(folder / "plain", "llama", cfg)
    alike = jax.tree.structure(same) == jax.tree.structure(weights)
    alike = alike and jax.tree.all(jax.tree.map(np.array_equal, same, weights))
    if alike and lora.scale == was.scale:
        by = np.abs(plain - want).max() / want.std()
        return None if by <= 2e-5 else f"believed: {by:.2g} of the spread off"
    at = At(np.ones_like(ids), np.arange(ids.shape[1], dtype=np.int32)[None])
    built = models.build(cfg)
    with jax.disable_jit():
        joined = adapter.joined(lora, params, weights, None)
        got = np.asarray(model_.logits(built, joined, ids, at))
    by = np.abs(got - want).max() / want.std()
    return None if by <= 2e-5 else f"believed: {by:.2g} of the spread off"


def test_every_field_has_another_value(given):
    import peft as theirs

    assert {f.name for f in dataclasses.fields(theirs.LoraConfig)} <= {*OTHER}
    assert {*lora_config.FOLLOWED, *lora_config.HARMLESS, *lora_config.CHOOSING} <= {*OTHER}


def test_a_changed_file_is_followed_or_refused_by_name(given, tmp_path):
    """The fields of adapter_config.json one by one, beside tensors that stay as they are."""
    folder, faults = given[0], {}
    for name, values in OTHER.items():
        for i, value in enumerate(values):
            source = tmp_path / f"{name}{i}"
            shutil.copytree(folder / "plain", source)
            file = source / peft.CONFIG
            record = json.loads(file.read_text()) | WITH.get(name, {}) | {name: value}
            file.write_text(json.dumps(record))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if message := fault(given, source, name):
                    faults[f"{name}={value!r}"] = message
    assert not faults, faults


def test_adapters_of_another_value_are_followed_or_refused_by_name(given, tmp_path):
    """The same for adapters that peft makes with the field, where it can without a GPU or data."""
    folder, faults, count = given[0], {}, 0
    for name, values in OTHER.items():
        for i, value in enumerate(values):
            source = tmp_path / f"{name}{i}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    make(folder, WITH.get(name, {}) | {name: value}, source)
                except Exception:  # needs what this test does not have
                    continue
                count += 1
                if message := fault(given, source, name):
                    faults[f"{name}={value!r}"] = message
    assert not faults, faults
    assert count > 30


def test_fields_left_out_are_peft_s_defaults(tmp_path):
    theirs = pytest.importorskip("peft").LoraConfig(**PLAIN).to_dict()
    plain = {k: v for k, v in theirs.items() if not isinstance(v, set)}
    complete = json.loads(json.dumps(plain, default=str)) | {"r": 8, "lora_alpha": 8}
    file = tmp_path / peft.CONFIG
    file.write_text(json.dumps(complete))
    want = lora_config.read(file)
    for name in lora_config.FOLLOWED:
        file.write_text(json.dumps({k: v for k, v in complete.items() if k != name}))
        assert lora_config.read(file) == want, name
