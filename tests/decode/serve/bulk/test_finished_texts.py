"""A journal of texts: whole after any kill, and no one else's."""

import json

import pytest

from jaxlm.core import json_file
from jaxlm.decode.serve.bulk import finished_texts

IDENTITY = {"run": "a", "sampling": {"top_p": 1.0, "banned": ((1, 2),)}}


def filled(out, numbers, count=3):
    with finished_texts.opened(out, IDENTITY, count) as kept:
        for number in numbers:
            kept.add(number, [{"text": f"t\u00e9xt {number}", "more": [number]}])
    return out.with_name(f".{out.name}.journal")


def test_lines_are_in_order_and_letters_as_they_are(tmp_path):
    out = tmp_path / "deep" / "out.jsonl"
    journal = filled(out, (2, 0))
    with finished_texts.opened(out, IDENTITY, 3) as kept:
        assert (kept.have, kept.complete, 0 in kept, 1 in kept, 2 in kept) == (
            2, False, True, False, True,
        )  # fmt: skip
        kept.add(1, [{"text": "\ud83d"}, {"text": "b"}])  # half a character, as JSON can spell it
        kept.finish()
        assert kept.complete and 1 in kept
        kept.finish()
    assert out.read_bytes().decode() == (
        '{"text": "t\u00e9xt 0", "more": [0]}\n{"text": "\\ud83d"}\n{"text": "b"}\n'
        '{"text": "t\u00e9xt 2", "more": [2]}\n'
    )
    assert len(journal.read_bytes().splitlines()) == 2
    with finished_texts.opened(out, IDENTITY, 3) as kept:
        assert kept.complete and kept.have == 3 and 0 in kept
    out.write_text("other\n")
    with pytest.raises(json_file.Damaged, match="out.jsonl is not what was written; restore it"):
        filled(out, ())


def test_a_journal_cut_at_any_byte_goes_on(tmp_path):
    """Whatever lines are whole are kept; of the first line, only the whole."""
    journal = filled(tmp_path / "whole.jsonl", (2, 0))
    content = journal.read_bytes()
    head = content.index(b"\n") + 1
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(head, len(content) + 1):
        out = tmp_path / f"{size}.jsonl"
        cut = tmp_path / f".{size}.jsonl.journal"
        cut.write_bytes(content[:size])
        with finished_texts.opened(out, IDENTITY, 3) as kept:
            assert kept.have == sum(end <= size for end in ends) - 1
            for number in {0, 1, 2} - {n for n in range(3) if n in kept}:
                kept.add(number, [{"n": number}])
            kept.finish()
        assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: [*lines, lines[1]], "journal:4: prompt 2 is there twice"),
        (lambda lines: [lines[0], lines[1].replace('"key": "', '"key": "0')], "not a line of this"),
        (lambda lines: [lines[0], "[]"], "journal:2: not a line of this journal"),
        (lambda lines: [lines[0], "{"], "journal:2: not JSON"),
        (lambda lines: ["{}", *lines[1:]], "journal:1: no identity"),
    ],
)
def test_a_damaged_journal_is_named(tmp_path, change, message):
    out = tmp_path / "out.jsonl"
    journal = filled(out, (2, 0))
    lines = change(journal.read_text().splitlines())
    journal.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(json_file.Damaged, match=message):
        filled(out, ())


def test_texts_made_otherwise_are_left_alone(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    with pytest.raises(ValueError, match="is there, and no .out.jsonl.journal says how"):
        filled(out, ())
    assert out.read_text() == "mine\n"
    out.unlink()
    filled(out, (1,))
    changed = IDENTITY | {"sampling": {"top_p": 1.0, "banned": [[1, 3]]}}
    expected = r"begun with sampling.banned=\[\[1, 2\]\], and now"
    with (
        pytest.raises(ValueError, match=expected),
        finished_texts.opened(out, changed, 3),
    ):
        pass
    as_json = json.loads(json.dumps(IDENTITY))  # lists in place of tuples are no difference
    with finished_texts.opened(out, as_json, 3) as kept:
        assert kept.have == 1
        with pytest.raises(BlockingIOError, match="out.jsonl is being written by another process"):
            filled(out, ())
