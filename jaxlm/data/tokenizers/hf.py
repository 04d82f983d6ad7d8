"""Through the `tokenizers` library: byte-level BPE and WordPiece trained here, and HF files."""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxlm.core import json_file
from jaxlm.data.tokenizers import tokenizer

_FILE = "tokenizer.json"
# Names of the ends in the usual tokenizer.json, for files without a tokenizer_config.json.
_EOS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "[SEP]")
_BOS = ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "[CLS]")
_PAD = ("<pad>", "<|pad|>", "[PAD]")
_MASK = ("<mask>", "[MASK]")
# Special tokens that keep their own name: T5's sentinels, and the marks of models that fill in
# (Code Llama; StarCoder and Qwen; DeepSeek).
_NAMED = re.compile(
    r"<extra_id_\d+>$|▁?<(PRE|SUF|MID|EOT)>$|<\|?fim_(prefix|suffix|middle|pad)\|?>$|<｜fim▁\w+｜>$"
)


class HuggingFace:
    """A tokenizer.json. The interface is tokenizer.Tokenizer's.

    Only the file's contents decide the ids; text is encoded without the file's own bos and eos,
    and special tokens spelled in the text are text. `lossless` holds for byte-level models without
    a normaliser.
    """

    def __init__(self, kind: str, text: str, special: dict[str, int]):
        import tokenizers

        self.kind, self._text = kind, text
        rules = json.loads(text)
        text, self._respelled = _unspellable(text, rules, special)
        self._tokenizer = t = tokenizers.Tokenizer.from_str(text)
        t.no_padding()
        t.no_truncation()
        marks, self._restarts = _marks(t, special)
        own = {new: name for name, new in self._respelled.items()}
        self.marks = {own.get(spelling, spelling): mark for spelling, mark in marks.items()}
        t.post_processor = None  # adds special tokens and trims offsets; ids do not depend on it
        t.encode_special_tokens = True  # the file cannot hold this; a pickle does not keep it
        self._inner: Any = None  # `t` with the token _BEFORE
        self.special = dict(special)
        self._size = 1 + max(t.get_vocab(with_added_tokens=True).values())
        self.vocab = self._size
        self._hidden = {i for i, token in t.get_added_tokens_decoder().items() if token.special}
        self._hidden |= set(special.values())
        self._pieces = self._byte_pieces() if _byte_level(rules.get("decoder")) else None
        self._byte_ids = self._bytes()
        self.lossless = self._is_lossless(rules)
        content = json.dumps([rules, sorted(special.items())], sort_keys=True)
        self.hash = hashlib.sha256(f"{kind}/1\0{content}".encode()).hexdigest()
        self._refuse_injection()

    def _byte_pieces(self) -> list[bytes]:
        letters = {letter: byte for byte, letter in enumerate(byte_letters())}
        added = self._tokenizer.get_added_tokens_decoder()
        pieces = []
        for i in range(self._size):
            token = self._tokenizer.id_to_token(i)
            if i in self._hidden or token is None:
                pieces.append(b"")
            elif i in added:
                pieces.append(token.encode())
            else:
                pieces.append(bytes(letters[c] for c in token))
        return pieces

    def _bytes(self) -> list[int] | None:
        letters = [self._tokenizer.token_to_id(letter) for letter in byte_letters()]
        ids = [i for i in letters if i is not None]
        return ids if self._pieces is not None and len(ids) == 256 else None

    def _is_lossless(self, rules: dict[str, Any]) -> bool:
        if self._byte_ids is None or rules.get("normalizer") is not None:
            return False
        encode = self._tokenizer.encode
        probes = (" a", "a  b ", "\ta\n\nb", "e\u0301\u00e9\U0001f600", "\0\x7f")
        ids = [encode(s, add_special_tokens=False).ids for s in probes]
        return [tokenizer.join(self._pieces or [], i) for i in ids] == [s.encode() for s in probes]

    def _refuse_injection(self) -> None:
        for role in ("eos", "bos", "pad"):
            spellings = [name for name, m in self.marks.items() if m.id == self.special.get(role)]
            spellings += [self._respelled[name] for name in spellings if name in self._respelled]
            for token in spellings:
                if self.special[role] in self.encode(f"{token} a{token}b"):
                    raise ValueError(
                        f"the model itself spells {token!r} with its {role} id: text could end a "
                        "document; choose a tokenizer whose special tokens are not words"
                    )

    def encode(self, text: str) -> list[int]:
        """The ids of the text.

        Raises: ValueError for bytes that are not UTF-8 if the model has no byte tokens.
        """
        return tokenizer.encode_around(
            text, tokenizer.ESCAPED, self._encode, self._byte_ids or self._no_bytes(text)
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def locate(self, text: str, first: bool) -> tokenizer.Located:
        """`encode` of a part of a document, with the characters of each id."""

        def locate(part: str, begins: bool) -> tokenizer.Located:
            return self._locate(part, first or not begins)

        byte_ids = self._byte_ids or self._no_bytes(text)
        return tokenizer.locate_around(text, tokenizer.ESCAPED, locate, byte_ids)

    def _locate(self, text: str, first: bool) -> tokenizer.Located:
        if first or self._restarts:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            return tokenizer.Located(encoding.ids, *_columns(encoding.offsets, 0))
        if _BEFORE in text:
            raise ValueError(f"text holds {_BEFORE!r}, which tokenizers of kind 'hf' reserve")
        # After a token, even one that is not special, a text is encoded as after every other.
        if self._inner is None:
            self._inner = _with_token(self._tokenizer.to_str(), _BEFORE)
        encoding = self._inner.encode(f"{_BEFORE}{text}", add_special_tokens=False)
        return tokenizer.Located(encoding.ids[1:], *_columns(encoding.offsets[1:], len(_BEFORE)))

    def _no_bytes(self, text: str) -> list[int]:
        if tokenizer.ESCAPED.search(text):
            raise ValueError(f"{self.kind} tokenizer: no tokens for bytes that are not UTF-8")
        return []

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        if any(tokenizer.ESCAPED.search(text) for text in texts):
            return [self.encode(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, U+FFFD where the bytes are not UTF-8."""
        if self._pieces is not None:
            return tokenizer.join(self._pieces, ids).decode("utf-8", "replace")
        shown = [i for i in map(tokenizer.checked, ids) if i < self._size]
        shown = [i for i in shown if i not in self._hidden]
        return self._tokenizer.decode(shown, skip_special_tokens=True)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes; special ids are empty."""
        if self._pieces is not None:
            return tokenizer.join(self._pieces, ids)
        return self.decode(ids).encode()

    def stream(self) -> tokenizer.Stream:
        """A new streaming decoder."""
        if self._pieces is not None:
            return tokenizer.ByteStream(self._pieces)
        return tokenizer.TextStream(self.decode)

    def save(self, folder: str) -> None:
        """Write tokenizer.json."""
        (pathlib.Path(folder) / _FILE).write_text(self._text, encoding="utf-8")

    def __reduce__(self) -> tuple:
        return HuggingFace, (self.kind, self._text, self.special)


# Models whose special tokens are ordinary entries of their vocabulary: any text that spells one
# would get its id. (A BPE reaches a token only by its merges.)
_LISTS = ("Unigram", "WordLevel", "WordPiece")


def _unspellable(
    text: str, rules: dict[str, Any], special: dict[str, int]
) -> tuple[str, dict[str, str]]:
    """(a tokenizer.json in which no text spells a special token, {spelling: the one there}).

    The entries of special tokens in the vocabulary get a space inside, at which every pre-tokenizer
    of these models cuts: T5 has `</s>` and its sentinels in its vocabulary. Ids stay as they are.
    """
    model = rules["model"]
    vocab = model.get("vocab", {})
    if model.get("type") not in _LISTS:
        return text, {}
    ids = vocab if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    names = {t["content"] for t in rules["added_tokens"] if t["special"]}
    names |= {name for name, i in ids.items() if i in special.values()}
    names = {n for n in names & ids.keys() if len(n) > 1 and n != model.get("unk_token")}
    new = {name: f"{name[0]} {name[1:]}" for name in names}
    if isinstance(vocab, dict):
        vocab = {new.get(name, name): i for name, i in vocab.items()}
    else:
        vocab = [[new.get(name, name), score] for name, score in vocab]
    added = [t | {"content": new.get(t["content"], t["content"])} for t in rules["added_tokens"]]
    added = [t | {"special": t["special"] or t["content"] in new.values()} for t in added]
    return json.dumps(rules | {"model": model | {"vocab": vocab}, "added_tokens": added}), new


_BEFORE = "\U0010fffe\U0010ffff"  # two characters of Unicode that no text has


def _with_token(text: str, token: str) -> Any:
    """The tokenizer of a tokenizer.json with one more token."""
    import tokenizers

    t = tokenizers.Tokenizer.from_str(text)
    t.encode_special_tokens = True
    t.add_tokens([tokenizers.AddedToken(token, special=False, normalized=False)])
    return t


def _columns(offsets: Sequence[tuple[int, int]], shift: int) -> tuple[list[int], list[int]]:
    return [a - shift for a, _ in offsets], [b - shift for _, b in offsets]


def _marks(t: Any, special: dict[str, int]) -> tuple[dict[str, tokenizer.Mark], bool]:
    """(special tokens by spelling, whether text after one is encoded as at the beginning)."""
    added = t.get_added_tokens_decoder()
    marks = {
        token.content: tokenizer.Mark(i, token.lstrip, token.rstrip)
        for i, token in added.items()
        if token.special or i in special.values()
    }
    rest = {i: t.id_to_token(i) for i in special.values() if i not in added}
    marks |= {spelling: tokenizer.Mark(i) for i, spelling in rest.items() if spelling is not None}
    first = next((token.content for token in added.values() if token.special), None)
    if first is None:
        return marks, True
    after, alone = (t.encode(text, add_special_tokens=False).ids for text in (f"{first}a", "a"))
    return marks, after[1:] == alone


def byte_letters() -> list[str]:
    """The visible letter of each byte in byte-level vocabularies. GPT-2's rule.

    Printable Latin-1 is itself; the other 68 bytes, in order, are U+0100 onwards.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(hidden)}
    return [letters[b] for b in range(256)]


def _byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder["type"] == "Sequence":
        return any(_byte_level(part) for part in decoder["decoders"])
    return decoder["type"] == "ByteLevel"


def train_bpe(kind: str, texts: Iterable[str], vocab: int, extra: Sequence[str]) -> HuggingFace:
    """Byte-level BPE of exactly `vocab` ids: pad, bos, eos, `extra`, 256 bytes, the merges.

    Radford et al. 2019, section 2.2, with GPT-2's splitting pattern.

    Raises: ValueError if the texts do not support that many merges.
    """
    import tokenizers as hf

    t = hf.Tokenizer(hf.models.BPE())
    t.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    t.decoder = hf.decoders.ByteLevel()
    special = {"pad": "<|pad|>", "bos": "<|bos|>", "eos": "<|eos|>"} | {e: e for e in extra}
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(special.values()),
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(texts, trainer)
    return _trained(kind, t, special, vocab)


def train_wordpiece(
    kind: str, texts: Iterable[str], vocab: int, extra: Sequence[str]
) -> HuggingFace:
    """WordPiece of `vocab` ids, cased, with BERT's special tokens. Devlin et al. 2019.

    Not lossless: white space becomes one space, a word with an unknown character becomes [UNK].

    Raises: ValueError if the texts do not support that many pieces.
    """
    import tokenizers as hf

    t = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    t.normalizer = hf.normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    t.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    t.decoder = hf.decoders.WordPiece(cleanup=False)
    special = {"pad": "[PAD]", "unk": "[UNK]", "bos": "[CLS]", "eos": "[SEP]", "mask": "[MASK]"}
    special |= {e: e for e in extra}
    trainer = hf.trainers.WordPieceTrainer(
        vocab_size=vocab, special_tokens=list(special.values()), show_progress=False
    )
    t.train_from_iterator(texts, trainer)
    return _trained(kind, t, special, vocab)


def _trained(kind: str, t: Any, special: dict[str, str], vocab: int) -> HuggingFace:
    size = t.get_vocab_size()
    if size != vocab:
        fits = "at most" if size < vocab else "at least"
        raise ValueError(
            f"vocab={vocab} for a {kind} tokenizer: these documents support {fits} {size}"
        )
    roles = {role: t.token_to_id(token) for role, token in special.items()}
    return HuggingFace(kind, t.to_str(), roles)


def load(kind: str, folder: str, special: dict[str, int]) -> HuggingFace:
    """The tokenizer that `save` wrote."""
    return HuggingFace(kind, (pathlib.Path(folder) / _FILE).read_text("utf-8"), special)


def load_file(path: str) -> HuggingFace:
    """A tokenizer.json from anywhere; its ends come from tokenizer_config.json next to it, if any.

    Raises: ValueError if the file is not one, or if no token can be identified as eos.
    """
    rules = json_file.read_object(pathlib.Path(path))
    text = pathlib.Path(path).read_text("utf-8")
    try:
        added = {t["content"]: t["id"] for t in rules["added_tokens"]}
        vocab = rules["model"]["vocab"]
        listed = vocab if isinstance(vocab, dict) else {e[0]: i for i, e in enumerate(vocab)}
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"tokenizer {path!r}: not a tokenizer.json ({error!r})") from error
    named = _config(pathlib.Path(path).with_name("tokenizer_config.json"))
    known = listed | added
    special = {}
    for role, usual in (("bos", _BOS), ("eos", _EOS), ("pad", _PAD), ("mask", _MASK)):
        candidates = [named[role]] if role in named else [t for t in usual if t in added]
        if candidates and candidates[0] not in known:
            raise ValueError(
                f"tokenizer {path!r}: tokenizer_config.json names {role}_token "
                f"{candidates[0]!r}, which is not in the vocabulary"
            )
        if candidates:
            special[role] = known[candidates[0]]
    special |= {token: i for token, i in added.items() if _NAMED.match(token)}
    if "eos" not in special:
        raise ValueError(
            f"tokenizer {path!r}: cannot tell which token ends a document; write "
            '{"eos_token": "..."} to tokenizer_config.json next to it'
        )
    return HuggingFace("hf", text, special)


def _config(path: pathlib.Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    fields = json_file.read_object(path)
    roles = {role: fields.get(f"{role}_token") for role in ("bos", "eos", "pad", "mask")}
    # Either "</s>" or {"content": "</s>", "lstrip": false, ...}
    texts = {k: v["content"] if isinstance(v, dict) else v for k, v in roles.items()}
    return {role: text for role, text in texts.items() if text is not None}
