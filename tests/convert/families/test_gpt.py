"""GPT's and PaLM's relatives on disk: heads that lie otherwise, older layouts, what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlm import convert, models
from jaxlm.convert import config_json, read, weight_rows, write
from jaxlm.convert.families import fused_heads
from jaxlm.core import param
from jaxlm.models import gpt, palm
from jaxlm.ops import rope
from tests.convert import cases
from tests.convert.test_checkpoint import equal, put, tensors, weights

RNG = np.random.default_rng(0)
KINDS = [k for k, a in convert.ARCHITECTURES.items() if a.family in (gpt.Config, palm.Config)]
PRESETS = gpt.PRESETS | palm.PRESETS


def config(kind, **changes):
    """Our Config of the first oracle of a model_type, with some fields changed."""
    record = cases.ORACLES[cases.FIRST[kind]] | changes
    f = config_json.Fields({k: v for k, v in record.items() if k != "architecture"})
    cfg = convert.ARCHITECTURES[kind].read(f)
    f.refuse_rest()
    return cfg


def save(folder, kind):
    """A checkpoint of a model_type's first oracle as this library writes it: (Config, weights)."""
    cfg = config(kind)
    params = weights(cfg)
    write.configs(folder, write.architecture(cfg, kind)[1], {}, "float32")
    write.weights(folder, kind, cfg, params)
    return cfg, params


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_is_read_as_it_was_written(name):
    cfg = PRESETS[name]
    kind, record = write.architecture(cfg)
    fields = config_json.Fields(json.loads(json.dumps(record)))
    assert convert.ARCHITECTURES[kind].read(fields) == cfg
    fields.refuse_rest()


@pytest.mark.parametrize(
    ("start", "kind"),
    [("gpt1", "openai-gpt"), ("gpt", "gpt2"), ("bloom", "bloom"), ("gptj", "gptj")]
    + [("pythia", "gpt_neox"), ("falcon", "falcon"), ("command", "cohere"), ("palm", "cohere")],
)
def test_presets_are_written_as_what_they_are(start, kind):
    named = [n for n in PRESETS if n.startswith(start) and (start != "gpt" or n != "gpt1")]
    named = [n for n in named if start != "gpt" or n.startswith("gpt2")]
    assert named and {write.architecture(PRESETS[n])[0] for n in named} == {kind}


@pytest.mark.parametrize(("kv", "group"), [(1, 4), (2, 2), (4, 1)])
def test_fused_heads_lie_in_groups_of_queries_a_key_and_a_value(kv, group):
    head, embed = 2, 3
    p = param.shaper(heads=kv * group, kv=kv, head=head, embed=embed)
    q, k = p("embed -> heads head"), p("embed -> kv head")
    theirs = RNG.standard_normal((kv * (group + 2) * head, embed))
    row = fused_heads.grouped(("q", "k", "v"), "fused")
    ours = row.read([theirs], [q, k, k])
    lines = iter(theirs.reshape(-1, head, embed))  # one [head, embed] after the other
    for j in range(kv):
        for g in range(group):
            np.testing.assert_array_equal(ours[0][:, j * group + g], next(lines).T)
        np.testing.assert_array_equal(ours[1][:, j], next(lines).T)
        np.testing.assert_array_equal(ours[2][:, j], next(lines).T)
    np.testing.assert_array_equal(row.write(ours, [q, k, k])[0], theirs)
    assert row.shapes([q, k, k]) == [theirs.shape]
    # a bias is a matrix of one input
    bias = [p("heads head", init=param.zeros), *[p("kv head", init=param.zeros)] * 2]
    weight = row.read([theirs[:, 0]], bias)
    assert all(np.array_equal(a, b[0]) for a, b in zip(weight, ours, strict=True))
    np.testing.assert_array_equal(row.write(weight, bias)[0], theirs[:, 0])
    assert row.shapes(bias) == [theirs[:, 0].shape]


@pytest.mark.parametrize("rotary", [4, 6])
def test_neighbouring_pairs_become_halves_without_a_change_of_scores(rotary):
    """Scores of their weights, turned in pairs of neighbours, are those of ours in halves."""
    p = param.shaper(heads=2, head=6, embed=5)
    row = fused_heads.interleaved(weight_rows.linear("q", "q.weight"), rotary)
    turned, at = rope.frequencies(rotary, 100.0), np.arange(4)[None]
    theirs = [RNG.standard_normal((12, 5)).astype(np.float32) for _ in "qk"]
    spec = [p("embed -> heads head")]
    x = RNG.standard_normal((1, 4, 5)).astype(np.float32)

    def scores(q, k, interleaved):
        q, k = (rope.apply(x, at, turned, interleaved) for x in (q, k))
        return np.einsum("BTNH,BSNH->BNTS", q, k)

    plain = scores(*((x @ w.T).reshape(1, 4, 2, 6) for w in theirs), True)
    ours = [row.read([w], spec)[0] for w in theirs]
    mine = scores(*(np.einsum("BTD,DNH->BTNH", x, w) for w in ours), False)
    np.testing.assert_allclose(mine, plain, atol=1e-5)
    assert all(
        np.array_equal(row.write([a], spec)[0], b) for a, b in zip(ours, theirs, strict=True)
    )


def test_gpt_neox_modules_own_name_of_the_output_matrix(tmp_path):
    _, params = save(tmp_path, "gpt_neox")
    named = tensors(tmp_path)
    named["lm_head.weight"] = named.pop("embed_out.weight")
    put(tmp_path, named)
    assert equal(read.load(tmp_path)[1], params)


def test_the_rows_of_opts_padding_are_left_out_and_written_as_zeros(tmp_path):
    _, params = save(tmp_path, "opt")
    rows = tensors(tmp_path)["model.decoder.embed_positions.weight"]
    assert not rows[:2].any()
    np.testing.assert_array_equal(rows[2:], params["embed"]["positions"])


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("gpt2", {"hidden_size": 64}, "{'n_embd': 32, 'hidden_size': 64} are one field"),
        ("openai-gpt", {"afn": "mish"}, "afn='mish'"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim=16"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm=True"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm=True",
        ),
        ("bloom", {"pretraining_tp": 2, "slow_but_exact": True}, "slow_but_exact=True"),
        ("gptj", {"rotary_dim": None}, "rotary_dim=null"),
        ("gptj", {"rotary": False}, "rotary=False"),
        ("gpt_neox", {"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu'"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2"),
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ("cohere", {"layer_types": ["sliding_attention"]}, "layer_types"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(kind, changes, message):
    with pytest.raises(ValueError) as error:
        config(kind, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "cfg", "message"),
    [
        ("gpt2", gpt.Config(norm="post"), "model.norm='post'"),
        ("gpt2", gpt.Config(softcap=9.0), "model.softcap=9.0"),
        ("gpt2", gpt.Config(query_scalar=9.0), "model.query_scalar=9.0"),
        ("opt", gpt.Config(scale_by_layer=True), "model.scale_by_layer=True"),
        ("openai-gpt", gpt.Config(norm="post", ffn=5), "model.ffn=5"),
        ("openai-gpt", gpt.Config(norm="post", activation="gelu"), "model.activation='gelu'"),
        ("opt", gpt.Config(eps=1e-6), "model.eps=1e-06"),
        ("bloom", gpt.Config(positions="alibi"), "model.embed_norm=False"),
        ("gptj", palm.PRESETS["palm-8b"], "model.logit_scale=0.015625"),
        ("gpt_neox", palm.PRESETS["falcon-40b"], "model.kv=8"),
        (
            "gpt_neox",
            dataclasses.replace(palm.PRESETS["pythia-1b"], ffn_bias=False),
            "model.ffn_bias=False",
        ),
        ("falcon", palm.PRESETS["pythia-1b"], "model.rotary=64"),
        ("cohere", palm.PRESETS["falcon-7b"], "model.norm_bias=True"),
    ],
)
def test_what_a_config_json_cannot_express_is_refused_by_name(kind, cfg, message):
    with pytest.raises(ValueError, match="cannot be exported") as error:
        write.architecture(cfg, kind)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary": 10}, "model.rotary: 10"),
        ({"rotary": 3}, "model.rotary: 3"),
        ({"rotary": None, "scaling": rope.Linear(2.0)}, "model.scaling"),
        ({"block": "sequential"}, "model.shared_norm"),
        ({"kv": 3}, "model.kv: 3"),
    ],
)
def test_palm_configs_that_make_no_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        palm.Config(**{"head": 8, "rotary": 8} | changes)


def test_every_weight_of_every_oracle_has_a_row():
    """Each weight of each variant has a row, and no row claims another's."""
    for case, record in cases.ORACLES.items():
        kind = record["model_type"]
        if kind not in KINDS:
            continue
        f = config_json.Fields({k: v for k, v in record.items() if k != "architecture"})
        cfg = convert.ARCHITECTURES[kind].read(f)
        flat = param.flatten(models.spec(cfg))
        jobs = read.jobs(convert.ARCHITECTURES[kind].names(cfg), flat)
        paths = sorted(path for job in jobs for path in job.ours)
        assert set(paths) == set(flat), case
        names = [name for job in jobs for name in job.theirs]
        assert len(names) == len(set(names)), case
