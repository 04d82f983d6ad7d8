"""The order of a mixture's rows, against the divisor method as it is written down: seat by seat."""

from fractions import Fraction

import numpy as np
import pytest

from jaxlm.data.rows import row_schedule
from jaxlm.data.rows.row_schedule import Size

SIZES = [Size(1000, 64_000), Size(37, 1_850), Size(400, 25_001), Size(90, 900)]


def webster(weights, sizes, rows):
    """Sources of the first rows, one after the other: each row goes to the source with the largest
    share / (2 rows so far + 1), in exact fractions."""
    shares = [Fraction(w) * s.rows / s.tokens for w, s in zip(weights, sizes, strict=True)]
    have, out = [0] * len(shares), []
    for _ in range(rows):
        k = max(range(len(shares)), key=lambda k: shares[k] / (2 * have[k] + 1))
        out.append((k, have[k]))
        have[k] += 1
    return out


@pytest.mark.parametrize(
    "weights",
    [(0.7, 0.13, 0.11, 0.06), (1.0, 0.0, 3.7, 0.0), (0.0, 2.0, 0.0, 0.0), (1e-3, 1.0, 0.9, 1e-4)],
)
def test_the_order_is_that_of_webster(weights):
    stages = row_schedule.stages([(0, weights)], SIZES)
    right = webster(weights, SIZES, 700)
    assert row_schedule.read(stages, 0, 700) == right
    for first, last in ((0, 1), (1, 3), (13, 77), (400, 700), (699, 700)):
        assert row_schedule.read(stages, first, last) == right[first:last]
    for row in (0, 1, 2, 5, 99, 700):
        sources = [source for source, _ in right[:row]]
        assert row_schedule.counts(stages, row) == [sources.count(k) for k in range(4)]


def test_equal_shares_take_turns_and_the_example_of_the_module():
    even = row_schedule.stages([(0, (0.5, 0.5, 0.5))], [Size(10, 10)] * 3)
    assert [k for k, _ in row_schedule.read(even, 0, 9)] == [0, 1, 2] * 3
    many = row_schedule.stages([(0, (0.1,) * 12)], [Size(10, 10)] * 12)  # all due at once
    for row in range(30):
        assert row_schedule.counts(many, row) == [(row - k + 11) // 12 for k in range(12)]
    shown = row_schedule.stages([(0, (3.0, 2.0))], [Size(10, 10)] * 2)
    assert [k for k, _ in row_schedule.read(shown, 0, 10)] == [0, 1, 0, 1, 0, 0, 1, 0, 1, 0]


def test_a_weight_is_a_share_of_tokens_not_of_rows():
    """Rows of the second source are half empty: it needs twice as many for as many tokens."""
    stages = row_schedule.stages([(0, (1.0, 1.0))], [Size(10, 1000), Size(10, 500)])
    assert row_schedule.counts(stages, 300) == [100, 200]


@pytest.mark.parametrize("seed", range(3))
def test_no_source_is_ever_far_from_its_share(seed):
    draw = np.random.default_rng(seed)
    count = int(draw.integers(2, 9))
    weights = draw.dirichlet(np.full(count, 0.5)).tolist()
    stages = row_schedule.stages([(0, weights)], [Size(7, 70)] * count)
    order = [k for k, _ in row_schedule.read(stages, 0, 2000)]
    # [rows, sources]
    have = np.cumsum(np.eye(count)[order], axis=0)
    right = np.arange(1, 2001)[:, None] * np.array(weights) / sum(weights)
    assert (np.abs(have - right) <= np.array(weights) / sum(weights) * count / 2 + 0.5 + 1e-6).all()


def test_stages_count_on():
    """A change of weights begins a new order and goes on in every source where it was."""
    changes = [(0, (3.0, 1.0, 0.0)), (50, (0.0, 1.0, 2.0)), (51, (1.0, 1.0, 1.0))]
    sizes = SIZES[:3]
    stages = row_schedule.stages(changes, sizes)
    right, have = [], [0, 0, 0]
    for (_, weights), rows in zip(changes, (50, 1, 200), strict=True):
        for k, _ in webster(weights, sizes, rows):
            right.append((k, have[k]))
            have[k] += 1
    assert row_schedule.read(stages, 0, 251) == right
    assert row_schedule.read(stages, 48, 53) == right[48:53]
    assert row_schedule.counts(stages, 251) == have
    assert [stage.before for stage in stages[1:]] == [
        tuple(row_schedule.counts(stages, row)) for row in (50, 51)
    ]


def test_far_rows_cost_no_more_than_near_ones():
    stages = row_schedule.stages([(0, (0.7, 0.2, 0.1))], [Size(5, 50)] * 3)
    far = 10**15
    assert row_schedule.counts(stages, far) == [7 * far // 10, far // 5, far // 10]
    assert sum(row_schedule.counts(stages, far + 1)) == far + 1
