"""Records survive kills, and do not mix."""

import pytest

from jaxlm.core import keyed_random
from jaxlm.feedback import journal

FROM = {"model": {"step": 7}, "seed": 0, "files": {"run": "runs/x"}}


def test_half_a_line_is_cut_and_records_found(tmp_path, read):
    path = tmp_path / "out.jsonl"
    with journal.opened(path, FROM) as out:
        out.append([{"id": "a", "text": "h\u00e9\u2028llo"}, {"id": "b"}])
    whole = path.read_bytes()
    for cut in (1, 5):
        path.write_bytes(whole + whole[:-cut])
        moved = FROM | {"files": {"run": "elsewhere/x"}}
        with journal.opened(path, moved) as out:
            assert path.read_bytes() == whole + whole.splitlines(keepends=True)[0]
            assert out.ids == {"a", "b"} and out.found == 3
    assert read(path)[0] == {"id": "a", "text": "h\u00e9\u2028llo", "provenance": FROM}


def test_other_settings_are_refused_and_nothing_changes(tmp_path):
    path = tmp_path / "out.jsonl"
    with journal.opened(path, FROM) as out:
        out.append([{"id": "a"}])
    path.write_bytes(path.read_bytes() + b'{"id"')
    before = path.read_bytes()
    with (
        pytest.raises(ValueError, match=r"out.jsonl:1: made with seed=0, and now seed=1"),
        journal.opened(path, FROM | {"seed": 1}),
    ):
        pass
    later = FROM | {"model": {"step": 8}}
    with (
        pytest.raises(ValueError, match="made with model.step=7, and now model.step=8"),
        journal.opened(path, later),
    ):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ['{"prompt": "a"}', "[3]", "{", '{"provenance": {}}'])
def test_other_files_are_refused(tmp_path, line):
    path = tmp_path / "out.jsonl"
    path.write_text(line + "\n")
    with (
        pytest.raises(ValueError, match="out.jsonl:1: no record of `jaxlm feedback`"),
        journal.opened(path, FROM),
    ):
        pass
    assert path.read_text() == line + "\n"


def test_one_process_at_a_time(tmp_path):
    path, told = tmp_path / "out.jsonl", "out.jsonl is being written by another"
    with journal.opened(path, FROM), pytest.raises(BlockingIOError, match=told):
        journal.opened(path, FROM).__enter__()


def test_draws_depend_on_their_own_parts_alone():
    drawn = [keyed_random.distinct("abcd", 4, 0, i) for i in range(400)]
    assert all(sorted(d) == list("abcd") for d in drawn)
    first = [d[0] for d in drawn]
    assert all(60 < first.count(x) < 140 for x in "abcd")
    assert drawn[7] == keyed_random.distinct("abcd", 4, 0, 7)
    with pytest.raises(ValueError, match="5 of 4 options"):
        keyed_random.distinct("abcd", 5, 0)
