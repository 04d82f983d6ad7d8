"""`jaxlm tokenizer train` and `jaxlm data`: the preparation of text before a run."""

import json
import pathlib
from collections.abc import Sequence

import tyro

from jaxlm.cli import arguments
from jaxlm.core import check, config, io, json_file
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.curate import curation, decontaminate
from jaxlm.data.curate import recipe as recipes  # a parameter bears the name
from jaxlm.data.curate.report import explanation, removal_table, report_page
from jaxlm.data.sources import source as sources
from jaxlm.data.tokenized import shards, texts
from jaxlm.eval import exposure

_SHOWN = 20  # items that are printed


def tokenizer(args: Sequence[str]) -> int:
    """jaxlm tokenizer train --kind KIND --vocab N --out DIR"""

    def command(
        kind: str,
        vocab: int,
        out: str,
        source: str = "pydocs",
        field: str = "text",
        holdout: float = 0.05,
        extra: tuple[str, ...] = (),
    ) -> int:
        """Train a tokenizer on the training split of a source.

        Args:
            kind: bpe, unigram (sentencepiece), byte_bpe (as GPT-2) or wordpiece (as BERT).
            vocab: Ids, special ones included.
            out: A new directory; a config names it as data.tokenizer.
            source: A corpus, file, directory or glob, as data.source of a config.
            field: The field of .jsonl or column of .parquet that holds the text.
            holdout: The fraction of documents left out, as data.holdout of a config.
            extra: Control tokens beyond pad, bos and eos, such as "<|user|>".
        """
        texts = sources.texts(source, field, "train", holdout)
        trained = tokenizers.train(kind, texts, vocab, out, extra)
        print(f"{out}: {kind}, {trained.vocab:,} ids, hash {trained.hash[:12]}")
        return 0

    return tyro.cli(
        command, args=arguments.action("tokenizer", "train", args), prog="jaxlm tokenizer train"
    )


def data(args: Sequence[str]) -> int:
    """jaxlm data tokenize|curate|why|report|seen ..."""
    actions = {"tokenize": _tokenize, "curate": _curate, "why": _why, "report": _report}
    actions["seen"] = _seen
    return tyro.extras.subcommand_cli_from_dict(actions, args=list(args), prog="jaxlm data")


def _tokenize(
    tokenizer: str,
    out: str,
    source: str = "pydocs",
    field: str = "text",
    holdout: float = 0.05,
    workers: int = 0,
) -> int:
    """Tokenise a source into shards that training reads without touching the text again.

    Args:
        tokenizer: `bytes`, or the path of a tokenizer.
        out: A new directory; a config names it as data.source.
        source: A corpus, file, directory or glob.
        field: The field of .jsonl or column of .parquet that holds the text.
        holdout: The fraction of documents held out for validation.
        workers: Processes that encode; 0 encodes in this one. The shards are the same.
    """
    tokenized = shards.tokenize(source, field, tokenizers.load(tokenizer), out, holdout, workers)
    for name, split in tokenized.splits.items():
        counts = f"{split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"
        print(f"{out}/{name}: {counts}")
    return 0


def _curate(
    recipe: tyro.conf.Positional[str], out: str, workers: int = 1, work: str | None = None
) -> int:
    """Clean text by a recipe, with a reason for each document that is removed.

    Args:
        recipe: A Python file with config(), which returns a Recipe; or FILE.py:FUNCTION.
        out: The directory to make, which a config names as data.source.
        workers: Processes that score; the result is the same.
        work: Folder of scores and intermediate texts, which later recipes read again; OUT.work if
            it is not given.
    """
    given = config.load(recipe)
    if not isinstance(given, recipes.Recipe):
        name = type(given).__name__
        raise ValueError(f"{recipe} returns a {name}; `jaxlm data curate` needs a Recipe")
    curation.curate(given, out, work, workers, recipe, print)
    folder = pathlib.Path(out)
    print("\n".join(removal_table.lines(removal_table.summary(folder, 1))))
    print(f"\nwhy a document went: jaxlm data why {out} ID")
    return 0


def _why(folder: tyro.conf.Positional[pathlib.Path], id: tyro.conf.Positional[str]) -> int:
    """The step, rule, score and threshold that decided about a document.

    Args:
        folder: A directory that `jaxlm data curate` made.
        id: The document's id, or its beginning.
    """
    for verdict in explanation.verdicts(folder, id):
        print("\n".join(explanation.lines(verdict)))
    return 0


def _report(
    folder: tyro.conf.Positional[pathlib.Path], html: pathlib.Path | None = None, samples: int = 3
) -> int:
    """A table of removals by source and step, with samples.

    Args:
        folder: A directory that `jaxlm data curate` made.
        html: A file to write the report to as a page, with histograms of the scores.
        samples: Samples of what each step removed.
    """
    print("\n".join(removal_table.lines(removal_table.summary(folder, samples))))
    if html is not None:
        report_page.write(folder, html, samples)
        print(f"\n{html}")
    return 0


def _seen(
    run: tyro.conf.Positional[pathlib.Path],
    tasks: tuple[str, ...],
    threshold: float = 0.5,
    out: pathlib.Path | None = None,
) -> int:
    """Items of evaluation tasks that a run had seen, and the steps at which it saw them.

    Args:
        run: A run directory; its texts are those of the run's own data up to its last checkpoint.
        tasks: Files of tasks, as the step Decontaminate reads them.
        threshold: Share of an item's rare n-grams from which on a text holds it.
        out: A file for one JSON object an item, with all its steps.
    """
    # training needs jax, which no other action does
    from jaxlm.train import inputs
    from jaxlm.train.run import checkpoint, directory

    trained, saved = directory.load(run), checkpoint.steps(run / "checkpoints")
    if not isinstance(trained.data, pretraining.Data):
        kind = type(trained.data).__name__
        raise ValueError(f"{run} reads {kind}; `jaxlm data seen` is of runs on text (Data)")
    result = directory.ended(run)
    steps = max([0 if result is None else result.step, *saved])
    split, _ = inputs.open_text(trained.data, False, trained.model.vocab)
    read = json_file.read_object(run / "env.json")["corpus"]
    now, was = texts.corpus(split)["fingerprint"], read["fingerprint"]
    fits = f"{was[:12]}, as when {run} read it: what it read then is not known from what is there"
    check.field("data.source: fingerprint", now[:12], now == was, fits)
    given = decontaminate.Decontaminate(tasks=tasks, threshold=threshold)
    tokenizer = directory.tokenizer(run, trained)
    seen = exposure.exposures(trained.data, split, tokenizer, given, steps)
    for item in seen[:_SHOWN]:
        last = f" .. {item.steps[-1]}" if len(item.steps) > 1 else ""
        print(
            f"{item.item}: {len(item.steps)} steps, {item.steps[0]}{last}; share {item.share:.2f}"
        )
    if out is not None:
        lines = [json.dumps(item._asdict()) + "\n" for item in seen]
        io.write(out, "".join(lines))
    print(f"{len(seen):,} items seen in {steps:,} steps")
    return 0
