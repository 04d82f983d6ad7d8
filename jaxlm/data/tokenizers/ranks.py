"""Tiktoken vocabularies from a local rank file (its named encodings need the network)."""

import base64
import binascii
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

from jaxlm.core import json_file
from jaxlm.data.tokenizers import tokenizer

_FILE = "ranks.tiktoken"
_RULES = "ranks.json"

# A rank file holds neither its splitting pattern nor its special tokens. These are what OpenAI
# published for the file names below; any other file needs a .json of the same shape next to it.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN = {
    "r50k_base": {"pattern": _GPT2, "special": {"eos": 50256}, "vocab": 50257},
    "p50k_base": {"pattern": _GPT2, "special": {"eos": 50256}, "vocab": 50281},
    "cl100k_base": {"pattern": _CL100K, "special": {"eos": 100257}, "vocab": 100277},
}


class Tiktoken:
    """A rank file with its rules. The interface is tokenizer.Tokenizer's. Lossless."""

    kind = "tiktoken"

    def __init__(self, ranks: dict[bytes, int], pattern: str, special: dict[str, int], vocab: int):
        try:
            import tiktoken
        except ImportError as error:
            raise ImportError(
                "a tiktoken vocabulary needs tiktoken: pip install 'jaxlm[tiktoken]'"
            ) from error
        self._ranks, self._pattern = ranks, pattern
        self.special, self.vocab = dict(special), vocab
        self.marks = tokenizer.named(special)
        self._encoding = tiktoken.Encoding(
            "local", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        self._byte_ids = [ranks[bytes([b])] for b in range(256)]
        self._pieces = [b""] * vocab
        for piece, rank in ranks.items():
            self._pieces[rank] = piece
        self.lossless = True
        total = hashlib.sha256(json.dumps([pattern, sorted(special.items()), vocab]).encode())
        for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
            total.update(base64.b64encode(piece) + f" {rank}\n".encode())
        self.hash = total.hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of the text."""
        encode = self._encoding.encode_ordinary
        return tokenizer.encode_around(text, tokenizer.ESCAPED, encode, self._byte_ids)

    def locate(self, text: str, first: bool) -> tokenizer.Located:
        """`encode` of a part of a document, with the characters of each id."""
        ids = self.encode(text)
        return tokenizer.spread(text, ids, [len(self._pieces[i]) for i in ids])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, U+FFFD where the bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes; special ids are empty."""
        return tokenizer.join(self._pieces, ids)

    def stream(self) -> tokenizer.Stream:
        """A new streaming decoder."""
        return tokenizer.ByteStream(self._pieces)

    def save(self, folder: str) -> None:
        """Write the ranks and the rules."""
        lines = [
            base64.b64encode(piece) + f" {rank}\n".encode()
            for piece, rank in sorted(self._ranks.items(), key=lambda item: item[1])
        ]
        (pathlib.Path(folder) / _FILE).write_bytes(b"".join(lines))
        rules = {"pattern": self._pattern, "special": self.special, "vocab": self.vocab}
        (pathlib.Path(folder) / _RULES).write_text(json.dumps(rules, indent=2), "utf-8")

    def __reduce__(self) -> tuple:
        return Tiktoken, (self._ranks, self._pattern, self.special, self.vocab)


def load(folder: str, special: dict[str, int]) -> Tiktoken:
    """The tokenizer that `save` wrote."""
    return load_file(str(pathlib.Path(folder) / _FILE))


def load_file(path: str) -> Tiktoken:
    """A .tiktoken file; rules by its well-known name, or from the .json of its name next to it.

    Raises: ValueError naming the line that is not `base64 rank`, missing single bytes, or missing
    rules.
    """
    file = pathlib.Path(path)
    rules = _rules(file)
    ranks = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"tokenizer {path}:{number}: expected `base64 rank`, got {line[:40]!r}"
            ) from error
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise ValueError(f"tokenizer {path!r}: no rank for the single byte {missing[0]}")
    special, vocab = rules["special"], rules["vocab"]
    used = set(ranks.values())
    clash = [role for role, i in special.items() if i in used or i >= vocab]
    if clash or max(used) >= vocab or "eos" not in special:
        raise ValueError(
            f"tokenizer {path!r}: ranks 0..{max(used)} and special ids {special} do not fit "
            f"vocab={vocab}: special needs an eos, and ids of its own below vocab"
        )
    return Tiktoken(ranks, rules["pattern"], special, vocab)


def _rules(file: pathlib.Path) -> dict:
    rules_file = file.with_suffix(".json")
    if rules_file.is_file():
        rules = json_file.read_object(rules_file)
        if missing := {"pattern", "special", "vocab"} - set(rules):
            raise ValueError(
                f"tokenizer rules {str(rules_file)!r}: no field {sorted(missing)[0]!r}"
            )
        return rules
    if file.stem in _KNOWN:
        return _KNOWN[file.stem]
    raise ValueError(
        f"tokenizer {str(file)!r}: a rank file holds no splitting pattern; name it after a known "
        f'one {sorted(_KNOWN)} or write {rules_file.name} next to it: {{"pattern": "...", '
        '"special": {"eos": id}, "vocab": size}'
    )
