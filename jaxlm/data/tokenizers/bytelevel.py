"""Bytes as tokens: 256 ids and three specials. No training, no file, lossless."""

import hashlib
from collections.abc import Iterable, Sequence

from jaxlm.data.tokenizers import tokenizer

_SPECIAL = {"pad": 256, "bos": 257, "eos": 258}
_PIECES = [bytes([b]) for b in range(256)] + [b""] * len(_SPECIAL)


class Bytes:
    """One id per UTF-8 byte, then pad, bos, eos. The interface is tokenizer.Tokenizer's."""

    kind = "bytes"
    vocab = len(_PIECES)
    lossless = True

    def __init__(self) -> None:
        self.special = dict(_SPECIAL)
        self.marks = tokenizer.named(_SPECIAL)
        self.hash = hashlib.sha256(b"bytes/1").hexdigest()

    def encode(self, text: str) -> list[int]:
        """The text's UTF-8 bytes; escaped bytes (surrogateescape) as themselves."""
        return list(text.encode("utf-8", "surrogateescape"))

    def locate(self, text: str, first: bool) -> tokenizer.Located:
        """`encode` of a part of a document, with the character of each byte."""
        ids = self.encode(text)
        return tokenizer.spread(text, ids, [1] * len(ids))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, U+FFFD where the bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes; special ids are empty."""
        return tokenizer.join(_PIECES, ids)

    def stream(self) -> tokenizer.Stream:
        """A new streaming decoder."""
        return tokenizer.ByteStream(_PIECES)

    def save(self, folder: str) -> None:
        """Writes nothing: the kind's name is all there is to store."""


def load(folder: str, special: dict[str, int]) -> Bytes:
    """The bytes tokenizer; it needs no file."""
    return Bytes()
