"""Tokenizers: one interface (tokenizer.py), one file a library, one line a kind below."""

import difflib
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jaxlm.core import atomic, json_file
from jaxlm.core.remote import objects
from jaxlm.data.tokenizers import bytelevel, hf, ranks, spm, tokenizer

_META = "jaxlm_tokenizer.json"
_SPECIALS = 4 + 256  # the fewest ids of a kind with byte tokens


class Kind(NamedTuple):
    """`load(folder, special)` reads what `save` wrote; `train(texts, vocab, extra)` or None."""

    load: Callable[[str, dict[str, int]], tokenizer.Tokenizer]
    train: Callable[[Iterable[str], int, Sequence[str]], tokenizer.Tokenizer] | None
    smallest: int  # vocabulary
    help: str


KINDS: dict[str, Kind] = {
    "bytes": Kind(bytelevel.load, None, 259, "UTF-8 bytes; needs no training"),
    "bpe": Kind(
        lambda folder, special: spm.load("bpe", folder),
        functools.partial(spm.train, "bpe", "bpe"),
        _SPECIALS,
        "sentencepiece BPE with byte fallback, lossless",
    ),
    "unigram": Kind(
        lambda folder, special: spm.load("unigram", folder),
        functools.partial(spm.train, "unigram", "unigram"),
        _SPECIALS,
        "sentencepiece unigram with byte fallback, lossless",
    ),
    "sentencepiece": Kind(
        lambda folder, special: spm.load("sentencepiece", folder),
        None,
        1,
        "a sentencepiece .model trained elsewhere",
    ),
    "byte_bpe": Kind(
        functools.partial(hf.load, "byte_bpe"),
        functools.partial(hf.train_bpe, "byte_bpe"),
        _SPECIALS - 1,
        "byte-level BPE as in GPT-2, lossless",
    ),
    "wordpiece": Kind(
        functools.partial(hf.load, "wordpiece"),
        functools.partial(hf.train_wordpiece, "wordpiece"),
        6,
        "WordPiece as in BERT, cased; not lossless",
    ),
    "hf": Kind(functools.partial(hf.load, "hf"), None, 1, "a Hugging Face tokenizer.json"),
    "tiktoken": Kind(ranks.load, None, 257, "a local tiktoken rank file, lossless"),
}


def load(name: str | os.PathLike[str]) -> tokenizer.Tokenizer:
    """The tokenizer of a name or path.

    `bytes`; a directory that `train` or `save` wrote, or one with a tokenizer.json; a
    sentencepiece `.model`; a Hugging Face `.json`; a `.tiktoken` rank file.

    Raises: ValueError or FileNotFoundError naming what was given and what would do; ValueError
    if a directory's files are not those it was saved with; json_file.Damaged for a file that
    its library cannot read.
    """
    name = os.fspath(name)
    if name == "bytes":
        return bytelevel.Bytes()
    try:
        return _load(name)
    except OSError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        if isinstance(error, ValueError) and str(pathlib.Path(name).expanduser()) in str(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise json_file.Damaged(
            f"tokenizer {name!r}: its files cannot be read: {reason}"
        ) from error


def _load(name: str) -> tokenizer.Tokenizer:
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"tokenizer {name!r}: neither 'bytes' nor an existing file or directory; make one "
            "with `jaxlm tokenizer train`"
        )
    by_suffix = {".model": spm.load_file, ".json": hf.load_file, ".tiktoken": ranks.load_file}
    if path.suffix not in by_suffix:
        raise ValueError(
            f"tokenizer {name!r}: unknown kind of file {path.suffix!r}; expected one of "
            f"{sorted(by_suffix)}"
        )
    return by_suffix[path.suffix](str(path))


def _load_folder(path: pathlib.Path) -> tokenizer.Tokenizer:
    meta = path / _META
    if not meta.is_file():
        if (path / "tokenizer.json").is_file():
            return hf.load_file(str(path / "tokenizer.json"))
        raise FileNotFoundError(
            f"tokenizer {str(path)!r}: this directory holds neither {_META} nor tokenizer.json"
        )
    facts = json_file.read_object(meta)
    if missing := {"kind", "special", "hash"} - set(facts):
        raise json_file.Damaged(f"{meta}: no field {min(missing)!r}")
    loaded = KINDS[_known(facts["kind"])].load(str(path), facts["special"])
    if loaded.hash != facts["hash"]:
        raise ValueError(
            f"tokenizer {str(path)!r}: its files were changed since it was saved (hash "
            f"{loaded.hash[:12]}, {_META} says {facts['hash'][:12]}); train it again"
        )
    return loaded


def _known(kind: str) -> str:
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"tokenizer kind {kind!r}: expected one of {list(KINDS)}{hint}")
    return kind


def save(trained: tokenizer.Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer to a new directory, whole or not at all.

    Raises: FileExistsError if the directory exists and is not empty.
    """
    target = pathlib.Path(folder).expanduser()
    _refuse_existing(target)
    with atomic.folder(target) as temporary:
        trained.save(str(temporary))
        facts = {
            "kind": trained.kind,
            "hash": trained.hash,
            "vocab": trained.vocab,
            "special": trained.special,
        }
        (temporary / _META).write_text(json_file.sealed(facts), "utf-8")


def train(
    kind: str,
    texts: Iterable[str],
    vocab: int,
    folder: str | os.PathLike[str],
    extra: Sequence[str] = (),
) -> tokenizer.Tokenizer:
    """A tokenizer of exactly `vocab` ids, trained on the texts and saved to a new directory.

    `extra` names control tokens beyond pad, bos and eos, such as "<|user|>": ids that text never
    yields. The same texts give the same hash.

    Raises: ValueError for an unknown kind, one that is not trained, or a vocabulary that is too
    small for the kind or too large for the texts; FileExistsError as `save`.
    """
    chosen = KINDS[_known(kind)]
    if chosen.train is None:
        trained = [name for name in KINDS if KINDS[name].train is not None]
        raise ValueError(f"tokenizer kind {kind!r} is not trained; expected one of {trained}")
    if vocab < chosen.smallest + len(extra):
        raise ValueError(
            f"vocab={vocab}: a {kind} tokenizer with {len(extra)} extra tokens needs at least "
            f"{chosen.smallest + len(extra)}"
        )
    if len(set(extra)) != len(extra) or "" in extra:
        raise ValueError(f"extra={tuple(extra)}: expected distinct, non-empty tokens")
    _refuse_existing(pathlib.Path(folder).expanduser())
    built = chosen.train(texts, vocab, extra)
    save(built, folder)
    return built


def _refuse_existing(target: pathlib.Path) -> None:
    objects.refuse(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(f"tokenizer directory {str(target)!r} exists; name a new one")
