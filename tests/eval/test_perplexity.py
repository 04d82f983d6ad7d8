"""The held-out score: every token once, whatever the batch."""

import dataclasses
import json
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.tokenized import shard_cache, shards
from jaxlm.eval import perplexity
from jaxlm.models import llama, model
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests import programs


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Held-out shards of short texts, some not ASCII; each fits a row of 64 tokens uncut."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(3)
    texts = ["".join(draw.choices("abcé ", k=draw.randint(3, 30))) for _ in range(60)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "texts.jsonl").write_text("\n".join(lines), "utf-8")
    data = pretraining.Data(source=str(folder / "texts.jsonl"), holdout=0.4, seq=64, batch=4)
    made = shard_cache.prepare(data, str(folder / "cache"))
    return data, shards.open_shards(made, "val", tokenizers.load("bytes").hash)


@pytest.fixture(scope="module")
def small():
    cfg = llama.Config(vocab=259, embed=16, layers=2, heads=2, kv=1, head=8, ffn=24, context=64)
    built = models.build(cfg)
    return built, programs.drawn(built.spec, 0)


def test_it_is_the_sum_over_documents_alone(found, small):
    """Packed and padded batches score as each document by itself, in float64 on the host."""
    (data, held_out), (built, params) = found, small
    score = perplexity.evaluate(perplexity.scorer(built, Plan()), params, data, held_out, Plan())

    @jax.jit
    def logprobs(tokens):
        at = At(jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None])
        return jax.nn.log_softmax(model.logits(built, params, tokens, at))

    nats, tokens = 0.0, 0
    for number in range(len(held_out)):
        ids = held_out.doc(number).astype("int32")
        padded = np.zeros((1, 128), np.int32)
        padded[0, : len(ids)] = ids
        table = np.asarray(logprobs(padded)[0])
        nats -= sum(float(table[t, ids[t + 1]]) for t in range(len(ids) - 1))
        tokens += len(ids) - 1
    size = sum(len(t.encode()) for t in texts(held_out))
    assert (score.tokens, score.bytes) == (tokens, size)
    assert score.nll == pytest.approx(nats / tokens, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def texts(held_out):
    tokenizer = tokenizers.load("bytes")
    return [tokenizer.decode(held_out.doc(i)[1:-1].tolist()) for i in range(len(held_out))]


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_changes_nothing(found, small, batch):
    (data, held_out), (built, params) = found, small
    scorer = perplexity.scorer(built, Plan())
    a = perplexity.evaluate(scorer, params, data, held_out, Plan())
    other = dataclasses.replace(data, batch=batch)
    b = perplexity.evaluate(scorer, params, other, held_out, Plan())
    assert (a.tokens, a.bytes, a.accuracy) == (b.tokens, b.bytes, b.accuracy)
    assert a.nll == pytest.approx(b.nll, rel=1e-6)


def test_the_mesh_changes_nothing(found, small):
    (data, held_out), (_, params) = found, small
    plan = Plan(data=2, fsdp=2)
    cfg = small[0].cfg
    alone = perplexity.scorer(models.build(cfg), Plan())
    a = perplexity.evaluate(alone, params, data, held_out, Plan())
    spread = models.build(cfg, plan)
    placed = jax.device_put(params, plan.shard_params(spread.spec))
    b = perplexity.evaluate(perplexity.scorer(spread, plan), placed, data, held_out, plan)
    assert a.tokens == b.tokens and a.nll == pytest.approx(b.nll, rel=1e-6)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(found, small):
    (data, held_out), (built, params) = found, small
    nothing = jax.tree.map(jnp.zeros_like, params)
    score = perplexity.evaluate(
        perplexity.scorer(built, Plan()), nothing, data, held_out, Plan(), batches=1
    )
    assert score.nll == pytest.approx(math.log(259), rel=1e-6)
    assert score.perplexity == pytest.approx(259, rel=1e-5)
    ratio = held_out.bytes / (held_out.tokens - held_out.documents)
    assert score.bytes == pytest.approx(score.tokens * ratio, abs=1)
