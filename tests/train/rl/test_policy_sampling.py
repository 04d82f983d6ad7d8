"""Responses to prompts as rows: what is in them, and the log-probabilities they came with."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.core.batch import Batch
from jaxlm.data.records import prompts as prompting
from jaxlm.models import llama, mistral
from jaxlm.objectives import log_probs
from jaxlm.parallel.plan import Plan
from jaxlm.train import program
from jaxlm.train.rl import policy_sampling
from jaxlm.train.run import run as runs
from tests import programs

MODEL = llama.Config(vocab=260, embed=16, layers=1, heads=2, kv=2, head=8, ffn=24, context=32)


def asked(rows, seq=8):
    """`Prompts` of token lists; an empty one is filling."""
    found = prompting.packed([np.array(row or [1]) for row in rows], seq)
    there = np.array([len(row) > 0 for row in rows], np.int32)[:, None]
    parts = (found.tokens * there, found.segments * there, found.positions)
    return type(found)(*parts, np.where(there[:, 0], found.row, -1))


@pytest.fixture(scope="module")
def sampler():
    """(model, weights with opinions, a function from prompts and key to a Rollout on the host)."""
    model, objective = program.build(runs.Run(name="x", model=MODEL), Plan())
    params = programs.drawn(model.spec, 3)
    params = jax.tree.map(lambda w: 2 * w, params)
    make = policy_sampling.program(model, objective, max_new=6, stop=tuple(range(100, 120)))

    def sample(prompts, key=(0, 1), temperature=0.7):
        key = np.array(key, np.uint32)
        return jax.device_get(make(params, {}, prompts, key, temperature))

    return model, params, sample


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_that_take_turns_get_the_same_tokens(sampler, temperature, count):
    """More rows than slots, of ragged prompts and responses, filling among them."""
    model, params, sample = sampler
    _, objective = program.build(runs.Run(name="x", model=MODEL), Plan())
    make = policy_sampling.program(
        model, objective, max_new=6, stop=tuple(range(100, 120)), slots=count
    )
    prompts = asked([*ROWS, [1, 2], [200], [3] * 5, [8, 8], []])
    want = sample(prompts, temperature=temperature)
    got = jax.device_get(make(params, {}, prompts, np.array((0, 1), np.uint32), temperature))
    for name in ("tokens", "targets", "weight", "segments", "positions", "finished"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    np.testing.assert_allclose(got.behaviour, want.behaviour, atol=5e-5)  # rounding
    lengths = want.weight.sum(axis=1)
    assert len(set(lengths.tolist())) > 2 or temperature == 0


def test_slots_need_rows_that_are_independent():
    crowded = mistral.Config(
        vocab=32, embed=8, layers=1, heads=2, kv=1, head=4, ffn=8, experts=2, capacity=1.0
    )
    model, objective = program.build(runs.Run(name="x", model=crowded), Plan())
    with pytest.raises(ValueError, match="rollout.slots: model.capacity=1.0 drops tokens"):
        policy_sampling.program(model, objective, max_new=2, stop=(), slots=1)


ROWS = [[5, 6, 7], [9] * 8, [11], [], [5, 6, 7]]


def test_a_row_is_its_prompt_its_response_and_its_end(sampler):
    found = sampler[2](asked(ROWS))
    for r, prompt in enumerate(ROWS):
        p, n = len(prompt), int(found.segments[r].sum())
        new = n - p
        assert found.tokens[r, :p].tolist() == prompt and not found.tokens[r, n:].any()
        assert found.segments[r].tolist() == [1] * n + [0] * (14 - n)
        assert found.positions[r].tolist() == [*range(n)] + [0] * (14 - n)
        assert np.flatnonzero(found.weight[r]).tolist() == [*range(p - 1, p - 1 + new)]
        assert found.targets[r, :-1].tolist() == found.tokens[r, 1:].tolist()
        said = found.targets[r][found.weight[r] > 0]
        stops = (said >= 100) & (said < 120)
        assert not stops[:-1].any() and found.finished[r] == stops[-1:].any()
        assert new == 0 if not prompt else new == 6 or found.finished[r]
        assert (found.behaviour[r] != 0).tolist() == (found.weight[r] > 0).tolist()
    assert 0 < found.finished.sum() < 4
    hot = sampler[2](asked(ROWS), temperature=5.0).tokens
    assert hot[0].tolist() != hot[4].tolist()  # each row has its own key


def test_responses_in_a_line(sampler):
    model, params, _ = sampler
    found = policy_sampling.respond(
        model, params, [[5, 6, 7], [11]], samples=2, max_new=3, stop=(4,)
    )
    assert found.tokens.shape == (4, 6) and found.tokens[:2, :3].tolist() == [[5, 6, 7]] * 2
    assert (found.weight.sum(axis=1) <= 3).all() and (found.weight[:, 0] > 0).tolist() == [
        False,
        False,
        True,
        True,
    ]
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        policy_sampling.respond(model, params, [[5], []])


def test_the_log_probability_of_sampling_is_that_of_training(sampler):
    """At the temperature of the rollout, and at no other."""
    model, params, sample = sampler
    found = sample(asked(ROWS))

    @functools.partial(jax.jit, static_argnums=2)
    def log_p(params, rows, temperature):
        x = log_probs.forward(model, params, rows).x
        return log_probs.log_probs(model, params, x, rows.targets, Plan(), temperature)

    def apart(temperature):
        now = np.asarray(log_p(params, found, temperature))
        return np.abs(np.where(found.weight > 0, now - found.behaviour, 0)).max()

    assert apart(0.7) <= 2e-5
    assert apart(1.0) > 0.1


def test_a_response_does_not_depend_on_the_rows_around_it(sampler):
    sample = sampler[2]
    one, other = sample(asked(ROWS)), sample(asked([*ROWS[:2], [200], [201, 202], []]))
    again = sample(asked(ROWS), key=(0, 2), temperature=5.0)
    greedy = sample(asked(ROWS), temperature=0.0)
    for name in (*Batch._fields, "behaviour", "finished"):
        assert np.array_equal(getattr(one, name)[:2], getattr(other, name)[:2])
    assert not np.array_equal(one.tokens, again.tokens)
    assert np.array_equal(greedy.tokens[0], greedy.tokens[4]) and not greedy.behaviour.any()
