"""The one interface of every tokenizer, and functions that follow from it."""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Stream(Protocol):
    """Text as ids arrive: `push` returns what is now certain, `finish` the rest."""

    def push(self, token: int) -> str:
        """The text that this id completes, possibly empty; never half a character."""
        ...

    def finish(self) -> str:
        """The text still held back; an unfinished character becomes U+FFFD."""
        ...


class Located(NamedTuple):
    """The ids of a text, and [start, end): the characters of each."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


class Mark(NamedTuple):
    """A special token as a chat template writes it: its id, and whether it takes up the white space
    before (left) and after it (right)."""

    id: int
    left: bool = False
    right: bool = False


class Tokenizer(Protocol):
    """The interface of every kind. Laws, tested for each:

    - Encoding plain text never yields a special id: a document that contains "<eos>" is text.
      (WordPiece's [UNK] is the exception: it is how that kind marks "no such word".)
    - If `lossless`, `decode_bytes(encode(text))` is the text's UTF-8 for every text, and for every
      byte string given as `data.decode("utf-8", "surrogateescape")`.
    - `hash` depends on what decides the ids and on nothing else; equal hashes, equal ids.
    - Instances can be pickled (tokenising runs in several processes).
    """

    kind: str
    vocab: int  # ids are 0 .. vocab-1
    special: dict[str, int]  # roles: "eos" always; "bos", "pad", ... where they exist
    lossless: bool
    hash: str
    marks: dict[str, Mark]  # special tokens by their spelling: "<|im_end|>", "<eos>"

    def encode(self, text: str) -> list[int]:
        """The ids of the text, without bos or eos."""
        ...

    def locate(self, text: str, first: bool) -> Located:
        """The ids of a part of a document, with their characters. first: the document begins with
        the part, whose ids are those of `encode`; else the part follows a special token, and some
        kinds (LLaMA's) put no space before it."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in order."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, U+FFFD for bytes that are not UTF-8; none for special ids, nor for
        ids from `vocab` on, which a model whose vocabulary is padded may draw."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; special ids are empty."""
        ...

    def stream(self) -> Stream:
        """A new streaming decoder."""
        ...

    def save(self, folder: str) -> None:
        """Write the files that `load` of the folder reads."""
        ...


def begin(tokenizer: Tokenizer) -> int:
    """The id that precedes every document: bos, or eos for a kind without bos (as GPT-2).

    With it a model predicts a document's first token too: bits per byte count every byte, and a
    sample may start from nothing. A prompt is `[begin(t), *t.encode(text)]`.
    """
    special = tokenizer.special
    return special["bos"] if "bos" in special else special["eos"]


def named(special: dict[str, int]) -> dict[str, Mark]:
    """The marks of a kind whose special tokens have no spelling: their roles in brackets."""
    return {name if name[:1] == "<" else f"<{name}>": Mark(i) for name, i in special.items()}


# --- Parts that several kinds share ----------------------------------------------------------


class ByteStream:
    """Stream of a kind whose ids are fixed bytes each."""

    def __init__(self, pieces: Sequence[bytes]):
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this id completes."""
        return self._decoder.decode(join(self._pieces, [token]))

    def finish(self) -> str:
        """The text still held back."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class TextStream:
    """Stream of a kind whose ids mean something only next to their neighbours.

    Decodes a short window twice, with and without the new id, and emits the difference; it holds
    back while the end is U+FFFD, a character that is not complete.
    """

    def __init__(self, decode: Callable[[Iterable[int]], str]):
        self._decode = decode
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that this id completes."""
        self._pending.append(token)
        text = self._new()
        if not text or text.endswith("\ufffd"):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """The text still held back."""
        text = self._new()
        self._context, self._pending = [], []
        return text

    def _new(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(before) :]


ESCAPED = re.compile("[\udc80-\udcff]+")  # bytes that are not UTF-8, as surrogateescape spells them


def encode_around(
    text: str, odd: re.Pattern[str], encode: Callable[[str], list[int]], byte_ids: Sequence[int]
) -> list[int]:
    """The ids of `text`, its parts that match `odd` spelled byte by byte with `byte_ids`.

    For what a library cannot take: bytes that are not UTF-8, or sentencepiece's own space mark.
    """
    if not odd.search(text):
        return encode(text)
    ids, last = [], 0
    for match in odd.finditer(text):
        ids += encode(text[last : match.start()])
        ids += [byte_ids[b] for b in match.group().encode("utf-8", "surrogateescape")]
        last = match.end()
    return ids + encode(text[last:])


def locate_around(
    text: str, odd: re.Pattern[str], locate: Callable[[str, bool], Located], byte_ids: Sequence[int]
) -> Located:
    """`encode_around` with the characters of each id. locate(part, whether the text begins with it)
    -> the `Located` of a part that has nothing odd."""
    if not odd.search(text):
        return locate(text, True)
    ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []

    def add(part: Located, shift: int) -> None:
        ids.extend(part.ids)
        starts.extend(start + shift for start in part.starts)
        ends.extend(end + shift for end in part.ends)

    last = 0
    for match in odd.finditer(text):
        add(locate(text[last : match.start()], last == 0), last)
        for at, letter in enumerate(match.group(), match.start()):
            spelled = [byte_ids[b] for b in letter.encode("utf-8", "surrogateescape")]
            add(Located(spelled, [0] * len(spelled), [1] * len(spelled)), at)
        last = match.end()
    add(locate(text[last:], last == 0), last)
    return Located(ids, starts, ends)


def spread(text: str, ids: Sequence[int], sizes: Sequence[int]) -> Located:
    """The characters of each id, where the ids' bytes, `sizes` many each, are those of the text one
    after another."""
    widths = [len(letter.encode("utf-8", "surrogateescape")) for letter in text]
    owner = np.repeat(np.arange(len(text)), widths)  # the character of each byte
    stops = np.cumsum(sizes, dtype=np.int64)
    if len(owner) != (stops[-1] if len(stops) else 0):
        raise ValueError(f"{len(owner)} bytes of text became {stops[-1:]} bytes of tokens")
    firsts = stops - np.asarray(sizes, np.int64)
    return Located(list(ids), owner[firsts].tolist(), (owner[stops - 1] + 1).tolist())


def join(pieces: Sequence[bytes], ids: Iterable[int]) -> bytes:
    """The bytes of the ids, each from its piece; none for an id beyond the last piece.

    Raises: ValueError naming a negative id.
    """
    return b"".join(pieces[i] if i < len(pieces) else b"" for i in map(checked, ids))


def checked(i: int) -> int:
    """A token id, as it is. Raises: ValueError for a negative one."""
    if i < 0:
        raise ValueError(f"token id {i} is negative")
    return i


# --- A tokenizer and a model that differ in size ----------------------------------------------


def check_known(ids: Sequence[int] | np.ndarray, vocab: int, where: str) -> None:
    """Raises: ValueError naming the first id that a model of `vocab` ids lacks, and where it is."""
    unknown = np.flatnonzero(np.asarray(ids) >= vocab)
    if unknown.size:
        i = int(np.asarray(ids).flat[unknown[0]])
        raise ValueError(
            f"{where}: token id {i} is outside the model's vocabulary 0..{vocab - 1}; the "
            "tokenizer has more ids than the model, and a text with one of those cannot be read"
        )


def mismatch(tokenizer: Tokenizer, vocab: int) -> list[str]:
    """Warnings about a tokenizer with more or fewer ids than the model's `vocab`.

    Raises: ValueError where the model lacks an id that every text needs: that before it, or eos.
    """
    needed = {"eos": tokenizer.special["eos"], "the id before every text": begin(tokenizer)}
    for name, i in needed.items():
        if i >= vocab:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab} ids, the model {vocab}: it lacks {name}, {i}"
            )
    if tokenizer.vocab > vocab:
        names = [repr(name) for name, mark in tokenizer.marks.items() if mark.id >= vocab]
        return [
            f"the tokenizer has {tokenizer.vocab} ids, the model {vocab}: texts with an id from "
            f"{vocab} on ({', '.join([*names[:3], *['...'] * (len(names) > 3)]) or 'no name'}) are "
            "refused"
        ]
    if tokenizer.vocab < vocab:
        return [
            f"the model has {vocab} ids, the tokenizer {tokenizer.vocab}: ids from "
            f"{tokenizer.vocab} on have no text, should the model draw one"
        ]
    return []
