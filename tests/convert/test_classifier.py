"""Reward models as sequence classification of transformers."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxlm import models
from jaxlm.cli import main
from jaxlm.convert import classifier, read, tensor_files, write
from jaxlm.data import tokenizers
from jaxlm.data.records import prompts
from jaxlm.data.templates import template
from jaxlm.eval import reward_model
from jaxlm.models import llama
from jaxlm.models.layers import value_head
from jaxlm.objectives.rl import ppo
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.train import program, trained_weights
from jaxlm.train.rl.rollout import Rollout
from jaxlm.train.run.run import Run
from tests.convert import cases

LENGTHS = (9, 3, 6)


def test_what_has_no_class_that_reads_the_last_token_is_refused():
    for kind in ("cohere", "bert", "t5"):
        with pytest.raises(ValueError, match=f"{kind} that reads the last token"):
            classifier.config(kind, {}, 0)


def test_rows_are_filled_with_an_id_that_no_text_ends_in():
    """Else transformers reads a text that ends in it one token early."""
    tokenizer = tokenizers.load("bytes")
    plain = template.load("plain", "bytes")
    assert classifier.pad(tokenizer, plain, 300) == tokenizer.special["pad"]

    class OneSpecial:
        special = {"eos": 0, "pad": 0}
        vocab = 259
        marks = tokenizer.marks

        def encode(self, text):
            return tokenizer.encode(text)

    class Written:
        pass

    stops, template.stops = template.stops, lambda *_: (0,)
    try:
        assert classifier.pad(OneSpecial(), Written(), 264) == 259
        assert classifier.pad(OneSpecial(), Written(), 259) is None
    finally:
        template.stops = stops


def test_a_head_is_written_in_place_of_the_output_matrix(tmp_path):
    cfg = llama.Config(vocab=32, embed=8, layers=1, heads=2, kv=2, head=4, ffn=8)
    params = _scored(cfg, jax.tree.map(lambda p: np.ones(p.shape, np.float32), models.spec(cfg)))
    kind, record = write.architecture(cfg)
    write.weights(tmp_path, kind, cfg, params)
    written_config = classifier.config(kind, record, 0)
    assert (
        written_config["architectures"] == ["LlamaForSequenceClassification"]
        and written_config["pad_token_id"] == 0
    )
    tensors = tensor_files.find(tmp_path)
    assert tensors["score.weight"].shape == (1, 8) and "lm_head.weight" not in tensors
    assert np.array_equal(tensor_files.read(tensors["score.weight"])[0], params["score"])


@pytest.fixture
def written(tmp_path):
    """(folder of a classifier's checkpoint, its weights)."""
    cfg = llama.Config(vocab=260, embed=8, layers=2, heads=2, kv=1, head=4, ffn=8, context=64)
    draw = np.random.default_rng(1)
    weights = jax.tree.map(lambda p: draw.standard_normal(p.shape, np.float32), models.spec(cfg))
    params = _scored(cfg, weights)
    folder = tmp_path / "hf"
    folder.mkdir()
    kind, record = write.architecture(cfg)
    write.weights(folder, kind, cfg, params)
    write.configs(folder, classifier.config(kind, record, 0), {}, "float32")
    return folder, params


def test_a_reward_model_is_imported_and_scores(written, tmp_path, monkeypatch, capsys):
    """As of the weights that were exported; it judges rollouts, and is exported again."""
    source, params = written
    monkeypatch.chdir(tmp_path)
    assert main.main(["import", str(source), "runs/judge"]) == 0
    saved = trained_weights.load(pathlib.Path("runs/judge"))
    assert "unembed" not in saved.params and "unembed" in params
    for name in saved.params:
        jax.tree.map(np.testing.assert_array_equal, saved.params[name], params[name])
    judge = trained_weights.judge("runs/judge")
    messages = [template.Message("user", "ab"), template.Message("assistant", "c")]
    ids = template.encode(judge.written, judge.tokenizer, messages).tokens[None]
    at = At(np.ones_like(ids), np.arange(ids.size)[None])
    x = jax.jit(saved.model.hidden)(params, ids, at).x
    want = float(x[0, -1] @ params["score"])
    assert reward_model.score(judge, [("ab", "c")]) == pytest.approx(want, abs=1e-5)
    rollout = Rollout(rewards=(), reward_model="runs/judge", max_new=4)
    data = prompts.Prompts(source="prompts.jsonl", seq=8)
    run = Run(name="x", model=saved.run.model, objective=ppo.Config(), data=data, rollout=rollout)
    assert program.reward_model(run, Plan()) is not None
    assert main.main(["export", "runs/judge", "again", "--no-tokenizer"]) == 0
    again = read.load(pathlib.Path("again"))[1]
    jax.tree.map(np.testing.assert_array_equal, again, dict(saved.params))


def test_a_classifier_of_two_labels_or_another_kind_is_refused(written, tmp_path):
    source, params = written
    files = tensor_files.find(source)
    two = {n: tensor_files.read(t) for n, t in files.items()}
    two["score.weight"] = np.repeat(two["score.weight"], 2, 0)
    save_file(two, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"score.weight is \[2, 8\], .* \[1, 8\]"):
        read.inspect(source)
    with pytest.raises(ValueError, match="a sequence classification of t5 is not supported"):
        classifier.headless("t5", models.t5.Config())


def _scored(cfg, params):
    head = value_head.spec(models.build(cfg))
    return params | {"score": np.random.default_rng(0).standard_normal(head.shape, np.float32)}


@pytest.mark.parity
@pytest.mark.parametrize("kind", [k for k in classifier.CLASSES if k in cases.FIRST])
def test_transformers_gives_the_same_scores(kind, tmp_path):
    """Ragged rows; one is full."""
    import torch
    import transformers

    from tests.convert import oracle

    case = cases.FIRST[kind]
    (tmp_path / "lm").mkdir()
    oracle.save(case, tmp_path / "lm")
    cfg, params = read.load(tmp_path / "lm")
    params = _scored(cfg, params)
    (tmp_path / "rm").mkdir()
    write.weights(tmp_path / "rm", kind, cfg, params)
    record = json.loads((tmp_path / "lm" / "config.json").read_text())
    write.configs(tmp_path / "rm", classifier.config(kind, record, 1), {}, "float32")
    theirs, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "rm",
        dtype=torch.float32,
        attn_implementation=oracle.ATTENTION.get(kind, "eager"),
        output_loading_info=True,
    )
    assert type(theirs).__name__ == classifier.CLASSES[kind]
    assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
    segments = np.int32(np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None])
    ids = cases.tokens(case, len(LENGTHS), max(LENGTHS), cfg.vocab)
    ids = np.where(segments, ids, 1)
    with torch.no_grad():
        mask = torch.tensor(segments, dtype=torch.long)
        want = theirs.eval()(torch.tensor(ids, dtype=torch.long), attention_mask=mask).logits
    at = At(segments, np.where(segments, np.arange(max(LENGTHS)), 0).astype(np.int32))
    model = models.build(cfg)
    x = jax.jit(lambda p, ids: model.hidden(p, ids, at).x)(params, np.int32(ids))
    np.testing.assert_allclose(
        value_head.at_end(params["score"], x, segments), want[:, 0], atol=5e-5, rtol=1e-4
    )
    theirs.save_pretrained(tmp_path / "theirs")
    back, again = read.load(tmp_path / "theirs")
    assert back == classifier.headless(kind, cfg)
    assert again.keys() == params.keys() - {"unembed", "unembed_bias", "ahead"}
    for name in again:
        jax.tree.map(np.testing.assert_array_equal, again[name], params[name])
