"""Sentencepiece: BPE and unigram, trained here with byte fallback and the identity normaliser.

So trained they are lossless: nothing is normalised, no space is added or removed, and a character
without a piece is spelled in bytes. Sentencepiece writes a space as U+2581; that character itself
is therefore always spelled in bytes here, or it would come back as a space.

Models trained elsewhere (a LLaMA 2 `tokenizer.model`) load too, and are encoded as their own
library does, losses included.
"""

import hashlib
import io
import pathlib
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from jaxlm.data.tokenizers import tokenizer

_SPACE = "\u2581"
_ODD = re.compile(f"[{_SPACE}\udc80-\udcff]+")
_FILE = "sentencepiece.model"
_PROBES = (" a", "a  b ", "\ta\n\nb", "e\u0301\u00e9", "\u30a2\uff71\U0001f600", "\0\x7f")
_CHUNK = 4096  # characters; the trainer counts words, a cut costs nothing but one word


class SentencePiece:
    """A sentencepiece model. The interface is tokenizer.Tokenizer's."""

    def __init__(self, kind: str, model: bytes):
        import sentencepiece

        self.kind = kind
        self._model = model
        self._processor = p = sentencepiece.SentencePieceProcessor()
        p.LoadFromSerializedProto(model)
        self.vocab = p.get_piece_size()
        controls = {p.id_to_piece(i): i for i in range(self.vocab) if p.is_control(i)}
        roles = {"pad": p.pad_id(), "bos": p.bos_id(), "eos": p.eos_id(), "unk": p.unk_id()}
        named = {role: i for role, i in roles.items() if i >= 0}
        if "eos" not in named:
            raise ValueError("sentencepiece model without an eos piece: train it with one")
        self.special = named | {k: i for k, i in controls.items() if i not in named.values()}
        self.marks = {p.id_to_piece(i): tokenizer.Mark(i) for i in self.special.values()}
        self._pieces = [self._piece(i) for i in range(self.vocab)]
        self._byte_ids = self._bytes()
        self.lossless = self._is_lossless()
        # A foreign model puts a space before every text; decoding takes it away again.
        self._prefix = bool(p.encode("a")) and self._pieces[p.encode("a")[0]].startswith(b" ")
        self.hash = self._digest()

    def _piece(self, i: int) -> bytes:
        p = self._processor
        if p.is_control(i):
            return b""
        if p.is_byte(i):  # <0x0A>
            return bytes([int(p.id_to_piece(i)[3:5], 16)])
        if p.is_unknown(i):
            return " \u2047 ".encode()
        return p.id_to_piece(i).replace(_SPACE, " ").encode()

    def _bytes(self) -> list[int] | None:
        by_byte = {self._pieces[i]: i for i in range(self.vocab) if self._processor.is_byte(i)}
        if len(by_byte) < 256:
            return None
        return [by_byte[bytes([b])] for b in range(256)]

    def _is_lossless(self) -> bool:
        if self._byte_ids is None:
            return False
        encode = self._processor.encode
        return all(tokenizer.join(self._pieces, encode(s)) == s.encode() for s in _PROBES)

    def _digest(self) -> str:
        # The pieces, their kinds and scores decide the ids. The file also records how many
        # threads trained it; that must not count.
        p = self._processor
        total = hashlib.sha256(f"{self.kind}/1\0{self.lossless}".encode())
        for i in range(self.vocab):
            flags = (p.is_control(i), p.is_byte(i), p.is_unknown(i), p.is_unused(i))
            total.update(p.id_to_piece(i).encode() + b"\0" + bytes(flags))
            total.update(struct.pack("<f", p.get_score(i)))
        return total.hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of the text."""
        if self.lossless and self._byte_ids is not None:
            return tokenizer.encode_around(text, _ODD, self._processor.encode, self._byte_ids)
        return self._processor.encode(text)

    def locate(self, text: str, first: bool) -> tokenizer.Located:
        """`encode` of a part of a document, with the characters of each id. As the library encodes
        parts between control pieces, each is a text of its own."""
        if self.lossless:
            ids = self.encode(text)
            return tokenizer.spread(text, ids, [len(self._pieces[i]) for i in ids])
        from sentencepiece import sentencepiece_pb2

        proto = self._processor.encode(text, out_type="serialized_proto")
        text_type: Any = vars(sentencepiece_pb2)["SentencePieceText"]  # which it defines at import
        pieces = text_type.FromString(proto).pieces
        widths = [len(letter.encode()) for letter in text]
        owner = np.repeat(np.arange(len(text)), widths)  # the character of each byte
        starts = [int(owner[min(p.begin, len(owner) - 1)]) for p in pieces]
        ends = [
            int(owner[p.end - 1]) + 1 if p.end > p.begin else start
            for p, start in zip(pieces, starts)
        ]
        return tokenizer.Located([p.id for p in pieces], starts, ends)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, U+FFFD where the bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes; special ids are empty."""
        data = tokenizer.join(self._pieces, ids)
        return data.removeprefix(b" ") if self._prefix else data

    def stream(self) -> tokenizer.Stream:
        """A new streaming decoder."""
        if self._prefix:
            return tokenizer.TextStream(self.decode)
        return tokenizer.ByteStream(self._pieces)

    def save(self, folder: str) -> None:
        """Write sentencepiece.model."""
        (pathlib.Path(folder) / _FILE).write_bytes(self._model)

    def __reduce__(self) -> tuple:
        return SentencePiece, (self.kind, self._model)


def train(
    model: Literal["bpe", "unigram"],
    kind: str,
    texts: Iterable[str],
    vocab: int,
    extra: Sequence[str],
) -> SentencePiece:
    """A sentencepiece model of exactly `vocab` pieces: 4 specials, `extra`, 256 bytes, the rest.

    The number of threads is fixed: unigram adds floats per thread, and the model must not depend
    on the machine.

    Raises: ValueError if the texts do not support that many pieces.
    """
    import sentencepiece

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=out,
            model_type=model,
            vocab_size=vocab,
            num_threads=2,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=0.9999,
            max_sentence_length=5 * _CHUNK,
            control_symbols=list(extra),
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            minloglevel=2,
        )
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        fits = f"these documents support at most {limit.group(1)}" if limit else str(error)
        raise ValueError(f"vocab={vocab} for a {kind} tokenizer: {fits}") from error
    return SentencePiece(kind, out.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        clean = text.replace(_SPACE, " ").replace("\0", " ")
        for i in range(0, len(clean), _CHUNK):
            yield clean[i : i + _CHUNK]


def load(kind: str, folder: str) -> SentencePiece:
    """The model that `save` wrote."""
    return SentencePiece(kind, (pathlib.Path(folder) / _FILE).read_bytes())


def load_file(path: str) -> SentencePiece:
    """A .model file from anywhere.

    Raises: ValueError if it is not a sentencepiece model.
    """
    try:
        return SentencePiece("sentencepiece", pathlib.Path(path).read_bytes())
    except RuntimeError as error:
        raise ValueError(
            f"tokenizer {path!r}: not a sentencepiece model; a tiktoken rank file must end in "
            ".tiktoken, a Hugging Face file in .json"
        ) from error
