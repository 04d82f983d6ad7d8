"""The judgement on processes of which one does not move on, by a clock that is given."""

import os
import subprocess
import sys

import pytest

from jaxlm.parallel import multihost, watch


def judge(count, timeout=60.0):
    """(Judge, a function that takes in notes at a time: hear(t, index, passed, where, fault))."""
    made, numbers = watch.Judge(count, timeout, 0.0), iter(range(1, 10**6))

    def hear(now, index, passed, where="step 1", fault=None):
        made.hear(index, watch.Note(passed, where, fault, next(numbers)), now)

    return made, hear


def test_a_slow_process_is_a_line_and_one_that_stays_a_verdict():
    """A loader that was slow for 30 s was the death of a run elsewhere: a collective timed out."""
    made, hear = judge(3)
    lines = {}
    for now in range(75):
        for index in range(3):
            late = index == 2 and now < 40
            hear(now, index, 4 if late else 5, "the batch of step 2" if late else "step 2")
        assert made.verdict(now) is None
        if (line := made.line(now)) is not None:
            lines[now] = line
    assert sorted(lines) == [10, 20]  # each time twice as long
    assert lines[20] == "waiting for process 2, for 20 s at the batch of step 2"
    for now in range(75, 150):  # and then one stays, though it gives signs of life
        for index in range(3):
            hear(now, index, 6 if index == 1 else 7, "step 3" if index == 1 else "step 4")
        if (verdict := made.verdict(now)) is not None:
            break
    assert verdict == "process 1 of this run has not moved on from step 3 for 61 s"


def test_nobody_is_blamed_where_all_wait_and_data_may_take_hours():
    made, hear = judge(2)
    for index in range(2):
        hear(1, index, 3)
    assert made.line(60) is None
    assert made.verdict(62) == "no process of this run has moved on from step 1 for 61 s"
    made, hear = judge(2)
    hear(1, 0, 1)
    assert "process 1, for 3600 s at its beginning, the last sign of life 3600 s ago" in made.line(
        3600
    )
    hear(3601, 1, 0, "its data")
    assert made.verdict(9000) is None


def test_a_collective_that_broke_is_the_fault_of_who_is_silent():
    made, hear = judge(3)
    for index in range(3):
        hear(0, index, 3)
    hear(1, 0, 3, fault="UNAVAILABLE: connection reset")
    hear(1, 1, 3, fault="UNKNOWN: Gloo all-reduce failed")
    assert made.verdict(1) is None
    hear(6, 0, 3, fault="UNAVAILABLE: connection reset")
    hear(6, 1, 3)
    assert made.verdict(6) == "process 2 of this run is lost"
    hear(6, 2, 3)  # it was alive after all
    assert made.verdict(10) is None
    for now in (12, 22):
        for index in range(3):
            hear(now, index, 3, fault=None if index == 2 else "UNKNOWN: Gloo context")
    assert made.verdict(23) == "a collective of process 0 of this run broke (UNKNOWN: Gloo context)"
    # an error of its own is the reason that the others are given
    hear(24, 1, 3, fault="data.source: no such file")
    assert made.verdict(24) == "process 1 of this run failed (data.source: no such file)"


@pytest.mark.parametrize("value", ["2", "soon", "nan", "inf"])
def test_a_limit_that_is_no_time_is_refused(value):
    with pytest.raises(ValueError, match=f"JAXLM_TIMEOUT: '{value}' given; it must be seconds"):
        multihost.timeout({"JAXLM_TIMEOUT": value})
    assert multihost.timeout({}) == 600


def test_a_single_process_has_no_watch():
    with watch.Watch(3.0, print) as alone:
        alone.arrive("step 1")
        alone.meet("its end")


@pytest.mark.slow
def test_a_process_that_never_joins_is_told_of():
    """The others said that "another process" is lost, which had not been there."""
    code = (
        "import os\nfrom jaxlm.parallel import multihost\n"
        "with multihost.watched(dict(os.environ)):\n    multihost.join(dict(os.environ))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAXLM_DISTRIBUTED": "localhost:1/2/1", "JAXLM_TIMEOUT": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == multihost.LOST, done.stderr
    assert done.stderr.startswith(
        "jaxlm: not all processes of this run joined within 3 s (JAXLM_TIMEOUT; details: "
    )


def test_a_process_that_gloo_ends_waits_for_who_is_lost(tmp_path, monkeypatch):
    """One of four was killed within a collective: gloo ended another at once, which could name
    nobody, once in a hundred cases."""
    log, told = tmp_path / "log", []
    log.write_text("what():  [enforce fail at external/gloo/gloo/transport] gloo::EnforceNotMet")
    monkeypatch.setattr(multihost, "end", told.append)

    def later(seconds):
        assert seconds == multihost.VERDICT
        log.write_text(log.read_text() + "\ntask:2 stopped sending heartbeats, unhealthy")

    monkeypatch.setattr(multihost.time, "sleep", later)
    multihost._end(str(log))
    assert told == [f"process 2 of this run is lost (details: {log})"]
