"""Words and sentences, compared with spaCy on whole texts."""

import pytest
import spacy

from jaxlm.data.curate.steps import english_words
from tests.data.curate.steps import curation_texts


@pytest.fixture(scope="module")
def english():
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    return nlp


def words(text):
    vocabulary = english_words.vocabulary()
    return [vocabulary.words[i] for i in vocabulary.ids(text)]


def test_words_and_sentences_are_those_of_spacy(english):
    """datatrove counts white space neither as a word nor in one."""
    texts = curation_texts.faulty(12)
    for text in texts:
        document = english(text)
        assert words(text) == [w.text.strip() for w in document if w.text.strip()]
        for line in text.splitlines():
            line = line.strip()
            if line:
                sentences = len(list(english(line).sents))
                assert english_words.vocabulary().sentences(line) == sentences, line


def test_a_name_of_spacy_is_a_word_every_time():
    """In spaCy's memory zones it is one only at first: the next text that has it is an error, and
    datatrove then counts its words without it."""
    assert [words("an IS_ALPHA word, IS_ALPHA") for _ in range(3)] == [
        ["an", "IS_ALPHA", "word", ",", "IS_ALPHA"]
    ] * 3


class Counted:
    """A tokenizer that counts the characters it is given, and the longest piece."""

    def __init__(self, tokenizer):
        self.tokenizer, self.rules, self.given, self.longest = tokenizer, tokenizer.rules, 0, 0

    def __call__(self, piece):
        self.given += len(piece)
        self.longest = max(self.longest, len(piece))
        return self.tokenizer(piece)


def test_a_text_of_megabytes_takes_linear_work():
    """spaCy's time grows with the square of a piece: 6 s for 4,000 characters of "(.". It is given
    no long ones, and none twice."""
    vocabulary = english_words.Vocabulary()
    vocabulary._tokenizer = counted = Counted(vocabulary._tokenizer)
    long = "(." * 500_000 + " " + "ab/" * 500_000
    assert len(vocabulary.ids(long)) == 2_000_000 and counted.given == 0
    ids = vocabulary.ids("(.a" * 40 + " " + "it's (odd) " * 60_000)
    assert len(ids) > 60_000 * 5
    assert counted.given < 200 and counted.longest <= english_words.LONGEST
    assert vocabulary.ids("(.a" * 40) == ids[: len(vocabulary.ids("(.a" * 40))]


def test_strange_characters_are_words_too():
    assert words("\ud800a b\x00c \ud800") == ["\ufffd", "a", "b\x00c", "\ufffd"]


def test_words_are_forgotten_where_they_are_many(monkeypatch):
    vocabulary = english_words.Vocabulary()
    first = vocabulary.ids("some words, and some more")
    vocabulary.refresh()
    assert len(vocabulary.words) == 5 and vocabulary.index("words") == first[1]
    monkeypatch.setattr(english_words, "KEPT", 3)
    vocabulary.refresh()
    assert vocabulary.words == [] and vocabulary.ids("more words") == [0, 1]


def test_the_table_of_words():
    vocabulary = english_words.Vocabulary()
    many = " ".join(f"w{'abcdefgh'[n % 8]}{n}x" for n in range(3000))
    ids = vocabulary.ids(f"a ab abc ?! 42 {many}")
    table = vocabulary.table()
    assert table.shape == (5, len(vocabulary.words))
    assert table[english_words.LENGTH, ids[:7]].tolist() == [1, 2, 3, 1, 1, 2, len("wa0x")]
    assert table[english_words.SYMBOLS, ids[:7]].tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert table[english_words.ALPHABETIC, ids[:7]].tolist() == [1, 1, 1, 0, 0, 0, 1]
    ab, c, abc = ([vocabulary.index(word)] for word in ("ab", "c", "abc"))
    table = vocabulary.table()
    value, power = table[english_words.HASH], table[english_words.POWER]
    assert value[ab] * power[c] + value[c] == value[abc]
