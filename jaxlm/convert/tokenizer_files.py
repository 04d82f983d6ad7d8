"""Files stored along with the weights: tokenizer and generation settings, both ways."""

import json
import os
import pathlib
import shutil
from typing import Any

from jaxlm.convert import tensor_files
from jaxlm.core import json_file
from jaxlm.data import tokenizers
from jaxlm.data.tokenizers import tokenizer as interface

# Files that a tokenizer may consist of. All are kept as they are.
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
GENERATION = "generation_config.json"
# Text that tokenizers are compared by: words, case, spaces, digits, marks, letters beyond ASCII.
PROBE = 'The quick brown foxes\' 1,234.5 kg:\n\n  f(x_1) = "naïve" -> Übung; Привет, 你好'
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def named(folder: str | os.PathLike[str]) -> str | None:
    """The part of a folder that `tokenizers.load` takes: "" for the folder itself (a
    tokenizer.json), the name of a sentencepiece model, or None where there is no tokenizer.

    Raises: ValueError for a tokenizer in files of another kind.
    """
    folder = pathlib.Path(folder)
    if (folder / "tokenizer.json").is_file():
        return ""
    for name in MODELS:
        if (folder / name).is_file():
            return name
    others = [
        name for name in ("vocab.json", "vocab.txt", "merges.txt") if (folder / name).exists()
    ]
    if others:
        raise ValueError(
            f"{folder}: its tokenizer is in {others}; a tokenizer.json or a sentencepiece model is "
            "needed (transformers: AutoTokenizer.from_pretrained(...).save_pretrained), or name "
            "another tokenizer"
        )
    return None


def bring(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> str | None:
    """Copies a checkpoint's tokenizer to a new directory; returns the part that `tokenizers.load`
    takes, as `named` does."""
    name = named(folder)
    if name is None:
        return None
    pathlib.Path(target).mkdir()
    for file in FILES:
        if pathlib.Path(folder, file).is_file():
            shutil.copyfile(tensor_files.inside(folder, file), pathlib.Path(target, file))
    return name


def warnings(folder: str | os.PathLike[str], name: str | None, vocab: int) -> list[str]:
    """Warnings about the tokenizer that a checkpoint is imported with: `name`, as `tokenizers.load`
    takes it, or the checkpoint's own.

    Raises: ValueError for one that cannot be read, and for a model that lacks the ends of texts.
    """
    folder = pathlib.Path(folder)
    own = named(folder) if name is None else None
    if name is None and own is None:
        return [
            f"{folder} has no tokenizer: `bytes` is used in its place, whose ids mean other things "
            "to the model; name its own with --tokenizer"
        ]
    path = str(folder / (own or "")) if name is None else name
    try:
        tokenizer = tokenizers.load(path)
        texts = interface.mismatch(tokenizer, vocab)
    except ValueError as error:
        raise ValueError(f"tokenizer {path!r}: {error}") from error
    return texts if name is None else [*texts, *_other(folder, path, tokenizer)]


def _other(folder: pathlib.Path, name: str, given: interface.Tokenizer) -> list[str]:
    """A warning where a tokenizer gives a text other ids than the checkpoint's own does, if it has
    one that can be read."""
    try:
        own = named(folder)
        right = None if own is None else tokenizers.load(str(folder / own)).encode(PROBE)
    except (ValueError, OSError, ImportError):
        return []  # another one is given because this one cannot be read
    ids = given.encode(PROBE)
    if right is None or ids == right:
        return []
    return [
        f"tokenizer {name!r}: {PROBE[:15]!r}... has ids {ids[:4]}... by it and {right[:4]}... by "
        f"{folder}'s own, on whose ids the weights were trained; leave --tokenizer out to use that"
    ]


def generation(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The generation settings of a checkpoint: generation_config.json, and the special ids that
    only its config.json has."""
    record = _read(pathlib.Path(folder, GENERATION))
    config = _read(pathlib.Path(folder, "config.json"))
    ids = {name: config[name] for name in IDS if config.get(name) is not None}
    return ids | record


def special(name: str) -> dict[str, Any]:
    """The special ids of a tokenizer, as generation settings."""
    ids = tokenizers.load(name).special
    return {f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if role in ids}


def give(name: str, folder: str | os.PathLike[str]) -> str:
    """Writes a run's tokenizer for transformers into a folder; returns a list of the files as text.

    Raises: ValueError for `bytes` and tiktoken files, which transformers has no file for.
    """
    folder = pathlib.Path(folder)
    path = pathlib.Path(name).expanduser()
    source = path if path.is_dir() else path.parent
    tokenizer = tokenizers.load(name)
    kept = [file for file in FILES if path.is_dir() and (path / file).is_file()]
    if kept or (path.is_file() and path.name in FILES):
        written = [file for file in FILES if (source / file).is_file()]
        for file in written:
            shutil.copyfile(source / file, folder / file)
        if (source / "tokenizer_config.json").is_file():
            return ", ".join(written)
    elif (path / "sentencepiece.model").is_file():
        shutil.copyfile(path / "sentencepiece.model", folder / "tokenizer.model")
        written = ["tokenizer.model"]
    elif path.suffix in (".model", ".json"):
        written = ["tokenizer.model" if path.suffix == ".model" else "tokenizer.json"]
        shutil.copyfile(path, folder / written[0])
    else:
        raise ValueError(
            f"data.tokenizer: {name!r} has no form that transformers reads; byte_bpe, wordpiece, "
            "hf and sentencepiece tokenizers have one. Export without it: --no-tokenizer"
        )
    _describe(tokenizer, folder)
    return ", ".join([*written, "tokenizer_config.json"])


def _describe(tokenizer: tokenizers.tokenizer.Tokenizer, folder: pathlib.Path) -> None:
    """Write tokenizer_config.json: which of transformers' classes, and the special tokens."""
    record: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    if (folder / "tokenizer.json").is_file():
        rules = json_file.read_object(folder / "tokenizer.json")
        spelled = {t["id"]: t["content"] for t in rules["added_tokens"]}
        record["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        spelled = {i: model.id_to_piece(i) for i in tokenizer.special.values()}
        record["tokenizer_class"] = "LlamaTokenizer"
        first = model.id_to_piece(tokenizer.encode("a")[0])
        prefix = first.startswith("\u2581")  # whether a text begins with a space of its own
        record |= {"add_bos_token": False, "legacy": False, "add_prefix_space": prefix}
    for role in ("bos", "eos", "pad", "unk"):
        if tokenizer.special.get(role) in spelled:
            record[f"{role}_token"] = spelled[tokenizer.special[role]]
    (folder / "tokenizer_config.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _read(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return json_file.read_object(tensor_files.inside(path.parent, path.name))
