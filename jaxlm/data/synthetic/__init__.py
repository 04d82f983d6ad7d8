"""Sources of known entropy: what no model can beat, by computation and not by belief.

    known:tree?alphabet=64&depth=2&seed=1     a kind, and the fields of its config that differ

Every document has `length` symbols, each one byte; so with the bytes tokenizer and rows of
length + 1 (`Data(seq=128)` for the default 127) a row is one document, whole, whose last target is
the end of the document. That one is certain, since the length is fixed, so the best possible loss
is the entropy of the document over length + 1 tokens: `entropy(source).nats_per_token`.

machine   sources with a state that the text determines: exact
tree      chains of fixed order, context trees of variable order
hidden    hidden Markov chains: bounds from both sides; automata
learner   the loss of an ideal learner of a machine, in closed form
"""

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import config
from jaxlm.data.synthetic import hidden, machine, tree

PREFIX = "known:"
Config = hidden.Hidden | tree.Markov | tree.Tree | hidden.Unifilar
Built = machine.Machine | hidden.Chain
KINDS: dict[str, Any] = {
    "markov": tree.Markov,
    "tree": tree.Tree,
    "unifilar": hidden.Unifilar,
    "hidden": hidden.Hidden,
}
# One byte each, none of them white space: no reader strips or translates one.
SYMBOLS = (
    "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\"
    "]^_`abcdefghijklmnopqrstuvwxyz{|}~"
)
_BOUNDS = {
    "alphabet": (2, len(SYMBOLS)),
    "order": (1, 8),
    "depth": (1, 8),
    "fan": (1, len(SYMBOLS)),
    "states": (2, 256),
    "stay": (0, 16),
    "zipf": (0.0, 8.0),
    "change": (0, 1 << 16),
    "seed": (0, (1 << 32) - 1),
    "length": (1, 1 << 20),
    "documents": (2, 1 << 32),
}


class Entropy(NamedTuple):
    """Nats. Of a document's tokens [text, eos], the begin token being given.

    nats_per_token: of the best possible model. error: by how much it may be off: a bound, 0 where
    the value is exact but for rounding. nats: of a whole document, of `tokens` tokens.
    """

    nats_per_token: float
    error: float
    nats: float
    tokens: int


def named(source: str) -> bool:
    """Whether a source's name is one of ours."""
    return source.startswith(PREFIX)


def parse(source: str) -> Config:
    """The config of a source's name. Raises: ValueError naming the kind or field that is wrong."""
    kind, _, given = source.removeprefix(PREFIX).partition("?")
    if kind not in KINDS:
        raise ValueError(f"source {source!r}: no kind {kind!r}{_near(kind, KINDS)}")
    names = [f.name for f in dataclasses.fields(KINDS[kind])]
    values: dict[str, Any] = {}
    for part in given.split("&") if given else ():
        name, equals, text = part.partition("=")
        if not equals or name not in names:
            raise ValueError(f"source {source!r}: {part!r} sets no field{_near(name, names)}")
        if name in values:
            raise ValueError(f"source {source!r}: {name} is given twice")
        kind_of = float if name == "zipf" else int
        try:
            values[name] = kind_of(text)
        except ValueError:
            raise ValueError(
                f"source {source!r}: {name}={text!r}; {kind_of.__name__} is needed"
            ) from None
    cfg = KINDS[kind](**values)
    _validate(cfg, source)
    return cfg


def _validate(cfg: Config, source: str) -> None:
    for field in dataclasses.fields(cfg):
        low, high = _BOUNDS[field.name]
        value = getattr(cfg, field.name)
        if not low <= value <= high:
            raise ValueError(f"source {source!r}: {field.name}={value}; {low} .. {high} is needed")
    if isinstance(cfg, tree.Tree) and cfg.fan > cfg.alphabet:
        raise ValueError(
            f"source {source!r}: fan={cfg.fan}; at most alphabet={cfg.alphabet} symbols extend a "
            "context"
        )
    if isinstance(cfg, hidden.Hidden) and not 3 <= cfg.states <= 32:
        raise ValueError(f"source {source!r}: states={cfg.states}; 3 .. 32 is needed")


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {sorted(names)}"


def build(cfg: Config) -> Built:
    """The source itself: a machine, or a hidden chain. Raises: ValueError for one too large."""
    if isinstance(cfg, hidden.Hidden):
        return hidden.chain(cfg)
    if isinstance(cfg, tree.Markov):
        return tree.markov(cfg)
    return tree.tree(cfg) if isinstance(cfg, tree.Tree) else hidden.unifilar(cfg)


def entropy(source: str) -> Entropy:
    """The entropy of a source by name. Exact for `markov`, `tree` and `unifilar`; for `hidden` the
    middle of two bounds, and half their distance as its error.

    It is the best loss in rows that hold whole documents (seq a multiple of length + 1); what is
    cut elsewhere begins without its context and costs more.

    Raises: ValueError as `parse` and `build`.
    """
    cfg = parse(source)
    built, error = build(cfg), 0.0
    if isinstance(built, hidden.Chain):
        nats, error = hidden.document_entropy(built, cfg.length)
    else:
        nats = machine.document_entropy(built, cfg.length)
    tokens = cfg.length + 1
    return Entropy(nats / tokens, error / tokens, nats, tokens)


def texts(source: str) -> Iterator[str]:
    """The documents' texts, in order, the same on every machine; how many there are does not change
    those before. Raises: ValueError as `parse` and `build`, now and not at the first text."""
    cfg = parse(source)
    return _texts(cfg, build(cfg))


def _texts(cfg: Config, built: Built) -> Iterator[str]:
    letters = np.frombuffer(SYMBOLS.encode(), np.uint8)
    label = _label(cfg)
    done = 0
    for block in range(cfg.documents):  # no more blocks than documents
        if isinstance(built, hidden.Chain):
            symbols = hidden.sample(built, label, block, cfg.length)
        else:
            symbols = machine.sample(built, label, block, cfg.length)
        for row in letters[symbols][: cfg.documents - done]:
            yield row.tobytes().decode("ascii")
        done += len(symbols)
        if done >= cfg.documents:
            return


def _label(cfg: Config) -> str:
    """The identity of the documents: every field but their number."""
    facts = dataclasses.asdict(cfg)
    del facts["documents"]
    return f"known/1/{type(cfg).__name__}/{sorted(facts.items())}"


def score(source: str, texts: Iterable[str]) -> np.ndarray:
    """[n] nats of each text under the source itself, what its ideal predictor loses on it.

    Their mean over held-out documents is what a model is to be compared with there: it has the same
    luck. Over length + 1 it is in nats per token.

    Raises: ValueError for a text that is no document of the source.
    """
    cfg = parse(source)
    built = build(cfg)
    rows = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    for number, row in enumerate(rows):
        if len(row) != cfg.length or row.min() < 33 or row.max() >= 33 + cfg.alphabet:
            raise ValueError(
                f"text {number}: {len(row)} bytes {row.tobytes()[:20]!r}; a document of {source!r} "
                f"has {cfg.length} symbols of {SYMBOLS[: cfg.alphabet]!r}"
            )
    symbols = np.stack(rows).astype(np.int64) - 33
    if isinstance(built, hidden.Chain):
        return hidden.score(built, symbols)
    return machine.score(built, symbols)


def fingerprint(source: str) -> str:
    """A sha256 of everything that decides the documents."""
    cfg = parse(source)
    return hashlib.sha256(f"{_label(cfg)}/{cfg.documents}".encode()).hexdigest()


def listing() -> Iterator[tuple[str, str]]:
    """(name, what it is) of every kind, with its fields and the entropy of its defaults."""
    for kind, cls in KINDS.items():
        name = PREFIX + kind
        fields = ", ".join(f"{k}={v}" for k, v in config.to_dict(cls()).items())
        exact = entropy(name)
        within = f" +- {exact.error:.1g}" if exact.error else ""
        bits = exact.nats_per_token / math.log(2)
        yield name, f"entropy {bits:.4f}{within} bits a token; fields {fields}"
