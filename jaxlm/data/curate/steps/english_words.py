"""English words as spaCy's blank tokenizer cuts them, which datatrove's filters count.

spaCy cuts a text at white space and each piece for itself, so a piece is cut once and kept. Most
pieces of prose are letters with at most one mark behind them, which needs no spaCy at all; the
others go to it one by one. Without its memory zones: in these, spaCy 3.8 fails at the second text
that holds one of its own names, such as IS_ALPHA.
"""

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm.data.curate.steps import bounds
from jaxlm.data.curate.steps.punctuation import PUNCTUATION, SENTENCE_ENDS

# Pieces that spaCy leaves whole, or cuts before their last character, unless its table has them.
PLAIN = re.compile(r"([A-Za-z]+|[0-9]+)([,;:!?]?)|([A-Za-z]*[a-z])(\.)")
# Longer pieces are cut by a regular expression: spaCy's time grows with the square of a piece.
LONGEST = 300
LONG = re.compile(r"\w+|[^\w\s]")
SURROGATE = re.compile("[\ud800-\udfff]")
# Pieces that are kept before all are forgotten.
KEPT = 2**18
# Rows of the table of words. A word's hash is a polynomial of its characters, modulo 2^64: that of
# words written together follows from theirs.
LENGTH, SYMBOLS, ALPHABETIC, HASH, POWER = range(5)
FACTOR, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


class Pieces(dict):
    """Values of keys, computed when first asked for."""

    def __init__(self, value: Callable[[str], Any]):
        super().__init__()
        self.value = value

    def __missing__(self, key: str) -> Any:
        value = self[key] = self.value(key)
        return value


class Vocabulary:
    """Words by their ids, with what filters ask of each. Ids are valid until the next `refresh`."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        with bounds.of_extra("curate"):
            import spacy
        self._tokenizer: Any = spacy.blank("en").tokenizer
        self.words: list[str] = []
        self._ids: dict[str, int] = {}
        self._table = np.zeros((5, 1024), np.uint64)
        self._pieces = Pieces(self._cut)
        self.marks = Pieces(self._marks)

    def refresh(self) -> None:
        """Forgets all words where they are many, so that memory stays bounded."""
        if len(self._pieces) > KEPT:
            self._start()

    def ids(self, text: str) -> list[int]:
        """Ids of the words of a text, in order."""
        pieces = map(self._pieces.__getitem__, text.split())
        return list(itertools.chain.from_iterable(pieces))

    def table(self) -> np.ndarray:
        """uint64[5, words]: LENGTH in characters, SYMBOLS (1 for a word of punctuation alone),
        ALPHABETIC (1 for a word with a letter), HASH and POWER (FACTOR to the LENGTH)."""
        return self._table[:, : len(self.words)]

    def index(self, word: str) -> int:
        """The id of a word, which gets one if it is new."""
        index = self._ids.get(word)
        if index is None:
            index = self._ids[word] = len(self.words)
            self.words.append(word)
            if index == self._table.shape[1]:
                self._table = np.concatenate([self._table, np.zeros_like(self._table)], 1)
            value = 0
            for character in word:
                value = (value * FACTOR + ord(character)) & MASK
            symbols = all(c in PUNCTUATION for c in word)
            alphabetic = any(c.isalpha() for c in word)
            power = pow(FACTOR, len(word), MASK + 1)
            self._table[:, index] = (len(word), symbols, alphabetic, value, power)
        return index

    def _cut(self, piece: str) -> tuple[int, ...]:
        return tuple(map(self.index, self._words(piece)))

    def _words(self, piece: str) -> list[str]:
        """Words of a piece without white space."""
        rules = self._tokenizer.rules
        plain = PLAIN.fullmatch(piece)
        if plain and piece not in rules:
            core, end = plain[1] or plain[3], plain[2] or plain[4]
            if core not in rules:
                return [core, end] if end else [core]
        piece = SURROGATE.sub("\ufffd", piece)  # spaCy encodes in UTF-8
        if len(piece) > LONGEST:
            return LONG.findall(piece)
        return [token.text for token in self._tokenizer(piece)]

    def _marks(self, piece: str) -> str:
        """A character for each word: "." ends a sentence, "," is other punctuation, "w" neither."""
        words = [self.words[i] for i in self._pieces[piece]]
        return "".join(map(_mark, words))

    def sentences(self, text: str) -> int:
        """Sentences of a text as spaCy's sentencizer counts them: after a mark that ends one, the
        next word that is no punctuation begins another."""
        pieces = text.split()
        gap = ""
        if " ".join(pieces) != text:  # white space of more than one blank is a word to spaCy
            pieces, gap = re.findall(r"\s+|\S+", text), " "
        marks = "".join("" if p == gap else "w" if p.isspace() else self.marks[p] for p in pieces)
        return 1 + len(re.findall(r"\.[.,]*w", marks))


def _mark(word: str) -> str:
    if word in SENTENCE_ENDS:
        return "."
    return "," if all(unicodedata.category(c).startswith("P") for c in word) else "w"


@functools.cache
def vocabulary() -> Vocabulary:
    """The Vocabulary of this process, which its steps share."""
    return Vocabulary()


def versions() -> dict[str, str]:
    """Versions of what decides the words."""
    unicode = f"{unicodedata.unidata_version} of Python {sys.version_info[0]}.{sys.version_info[1]}"
    return {"spacy": bounds.version("spacy", "curate"), "unicode": unicode}
