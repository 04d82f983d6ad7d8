"""Law 12, live: every family's oracles against transformers, both directions.

    make parity

A case is built once and used by all its tests. Packed rows are compared with each document alone,
padded rows with unpadded ones, because that is what packing and padding must not change.
"""

import copy
import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import read, write
from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.decode import token_sampling
from jaxlm.models import model as model_
from jaxlm.objectives import clm
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from tests.convert import cases

pytestmark = pytest.mark.parity
T = 40
PLAN = Plan()


class Case(NamedTuple):
    """A checkpoint, what transformers says it is, and what we read in it, as NumPy arrays: to slice
    JAX's on the way out compiles a program for every shape."""

    name: str
    folder: Any
    theirs: Any
    cfg: Any
    params: Any


@pytest.fixture(scope="module")
def oracle():
    """The oracle module, which imports torch and transformers."""
    from tests.convert import oracle

    return oracle


@pytest.fixture(scope="module")
def case(request, oracle):
    """The case of a test's parameter; tests are ordered so that each is built once."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        theirs = oracle.save(request.param, folder)
        cfg, params = read.load(folder)
        yield Case(request.param, folder, theirs, cfg, params)


def over(names):
    marked = [pytest.param(n, marks=pytest.mark.xdist_group(f"parity {n}")) for n in names]
    return pytest.mark.parametrize("case", marked, indirect=True)


def length(cfg):
    """Tokens of a row: beyond any original context, within learned positions."""
    return min(T, models.build(cfg).context or T)


@functools.lru_cache(maxsize=1)
def forward(cfg):
    """Compiled (params, ids, at) -> logits; an encoder-decoder's decoder reads what its encoder
    reads."""
    built = models.build(cfg, PLAN)

    def run(params, ids, at):
        if built.kind != "encoder_decoder":
            return model_.logits(built, params, ids, at)
        source = (built.encode(params, ids, at), at)
        x = built.hidden(params, ids, at, source=source).x
        return built.unembed(built.head(params), x)

    return jax.jit(run)


@functools.lru_cache(maxsize=1)
def learner(cfg):
    """Compiled (params, batch) -> ((mean loss, logits), gradient) of a decoder."""
    built = models.build(cfg, PLAN)

    def loss(params, batch):
        states = []

        def hidden(*args, **kwargs):
            states.append(built.hidden(*args, **kwargs))
            return states[0]

        objective = clm.build(clm.Config(), built._replace(hidden=hidden), PLAN)
        total, count, _ = objective.loss(params, {}, batch, None)
        return total / count, built.unembed(built.head(params), states[0].x)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def logits_of(case, cfg, ids, segments, positions):
    """Our logits as NumPy's. What also learns is not compiled twice."""
    if case.name not in decoders(cases.FIRST.values()):
        return np.asarray(forward(cfg)(case.params, ids, At(segments, positions)))
    batch = Batch(ids, np.roll(ids, -1, 1), np.ones(ids.shape, np.float32), segments, positions)
    return np.asarray(learner(cfg)(case.params, batch)[0][1])


def rows(case, width):
    """(ids [4, T], segments, positions): two whole rows, one of documents and padding, one padded
    on both sides."""
    ids = cases.tokens(case.name, 4, width, case.cfg.vocab)
    segments, positions = np.ones_like(ids), np.tile(np.arange(width, dtype=np.int32), (4, 1))
    parts = [(1, 9), (2, width - 14), (3, 1), (0, 4)]
    segments[2] = np.concatenate([[s] * n for s, n in parts])
    positions[2] = np.concatenate([np.arange(n) for _, n in parts])
    segments[3], positions[3] = 0, 0
    segments[3, 3:-2], positions[3, 3:-2] = 1, np.arange(width - 5)
    return ids, segments, positions


def agree(ours, theirs, exact=None):
    """Equal to 2e-5 of the spread of the logits. exact() gives theirs in float64: where rounding
    alone takes their own float32 further from it, ours may be as much further off."""
    atol = 2e-5 * theirs.std()
    if exact is not None and np.abs(ours - theirs).max() > atol:
        atol += np.abs(exact() - theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@over(cases.ORACLES)
def test_logits_of_full_packed_and_padded_rows(case, oracle):
    cfg, width = case.cfg, length(case.cfg)
    alone = cases.by_length(cfg)
    if alone:
        cfg = dataclasses.replace(cfg, context=width)
    ids, segments, positions = rows(case, width)
    if alone:
        segments[:], positions[:] = 1, np.arange(width)
    logits = logits_of(case, cfg, ids, segments, positions)
    for row in range(4):
        for segment in sorted(set(segments[row]) - {0}):
            here = segments[row] == segment
            given = ids[row : row + 1, here]
            agree(
                logits[row, here],
                oracle.logits(case.theirs, given)[0],
                lambda given=given: oracle.logits(copy.deepcopy(case.theirs).double(), given)[0],
            )


@over(cases.ORACLES)
def test_what_is_exported_loads_and_says_the_same(case, oracle, tmp_path):
    kind, record = write.architecture(case.cfg, cases.ORACLES[case.name]["model_type"])
    write.weights(tmp_path, kind, case.cfg, case.params, limit=30_000)
    write.configs(tmp_path, record, {}, "float32")
    again = oracle.load(tmp_path)
    width = length(case.cfg)
    ids = cases.tokens(case.name, 2, width, case.cfg.vocab)
    agree(oracle.logits(again, ids), oracle.logits(case.theirs, ids))
    cfg, params = read.load(tmp_path)
    assert cfg == case.cfg
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, case.params)))


@over(cases.FIRST.values())
def test_the_file_of_a_base_model_is_read_as_transformers_reads_it(case, oracle, tmp_path):
    """What AutoModel saves: names without the prefix and no head. Tied, it is the whole model;
    else transformers draws the head at random, and it is refused here."""
    import transformers

    transformers.AutoModel.from_pretrained(case.folder).save_pretrained(tmp_path)
    again, loading = type(case.theirs).from_pretrained(
        tmp_path, dtype="float32", output_loading_info=True
    )
    if loading["missing_keys"]:
        with pytest.raises(ValueError, match="transformers would draw it at random"):
            read.inspect(tmp_path)
        return
    ids = cases.tokens(case.name, 1, length(case.cfg), case.cfg.vocab)
    agree(oracle.logits(again.eval(), ids), oracle.logits(case.theirs, ids))
    cfg, params = read.load(tmp_path)
    assert cfg == case.cfg
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, case.params)))


def decoders(names):
    """The cases that are a decoder alone, by what their architecture is called."""
    return [
        n for n in names if cases.ORACLES[n]["architecture"].endswith(("CausalLM", "LMHeadModel"))
    ]


LR, DECAY, EPS = 1e-2, 0.1, 1e-4  # of AdamW


def learnt(case):
    """(Config, batch): the next tokens of the first two rows, as `oracle.update` reads them, and
    two rows without weight, as many as are compiled."""
    width, cfg = length(case.cfg), case.cfg
    if cases.by_length(cfg):
        cfg = dataclasses.replace(cfg, context=width)
    ids = cases.tokens(case.name, 4, width, cfg.vocab)
    weight = np.ones(ids.shape, np.float32)
    weight[:, -1], weight[2:] = 0, 0
    at = np.tile(np.arange(width, dtype=np.int32), (4, 1))
    return cfg, Batch(ids, np.roll(ids, -1, 1), weight, np.ones_like(ids), at)


@over(decoders(cases.FIRST.values()))
def test_gradient_and_one_update(case, oracle):
    """The loss, its gradient in the embedding table, and the loss after one step of AdamW, which
    every weight's gradient moves and which decays what ours decays."""
    cfg, batch = learnt(case)

    def moved(w, g, decayed):
        """The first step of AdamW, whose moments are then the gradient and its square."""
        return w - np.float32(LR) * (g / (np.abs(g) + EPS) + DECAY * decayed * w)

    (first, _), grads = jax.tree.map(np.asarray, learner(cfg)(case.params, batch))
    decayed = param.decayed(models.spec(cfg))
    (second, _), _ = learner(cfg)(jax.tree.map(moved, case.params, grads, decayed), batch)
    gradient = np.array(grads["embed"]["table"])
    theirs = oracle.load(case.folder)
    loss, their_gradient, after = oracle.update(theirs, batch.tokens[:2], LR, DECAY, EPS)
    np.testing.assert_allclose(first, loss, rtol=0, atol=1e-5)
    padding = theirs.get_input_embeddings().padding_idx
    if padding is not None:  # torch gives a padding row no gradient of its own
        gradient[padding] = their_gradient[padding]
    np.testing.assert_allclose(gradient, their_gradient, rtol=0, atol=1e-4)
    assert np.abs(their_gradient).max() > 1e-2
    np.testing.assert_allclose(second, after, rtol=0, atol=1e-5)
    assert abs(after - loss) > 1e-2


@over(["llama"])
def test_a_step_of_ours_is_torchs(case, oracle):
    """The same by the step that trains, with the optimiser's own moments, clip and decay."""
    cfg, batch = learnt(case)
    objective = clm.build(clm.Config(), models.build(cfg, PLAN), PLAN)
    optim = optimizer.Optim(
        lr=LR, schedule="constant", warmup=0, weight_decay=DECAY, eps=EPS, b2=0.95, clip=None
    )
    tx = optimizer.build(optim, objective.spec, 10, fp16=False)
    update = step.make(objective, tx, PLAN)
    state = step.begin(objective, tx, PLAN, 0, jax.tree.map(jnp.array, case.params))
    state, first = update(state, batch)
    _, second = update(state, batch)
    loss, _, after = oracle.update(oracle.load(case.folder), batch.tokens[:2], LR, DECAY, EPS)
    assert first["loss"] == pytest.approx(loss, abs=1e-5)
    assert second["loss"] == pytest.approx(after, abs=1e-5)


# By what a cache keeps: keys and values, those of a window, of layers of two kinds, with learned
# positions, with distances in place of positions, and latents.
DECODED = ("llama", "mistral_window", "gemma3", "gpt2", "bloom", "deepseek-v3")


@over(decoders(cases.FIRST.values()))
def test_greedy_decoding_is_generate_token_for_token(case, oracle):
    """Where a cache is of a kind of its own, what we decode is what `generate` does; elsewhere each
    token that it adds is the likeliest by our logits. That decoding is the forward pass is law 4,
    of every family."""
    if cases.by_length(case.cfg):
        pytest.skip("transformers turns keys of one text by angles of several lengths")
    lengths, new = (5, 11, 8), 64
    width = max(lengths) + new
    ids = cases.tokens(case.name, 3, width, case.cfg.vocab)
    prompts = [row[:n].tolist() for row, n in zip(ids, lengths)]
    theirs = oracle.greedy(case.theirs, prompts, new)
    built = models.build(case.cfg, PLAN)
    assert width <= (built.context or width)
    if case.name in DECODED:
        sampling = token_sampling.Sampling(max_new=new, temperature=0.0)
        out = token_sampling.generate(built, case.params, prompts, sampling)
        assert out.tokens.tolist() == theirs
        return
    for row, n, added in zip(ids, lengths, theirs):
        row[n : n + new] = added
    at = At(np.ones_like(ids), np.tile(np.arange(width, dtype=np.int32), (3, 1)))
    likeliest = np.asarray(forward(case.cfg)(case.params, ids, at)).argmax(-1)
    for row, n, added in zip(likeliest, lengths, theirs):
        assert row[n - 1 : n - 1 + new].tolist() == added


@over(["llama", "gpt2"])
def test_greedy_decoding_under_rules_is_generate_token_for_token(case, oracle):
    """Each row of a batch has settings of its own, and all of them; `generate` has one row a call.
    transformers forces a beginning after a prompt of one token only."""
    built = models.build(case.cfg, PLAN)
    ids = cases.tokens(case.name, 3, 11, case.cfg.vocab)
    prompts = [ids[0, :5].tolist(), ids[1].tolist(), ids[2, :8].tolist(), ids[2, :1].tolist()]
    base = {"max_new": 40, "temperature": 0.0}
    free = token_sampling.generate(
        built, case.params, prompts, token_sampling.Sampling(**base)
    ).tokens.tolist()
    stop, first = int(free[2][1]), free[0][0]
    ours = [
        {"repetition_penalty": 1.3, "banned": ((first,), (prompts[0][-1], 7), (3, 4))},
        {"no_repeat_ngram_size": 2, "logit_bias": ((free[1][0], -4.0), (5, 1.5))},
        {
            "min_new": 9,
            "stop_tokens": (stop,),
            "no_repeat_ngram_size": 3,
            "repetition_penalty": 0.8,
        },
        {"forced_begin": (6,), "forced_end": (2, 9), "repetition_penalty": 1.1},
    ]
    theirs = [
        {"repetition_penalty": 1.3, "bad_words_ids": [list(row) for row in ours[0]["banned"]]},
        {"no_repeat_ngram_size": 2, "sequence_bias": [[[t], b] for t, b in ours[1]["logit_bias"]]},
        {
            "min_new_tokens": 9,
            "eos_token_id": stop,
            "no_repeat_ngram_size": 3,
            "repetition_penalty": 0.8,
        },
        {"forced_bos_token_id": 6, "forced_eos_token_id": [2, 9], "repetition_penalty": 1.1},
    ]
    settings = [token_sampling.Sampling(**base, **one) for one in ours]
    out = token_sampling.generate(built, case.params, prompts, settings)
    for r, (prompt, one) in enumerate(zip(prompts, theirs)):
        tokens = out.tokens[r, : out.lengths[r]].tolist()
        assert [tokens] == oracle.greedy(case.theirs, [prompt], 40, **one)
        assert tokens != free[r][: len(tokens)]


def test_the_golden_file_is_transformers_output(oracle):
    from tests.convert import golden

    with np.load(golden.FILE) as stored:
        assert set(golden.records(stored)) == set(cases.FIRST.values())
        for name, record in golden.records(stored).items():
            with tempfile.TemporaryDirectory() as folder:
                theirs = oracle.save(name, pathlib.Path(folder))
                config = json.loads((pathlib.Path(folder) / "config.json").read_text("utf-8"))
            assert config | {"transformers_version": ""} == record | {"transformers_version": ""}
            logits = oracle.logits(theirs, stored[f"{name}:ids"])
            np.testing.assert_allclose(logits, stored[f"{name}:logits"], rtol=0, atol=1e-5)
