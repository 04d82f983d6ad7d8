"""`jaxlm tokenizer train` and `jaxlm data tokenize`: the preparation of text before a run."""

from collections.abc import Sequence

import tyro

from jaxlm.cli import arguments
from jaxlm.data import tokenizers
from jaxlm.data.sources import source as sources
from jaxlm.data.tokenized import shards


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
    """jaxlm data tokenize --tokenizer DIR --out DIR"""

    def command(
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
        tokenized = shards.tokenize(
            source, field, tokenizers.load(tokenizer), out, holdout, workers
        )
        for name, split in tokenized.splits.items():
            counts = (
                f"{split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"
            )
            print(f"{out}/{name}: {counts}")
        return 0

    return tyro.cli(
        command, args=arguments.action("data", "tokenize", args), prog="jaxlm data tokenize"
    )
