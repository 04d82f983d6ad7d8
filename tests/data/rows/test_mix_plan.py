"""What is planned of a mixture: shares, epochs, and the refusal of too many."""

import dataclasses

import pytest

from jaxlm.data.rows import mix_plan
from jaxlm.data.rows.mix_plan import Source
from jaxlm.data.rows.row_schedule import Size

# Rows of 10 tokens and of 5; 4 rows a step.
SOURCES = (Source("web", 70, Size(100, 1000), 4.0), Source("code", 9, Size(20, 100), 3.0))
PLAN = mix_plan.MixPlan(SOURCES, ((0, 0, (2.0, 1.0)), (10, 40, (1.0, 0.0))), 20, lambda s: 4 * s)


def test_shares_and_epochs_by_hand():
    """As many rows of both, until step 10, then of the first alone: 20 + 40 and 20 rows."""
    assert PLAN.read() == [[20, 20], [40, 0]]
    title, head, web, code = mix_plan.table(PLAN)
    assert title == "mixture: shares of tokens in 20 steps, planned"
    assert head.split("  ")[0] == "source" and head.endswith("epochs  at most")
    assert "from step 0  from step 10" in head
    assert web.split() == ["web", "70", "1,000", "66.67%", "100.00%", "85.71%", "0.6", "4"]
    assert code.split() == ["code", "9", "100", "33.33%", "0.00%", "14.29%", "1", "3"]
    assert len({len(line) for line in (head, web, code)}) == 1
    assert not [*mix_plan.problems(PLAN)]


def test_a_stage_that_is_not_reached_is_not_shown():
    short = dataclasses.replace(PLAN, steps=10)
    assert short.read() == [[20, 20]]
    assert mix_plan.table(short)[2].split() == ["web", "70", "1,000", "66.67%", "0.2", "4"]


def test_too_many_epochs_are_refused_with_what_fits():
    """In 50 steps of half the rows each source has 100: 1 epoch and 5, of which 3 are 30 steps."""
    plan = dataclasses.replace(PLAN, stages=PLAN.stages[:1], steps=50)
    (line,) = mix_plan.problems(plan)
    assert line.startswith("data.mix: 'code' would be read 5 times in 50 steps; max_epochs is 3.")
    assert "steps=30" in line
    factor = float(line.split("weights times ")[1].split(",")[0])
    for wanted, ok in ((factor, True), (factor + 0.001, False)):
        stages = ((0, 0, (2.0, wanted)),)
        assert ([*mix_plan.problems(dataclasses.replace(plan, stages=stages))] == []) == ok
    for steps, ok in ((30, True), (31, False)):
        assert ([*mix_plan.problems(dataclasses.replace(plan, steps=steps))] == []) == ok


def test_a_source_that_is_alone_needs_fewer_steps():
    alone = mix_plan.MixPlan(SOURCES[1:], ((0, 0, (1.0,)),), 100, lambda s: 4 * s)
    (line,) = mix_plan.problems(alone)
    assert "read 20 times" in line and "steps=15" in line and "weights" not in line


@pytest.mark.parametrize("epochs", [0.5, 0.6])
def test_the_most_may_be_a_part_of_an_epoch(epochs):
    sources = (dataclasses.replace(SOURCES[0], max_epochs=epochs), SOURCES[1])
    assert bool([*mix_plan.problems(dataclasses.replace(PLAN, sources=sources))]) == (epochs < 0.6)
