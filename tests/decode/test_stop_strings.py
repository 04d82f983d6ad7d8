"""Stop strings across token boundaries, and pieces that are certain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import stop_strings

BYTES = bytelevel.Bytes()


def run(data, strings):
    """(watch, pieces) after the bytes one by one; a piece is taken after each."""
    row, pieces = stop_strings.Watch(BYTES, [], strings), []
    for token in data:
        if row.stopped:
            break
        row.push(token)
        pieces.append(row.take())
    return row, [*pieces, row.finish()]


@pytest.mark.parametrize(
    ("text", "strings", "want", "tokens"),
    [
        ("one two three", ("two",), "one ", 7),
        ("aaab", ("aab",), "a", 4),
        ("a\n\nb", ("\n\n",), "a", 3),
        ("xyz", ("yz", "xyz"), "", 3),  # both are there after z; the earliest counts
        ("xyz", ("y", "xyz"), "x", 2),  # y is there first
        ("caf\u00e9!", ("\u00e9",), "caf", 5),
        ("nothing", ("else",), "nothing", 7),
        ("no strings", (), "no strings", 10),
    ],
)
def test_text_is_cut_before_the_first_stop_string(text, strings, want, tokens):
    row, pieces = run(text.encode(), strings)
    assert row.text == want == "".join(pieces)
    assert row.tokens == tokens
    assert row.stopped == any(s in text for s in strings)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=30) | st.text("ab\u00e9\U0001f600", max_size=12).map(str.encode),
    st.lists(st.text("ab\u00e9\U0001f600", min_size=1, max_size=4), max_size=3),
)
def test_pieces_are_final_and_never_half_a_character(data, strings):
    """Whatever the bytes, pieces join to the text cut at the first stop, and hold none of it."""
    row, pieces = run(data, strings)
    joined = "".join(pieces)
    assert joined == row.text
    assert not any(s in joined for s in strings)
    whole = data.decode("utf-8", "replace")
    if not any(s in whole for s in strings):
        assert joined == whole
    else:
        assert whole.startswith(joined)
    if "\ufffd" not in whole:
        assert all(piece.encode().decode() == piece and "\ufffd" not in piece for piece in pieces)


def test_what_may_begin_a_stop_string_is_held_back():
    row = stop_strings.Watch(BYTES, [], ("</end>",))
    taken = []
    for token in b"a</e b":
        row.push(token)
        taken.append(row.take())
    assert taken == ["a", "", "", "", "</e ", "b"]
