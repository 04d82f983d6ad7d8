"""Infilling moves the middle of documents to their end, and nothing is lost or repeated."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest

from jaxlm.data import pretraining, tokenizers
from jaxlm.data.corrupt import infill, mask
from jaxlm.data.tokenized import shards

PRE, SUF, MID, END, EOS, BEGIN = 90, 91, 92, 93, 94, 95
OWN = infill.Marks(PRE, SUF, MID, END, EOS)
SHARED = infill.Marks(PRE, SUF, MID, EOS, EOS)
NAMES = ["<PRE>", "<SUF>", "<MID>"]


class Documents:
    """Documents of distinct tokens, the one of 40 too long for a row of 20."""

    texts = [np.array([BEGIN, *range(n), EOS]) for n in (6, 40, 1, 0, 12, 9, 15, 3)]
    lengths = np.array([len(t) for t in texts])

    def docs(self, numbers):
        return [self.texts[i] for i in numbers]


def read(settings, marks, draw=0):
    found = infill.reader(Documents.lengths, Documents(), 20, settings, marks)
    rows = np.arange(len(found.rows))
    return found.read(rows, [(draw, int(r)) for r in rows])


def pieces(found):
    """The tokens of each segment, its last target with them."""
    for row in range(len(found.tokens)):
        for segment in range(1, found.segments[row].max() + 1):
            here = found.segments[row] == segment
            assert (found.positions[row, here] == np.arange(here.sum())).all()
            targets = found.targets[row, here]
            assert (found.tokens[row, here][1:] == targets[:-1]).all()
            yield [int(found.tokens[row, here][0]), *(int(t) for t in targets)]


def undone(piece, marks):
    """(the text, which form) of a piece without its first token."""
    text = piece[1:]
    if PRE not in text:
        return text, "plain"
    last = text[-1] == EOS and marks.end != EOS
    text, ends = (text[:-1], [EOS]) if last else (text, [])
    at = {m: text.index(m) for m in (PRE, SUF, MID)}
    assert at[PRE] == 0 and text[-1] == marks.end
    text = text[:-1] if ends or marks.end != EOS else text
    if at[SUF] == 1:
        both, suffix = text[at[MID] + 1 :], text[2 : at[MID]]
        return _joined(both, suffix, marks) + ends, "spm"
    prefix, suffix, middle = text[1 : at[SUF]], text[at[SUF] + 1 : at[MID]], text[at[MID] + 1 :]
    return _joined(prefix + middle, suffix, marks) + ends, "psm"


def _joined(before, suffix, marks):
    return before[:-1] + suffix + [EOS] if before[-1:] == [EOS] else before + suffix


@pytest.mark.parametrize("marks", [OWN, SHARED])
def test_every_token_is_a_target_once_in_both_forms(marks):
    forms = []
    for draw in range(40):
        found = read(infill.Infill(), marks, draw)
        assert (found.weight == (found.segments > 0)).all()
        texts = [undone(piece, marks) for piece in pieces(found)]
        forms += [form for text, form in texts if len(text) > 2]
        flat = sorted(t for text, _ in texts for t in text if t != EOS)
        assert flat == sorted(t for d in Documents.texts for t in d[1:-1])
    share = {form: forms.count(form) / len(forms) for form in ("plain", "psm", "spm")}
    assert share == pytest.approx({"plain": 0.1, "psm": 0.45, "spm": 0.45}, abs=0.08)


def test_a_whole_document_in_each_form():
    """Documents of 12 and 15 tokens are never cut."""
    for spm, marks in ((0.0, OWN), (1.0, OWN), (0.0, SHARED), (1.0, SHARED)):
        found = read(infill.Infill(rate=1.0, spm=spm), marks)
        last = [(max((t for t in p if t < PRE), default=0), p) for p in pieces(found)]
        whole = [p for t, p in last if t in (11, 14)]
        assert len(whole) == 2
        for piece in whole:
            text, form = undone(piece, marks)
            # with no prefix the two forms are one
            assert form == "spm" if spm else form == "psm" or piece[1:3] == [PRE, SUF]
            assert text[-1] == EOS
            assert text[:-1] == list(range(len(text) - 1))
            assert piece[-2:] == [END, EOS] if marks is OWN else piece[-1] == EOS


def test_cuts_are_uniform_and_decided_by_the_draw():
    settings = infill.Infill(rate=1.0, spm=0.0)
    reader = infill.Reader(None, settings, OWN)
    piece = np.array([BEGIN, *range(4), EOS])
    rng = np.random.default_rng(0)
    cut = [list(reader._moved(piece, True, rng)) for _ in range(4000)]
    lengths = [m.index(SUF) - 2 for m in cut]  # of the prefix: the lesser of two uniform cuts
    found = np.bincount(lengths, minlength=5) / len(cut)
    np.testing.assert_allclose(found, np.array([9, 7, 5, 3, 1]) / 25, atol=0.03)
    a, b, c = (read(infill.Infill(), OWN, draw) for draw in (1, 1, 2))
    assert (a.tokens == b.tokens).all() and (a.tokens != c.tokens).any()


def test_without_a_rate_documents_stay_as_they_are():
    found = read(infill.Infill(rate=0.0), OWN)
    texts = list(pieces(found))
    assert all(list(d) in texts for d in Documents.texts if len(d) < 18)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tokenizer with marks, and shards."""
    root = tmp_path_factory.mktemp("infill")
    texts = [f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 3) for i in range(60)]
    tokenizers.train("byte_bpe", texts, 280, str(root / "tok"), NAMES)
    (root / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    tokenizer = tokenizers.load(str(root / "tok"))
    shards.tokenize(str(root / "x.jsonl"), "text", tokenizer, str(root / "out"), 0.3)
    found = {s: shards.open_shards(str(root / "out"), s, tokenizer.hash) for s in shards.SPLITS}
    data = pretraining.Data(
        tokenizer=str(root / "tok"), seq=64, batch=4, holdout=0.3, infill=infill.Infill()
    )
    return tokenizer, found, data


def test_batches_are_a_function_of_the_step_and_validation_is_plain(corpus):
    tokenizer, found, data = corpus
    steps = pretraining.Steps(data, found["train"], 0, 0, 1)
    later = pretraining.Steps(data, found["train"], 3, 1, 2)
    np.testing.assert_array_equal(steps[5].tokens[2:], later[2].tokens)
    marks = [tokenizer.special[name] for name in NAMES]
    assert all(np.isin(marks, steps[s].tokens).all() for s in range(3))
    rows = len(pretraining.reader(data, found["train"]).rows)
    epochs = [np.concatenate([steps[e * rows + i].targets for i in range(rows)]) for e in (0, 1)]
    assert len(np.unique(np.concatenate(epochs), axis=0)) > 1.5 * rows  # cut anew every epoch
    plain = dataclasses.replace(data, infill=None)
    for a, b in zip(
        *(pretraining.val_batches(d, found["val"]) for d in (data, plain)), strict=True
    ):
        np.testing.assert_array_equal(a.tokens, b.tokens)
    assert {tokenizer.special[name] for name in NAMES} <= set(
        pretraining.added_ids(data, tokenizer)
    )


def test_a_prompt_is_what_training_shows(corpus):
    tokenizer, _, data = corpus
    ids = infill.prompt(data.infill, tokenizer, "def f", "return x")
    special = tokenizer.special
    assert [i for i in ids if i in special.values()] == [
        special["bos"], *(special[name] for name in NAMES)
    ]  # fmt: skip
    assert ids[-1] == special["<MID>"] and tokenizer.decode(ids) == "def freturn x"


def _tokenizer(**special):
    return types.SimpleNamespace(kind="odd", special=special)


@pytest.mark.parametrize(
    ("settings", "tokenizer", "said"),
    [
        (
            infill.Infill(),
            _tokenizer(eos=0),
            "infill.prefix: '<PRE>' given, but the odd tokenizer has no such",
        ),
        (
            infill.Infill(end="<EOT>"),
            _tokenizer(eos=0, **dict(zip(NAMES, (1, 2, 3)))),
            "infill.end: '<EOT>' given",
        ),
        (
            infill.Infill(suffix="<PRE>"),
            _tokenizer(eos=0, **dict(zip(NAMES, (1, 2, 3)))),
            r"ids \[1, 1, 3\], eos 0; each must be its own",
        ),
    ],
)
def test_errors(settings, tokenizer, said):
    with pytest.raises(ValueError, match=said):
        infill.marks(settings, tokenizer)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"packing": "concat"}, "data.packing: 'concat' given; .* 'best_fit' with data.infill"),
        ({"curriculum": ((0, 32),)}, r"data.curriculum: \(\(0, 32\),\) .* \(\) with data.infill"),
        ({"corrupt": mask.Mask()}, r"data.corrupt: Mask\(.* it must be None with data.infill"),
        ({"seq": 4}, "data.seq: 4 given; it must be above 4 with data.infill"),
    ],
)
def test_settings_that_do_not_fit_are_refused(corpus, changes, said):
    assert re.match(said, next(dataclasses.replace(corpus[2], **changes).problems()))
