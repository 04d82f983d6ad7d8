"""The cache of tokenised sources: a run's data as shards, made once and checked before each use."""

import pathlib
import sys

from jaxlm.core import atomic, cache, check
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.sources import source
from jaxlm.data.tokenized import manifest, shards, texts


def _verify(folder: pathlib.Path) -> None:
    """Compare a shards directory with its manifest: all sizes, and the contents of a split that was
    touched after the manifest, the last file to be written. Raises: ValueError naming the first
    file that is missing or not what was written."""
    facts, written = manifest.read(folder), (folder / manifest.FILE).stat().st_mtime_ns
    for name in (name for name in shards.SPLITS if name in facts.splits):
        split, part = shards.open_shards(str(folder), name, facts.tokenizer), facts.splits[name]
        files = [folder / file.file for file in (part.lengths, *part.shards)]
        if any(file.stat().st_mtime_ns > written for file in files):
            split.verify()


def prepare(data: pretraining.Data, cache_dir: str, workers: int = 0) -> str:
    """The shards directory of a run's data: the source itself if it is one, else a cached copy.

    A raw source is tokenised once into `cache_dir`, under a name of its fingerprint, field,
    tokenizer and holdout, and found there by every later run. Several processes may do so at once:
    each works in a directory of its own and the first to finish names it. A copy of which a file
    is damaged or missing is named in a warning and made again.

    Raises: what `tokenize` and `tokenizers.load` raise; ValueError for a mixture, of which `opened`
    prepares every source.
    """
    check.field("data.mix", data.mix, not data.mix, "() for the shards of one source")
    if manifest.present(data.source):
        return str(pathlib.Path(data.source).expanduser())
    tokenizer = tokenizers.load(data.tokenizer)
    fingerprint = source.fingerprint(data.source, data.field)
    key = f"{fingerprint[:16]}-{tokenizer.hash[:16]}-{data.holdout!r}"
    target = pathlib.Path(cache_dir).expanduser() / key
    if target.is_dir():
        try:
            _verify(target)
        except (ValueError, FileNotFoundError) as error:
            fault = str(error).removesuffix(f": {shards.REMEDY}")
            print(f"warning: {fault}; it is a copy, and made again", file=sys.stderr)
            atomic.discard(target)
    if not (target / manifest.FILE).is_file():
        try:
            facts = shards.Facts(data.source, data.field, fingerprint, tokenizer, data.holdout)
            shards.write(facts, target, workers)
        except OSError:
            # Another process was first: its result is this one's, byte for byte.
            if not (target / manifest.FILE).is_file():
                raise
    return str(target)


def opened(data: pretraining.Data, split: source.Split, vocab: int) -> texts.Text:
    """One split of a run's data for a model of `vocab` ids, tokenised first if that was not done
    before.

    Raises: as `prepare` and `shards.open_shards`, naming the part of a mixture.
    """
    tokenizer = tokenizers.load(data.tokenizer)

    def one(own: pretraining.Data) -> shards.Shards:
        folder = prepare(own, str(cache.folder() / "shards"))
        return shards.open_shards(folder, split, tokenizer.hash, vocab)

    if not data.mix:
        return one(data)
    text = {}
    for name, own in pretraining.parts(data).items():
        try:
            text[name] = one(own)
        except ValueError as error:
            raise ValueError(f"data.mix: {name!r}: {error}") from error
    return text
