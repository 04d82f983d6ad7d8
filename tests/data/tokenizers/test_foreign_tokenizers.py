"""Tokenizers that come with checkpoints: T5's, and those of another size than the model."""

import json
import pickle

import pytest

from jaxlm.data import tokenizers
from jaxlm.data.tokenizers import tokenizer as interface

PIECES = [
    "\u2581",
    "a",
    "b",
    "s",
    "/",
    ">",
    "<",
    "\u2581ab",
    "e",
    "x",
    "t",
    "r",
    "_",
    "i",
    "d",
    "0",
    "1",
]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """(folder, the file as its library reads it): a tokenizer.json as T5 and Flan-T5 have it, with
    the ends and the sentinels in the vocabulary of a Unigram model at score 0."""
    import tokenizers as library

    folder = tmp_path_factory.mktemp("t5")
    named = ["<pad>", "</s>", "<unk>"]
    vocab = [(n, 0.0) for n in named] + [(p, -2.0 - i / 8) for i, p in enumerate(PIECES)]
    vocab += [("<extra_id_1>", 0.0), ("<extra_id_0>", 0.0)]
    t = library.Tokenizer(library.models.Unigram(vocab, unk_id=2))
    t.pre_tokenizer = library.pre_tokenizers.Sequence(
        [library.pre_tokenizers.WhitespaceSplit(), library.pre_tokenizers.Metaspace()]
    )
    t.decoder = library.decoders.Metaspace()
    t.add_special_tokens([*named, "<extra_id_0>", "<extra_id_1>"])
    t.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder, library.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_t5s_own_file_is_read_and_text_cannot_spell_its_ends(t5):
    """Every T5 and Flan-T5 was refused, as its Unigram model itself spells `</s>`."""
    folder, theirs = t5
    ours = tokenizers.load(str(folder))
    assert ours.special == {"eos": 1, "pad": 0, "<extra_id_0>": 21, "<extra_id_1>": 20}
    assert {"</s>", "<pad>", "<extra_id_0>"} <= ours.marks.keys()
    assert ours.marks["</s>"].id == 1
    for text in ("ab", " ab  xt ", "a/s> <s", "rest <id0>", "", "zz ab"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    for text in ("</s>", "a</s>b", "</s> a", "< /s>", "a <extra_id_0> b<pad>", "<extra_id_1>"):
        ids = ours.encode(text)
        assert not set(ids) & set(ours.special.values())
        if "pad" not in text:  # no piece has its p
            assert ours.decode(ids) == text
        assert ours.encode_batch([text]) == [ids]
    assert ours.decode([5, 1, 21]) == "b"  # special ids are empty
    again = pickle.loads(pickle.dumps(ours))
    assert again.encode("a</s>b") == ours.encode("a</s>b") and again.hash == ours.hash
    tokenizers.save(ours, str(folder / "saved"))
    assert tokenizers.load(str(folder / "saved")).encode("a</s>b") == ours.encode("a</s>b")


def test_a_bpe_whose_merges_spell_its_end_is_still_refused(tmp_path):
    import tokenizers as library

    vocab = {"<": 0, "e": 1, ">": 2, "<e": 3, "<e>": 4}
    t = library.Tokenizer(library.models.BPE(vocab, [("<", "e"), ("<e", ">")]))
    t.add_special_tokens(["<e>"])
    t.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<e>"}))
    with pytest.raises(ValueError, match="'<e>' with its eos id"):
        tokenizers.load(str(tmp_path))


def test_a_tokenizer_and_a_model_of_different_sizes(tmp_path):
    found = tokenizers.train("byte_bpe", ["some words"] * 9, 262, str(tmp_path / "made"))
    assert interface.mismatch(found, found.vocab) == []
    (told,) = interface.mismatch(found, 512)
    assert told.startswith("the model has 512 ids, the tokenizer 262: ids from 262 on have no text")
    (told,) = interface.mismatch(found, 261)
    assert told.startswith("the tokenizer has 262 ids, the model 261: texts with an id from 261 on")
    with pytest.raises(ValueError, match="lacks eos, 2"):
        interface.mismatch(found, 2)
    interface.check_known([0, 260], 261, "here")
    with pytest.raises(ValueError, match=r"here: token id 261 is outside .* 0..260"):
        interface.check_known([[0, 1], [261, 262]], 261, "here")
