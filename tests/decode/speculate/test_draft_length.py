"""The length with most expected tokens for its cost."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decode.speculate import draft_length


def settled(accepted, offered, passes=60):
    recent = draft_length.begun(1)
    for _ in range(passes):
        recent = draft_length.seen(recent, jnp.array([accepted]), jnp.array([offered]))
    return recent


def test_the_length_follows_what_was_accepted():
    lengths = draft_length.lengths(8, True)
    assert lengths == (0, 4, 8) and draft_length.lengths(8, False) == (8,)
    assert draft_length.lengths(1, True) == (0, 1)
    costs = draft_length.costs(lengths, 0.1)
    assert costs == pytest.approx((1, 1.6, 2.2))

    def best(*args):
        return int(draft_length.best(settled(*args), lengths, costs)[0])

    assert best(0, 0) == 4  # nothing is known
    assert best(8, 8) == 8 and best(0, 8) == 0
    assert best(2, 8) == 4


def test_the_estimate_is_the_share_of_tried_drafts():
    """Drafts after the first rejection were not tried; every pass counts 0.9 of the one after."""
    recent = draft_length.begun(2)
    for accepted, offered in (([1, 3], [3, 3]), ([0, 2], [3, 2])):
        recent = draft_length.seen(recent, jnp.array(accepted), jnp.array(offered))
    np.testing.assert_allclose(recent.accepted, [0.9, 4.7], rtol=1e-6)
    np.testing.assert_allclose(recent.tried, [0.9 * 2 + 1, 0.9 * 3 + 2], rtol=1e-6)


def test_drafting_is_tried_again_after_a_while():
    recent = settled(0, 8)
    lengths = (0, 4)
    costs = draft_length.costs(lengths, 0.1)
    wanted = []
    for _ in range(60):
        wanted.append(int(draft_length.best(recent, lengths, costs)[0]))
        recent = draft_length.seen(recent, jnp.array([0]), jnp.array([0]))
    assert wanted[0] == 0 and wanted[-1] == 4
