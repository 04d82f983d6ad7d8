"""Perplexity of documents by a trained run, as a step of curation: junk is too unlikely, and what
repeats itself too likely.
"""

import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxlm.core import check, io
from jaxlm.core.remote import staging
from jaxlm.data import pretraining
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.eval import log_likelihoods
from jaxlm.train import trained_weights
from jaxlm.train.run import checkpoint, directory, integrity
from jaxlm.train.run import run as runs


@dataclass(frozen=True)
class Perplexity:
    """Removes documents by their bits per byte under a model (Wenzek et al. 2020, CCNet, section 4;
    both tails: Marion et al. 2023)."""

    run: str
    """The run directory of a decoder trained on text, such as runs/first: its last checkpoint."""
    least: float = 0.0
    """Bits per byte below which a document goes: text that repeats itself."""
    most: float = math.inf
    """Bits per byte above which a document goes: text that the model finds too unlikely."""
    name: str = "perplexity"
    """The step's name in reports."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"least", "most"})

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits; of the
        run, that it is there, has a checkpoint, and read text from left to right."""
        where = self.name
        yield from check.problem(f"{where}.run", self.run, bool(self.run), "a run directory")
        ok = 0 <= self.least < math.inf
        yield from check.problem(f"{where}.least", self.least, ok, "at least 0, in bits per byte")
        fits = f"above {where}.least={self.least}"
        yield from check.problem(f"{where}.most", self.most, self.most > self.least, fits)
        if self.run and (yield from check.loaded(f"{where}.run", self.versions)) is not None:
            data = directory.load(staging.local(self.run)).data
            ok = isinstance(data, pretraining.Data) and data.corrupt is None
            fits = "a run that was trained to predict the next token of text"
            yield from check.problem(f"{where}.run", self.run, ok, fits)

    def versions(self) -> Mapping[str, str]:
        """The weights: the run's digest, and the SHA-256 of its last checkpoint's manifest.

        Raises: FileNotFoundError without a run or a checkpoint.
        """
        folder = staging.local(self.run)
        run, place = directory.load(folder), folder / "checkpoints"
        steps = checkpoint.steps(place)
        if not steps:
            raise FileNotFoundError(f"{self.run} has no checkpoint")
        return {
            "run": runs.digest(run),
            "weights": io.sha256(place / str(max(steps)) / integrity.FILE),
            "jax": importlib.metadata.version("jax"),
        }

    def scorer(self) -> Scorer:
        """Bits per UTF-8 byte of each text, its end paid for, in windows of the model's length,
        each with as much before it as fits."""
        saved = trained_weights.load(self.run)
        tokenizer = saved.tokenizer
        compiled = log_likelihoods.scorer(saved.model, saved.plan)
        begin, seq = interface.begin(tokenizer), saved.length

        def score(texts: Sequence[str]) -> list[Scored]:
            ends = [[*tokenizer.encode(text), tokenizer.special["eos"]] for text in texts]
            requests = [list(log_likelihoods.windows(ids, begin, seq)) for ids in ends]
            flat = [request for windows in requests for request in windows]
            scores = iter(
                log_likelihoods.score(compiled, saved.params, flat, seq=seq, plan=saved.plan)
            )
            out = []
            for text, windows in zip(texts, requests, strict=True):
                nats = -sum(next(scores).log_prob for _ in windows)
                size = len(text.encode("utf-8", "surrogateescape"))
                out.append(Scored({"bits_per_byte": nats / math.log(2) / max(size, 1)}))
            return out

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The tail that a document is in."""
        value = scores["bits_per_byte"]
        assert isinstance(value, float)
        if value < self.least:
            return Removal("too likely", value, self.least)
        return Removal("too unlikely", value, self.most) if value > self.most else None
