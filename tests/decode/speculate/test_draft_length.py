"""The length with most expected tokens for its cost."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decode.speculate import draft_length

SIZES = (10_000_000, 300_000)


def settled(accepted, offered, passes=60):
    recent = draft_length.begun(1)
    for _ in range(passes):
        recent = draft_length.seen(recent, jnp.array([accepted]), jnp.array([offered]))
    return recent


def best(recent, lengths, costs, most=99):
    return int(draft_length.best(recent, jnp.array([most]), lengths, costs))


def test_the_length_follows_what_was_accepted():
    lengths, costs = (0, 4, 8), (1, 1.6, 2.2)
    assert best(draft_length.begun(1), lengths, costs) == 4  # nothing is known
    assert best(settled(8, 8), lengths, costs) == 8
    assert best(settled(0, 8), lengths, costs) == 0
    assert best(settled(2, 8), lengths, costs) == 4


def test_rows_share_a_length_and_those_that_have_ended_or_cannot_draft_do_not_count():
    """By enumeration: sums over rows of 1 + a + ... + a^l, l what can be drafted of a length."""
    lengths, costs = (0, 1, 2, 5), (1, 1.3, 1.6, 2.5)
    random = np.random.default_rng(0)
    chosen = set()
    for _ in range(40):
        tried = random.uniform(1, 9, 4)
        recent = draft_length.Recent(*(jnp.asarray(x) for x in (tried * random.random(4), tried)))
        most = random.integers(-1, 7, 4)
        prior = draft_length.WEIGHT * draft_length.ASSUMED
        a = (np.asarray(recent.accepted) + prior) / (np.asarray(tried) + draft_length.WEIGHT)
        worth = [
            sum(sum(x**i for i in range(min(n, m) + 1)) for x, m in zip(a, most) if m >= 0) / c
            for n, c in zip(lengths, costs)
        ]
        want = lengths[int(np.argmax(worth))]
        assert int(draft_length.best(recent, jnp.asarray(most), lengths, costs)) == want
        chosen.add(want)
    assert len(chosen) > 2


def test_a_pass_costs_more_in_a_large_batch_and_less_on_an_accelerator():
    """2 rows of 3 tokens are 6 rows of products, each an eighth of reading the weights."""
    (cost,) = draft_length.costs((2,), 2, *SIZES, "cpu")
    model, beside = SIZES[0] * (1 + 6 / 8) + 300_000, SIZES[0] * 1.25 + 300_000
    assert cost == pytest.approx((model + 2 * (SIZES[1] * 1.25 + 300_000)) / beside)
    no_model, none = (draft_length.costs((0,), 2, SIZES[0], size, "cpu")[0] for size in (0, 10))
    assert no_model == 1 and none == pytest.approx((beside + 300_012.5) / beside)

    def cheapest(rows, platform, sizes=SIZES, longest=8):
        every = draft_length.costs(tuple(range(longest + 1)), rows, *sizes, platform)
        return draft_length.lengths(longest, True, every)

    assert cheapest(1, "cpu")[0] == 0 and cheapest(1, "cpu")[-1] == 8
    assert max(cheapest(8, "cpu")) < max(cheapest(4, "cpu")) < 8
    large = (7_000_000_000, 100_000_000)
    assert all(max(cheapest(8, platform, large)) == 8 for platform in ("gpu", "tpu"))
    assert draft_length.lengths(8, False, (1.0,)) == (8,)


def test_the_estimate_is_the_share_of_tried_drafts():
    """Drafts after the first rejection were not tried; every pass counts 0.9 of the one after."""
    recent = draft_length.begun(2)
    for accepted, offered in (([1, 3], [3, 3]), ([0, 2], [3, 2])):
        recent = draft_length.seen(recent, jnp.array(accepted), jnp.array(offered))
    np.testing.assert_allclose(recent.accepted, [0.9, 4.7], rtol=1e-6)
    np.testing.assert_allclose(recent.tried, [0.9 * 2 + 1, 0.9 * 3 + 2], rtol=1e-6)


def test_drafting_is_tried_again_after_a_while():
    recent, lengths, costs, wanted = settled(0, 8), (0, 4), (1, 1.6), []
    for _ in range(60):
        wanted.append(best(recent, lengths, costs))
        recent = draft_length.seen(recent, jnp.array([0]), jnp.array([0]))
    assert wanted[0] == 0 and wanted[-1] == 4
