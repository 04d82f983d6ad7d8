"""The corpora every machine has and nobody downloads: pydocs, pysrc, markov.

Order is deterministic and exact duplicates are dropped (the standard library repeats docstrings:
a document that occurs twice would otherwise count twice, and the longest run of copies would decide
what a small model learns). The text of pydocs and pysrc differs with Python's patch release, so
every manifest records the release and the hash.
"""

import ast
import hashlib
import io
import math
import os
import pathlib
import struct
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Document(NamedTuple):
    """One text and where it came from, such as `pydocs:json/decoder.py:JSONDecoder`.

    id, cluster: of a document in a curated directory (data/curate), its own id and that of its
    near copies' component; None elsewhere.
    """

    text: str
    origin: str
    id: str | None = None
    cluster: str | None = None


class Corpus(NamedTuple):
    """`documents()` yields the corpus in its one order; `fingerprint()` is its content hash."""

    documents: Callable[[], Iterator[Document]]
    fingerprint: Callable[[], str]
    help: str


# Not prose, generated, or other people's packages: excluded wherever they are in a path.
_EXCLUDED = {
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "lib2to3",
    "distutils",
    "ensurepip",
    "encodings",
    "site-packages",
    "dist-packages",
    "__pycache__",
}
_MIN_DOCSTRING = 40  # characters; shorter ones say "Return self." and teach nothing


def stdlib_files() -> list[pathlib.Path]:
    """The standard library's source files, sorted by path.

    Leaves out the folders above, and what the build generated for this one machine
    (`_sysconfigdata*.py`, `config-*/`): it holds local paths.
    """
    root = sysconfig.get_paths()["stdlib"]
    files = []
    for folder, folders, names in os.walk(root):
        top = folder == root
        folders[:] = [  # pruned in place: site-packages alone may hold most of the files
            name
            for name in folders
            if name not in _EXCLUDED and not (top and name.startswith("config-"))
        ]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                files.append(pathlib.Path(folder, name))
    return sorted(files, key=lambda path: path.relative_to(root).parts)


def pydocs() -> Iterator[Document]:
    """Python's reference topics, then the standard library's docstrings of >= 40 characters.

    Docstrings are read from the parsed sources; no module but the topics' own is imported.
    """
    return _distinct(_topics_and_docstrings())


def pysrc() -> Iterator[Document]:
    """The standard library's sources, one file a document."""
    return _distinct(
        Document(_decode_source(path.read_bytes()), f"pysrc:{name}") for path, name in _named()
    )


def _topics_and_docstrings() -> Iterator[Document]:
    from pydoc_data import topics

    for name in sorted(topics.topics):
        yield Document(topics.topics[name], f"pydocs:topics/{name}")
    for path, name in _named():
        yield from _docstrings(ast.parse(path.read_bytes()), f"pydocs:{name}")


def _docstrings(node: ast.AST, origin: str) -> Iterator[Document]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if not isinstance(node, ast.Module):
            origin = f"{origin}:{node.name}"
        text = ast.get_docstring(node)
        if text is not None and len(text) >= _MIN_DOCSTRING:
            yield Document(text, origin)
    for child in ast.iter_child_nodes(node):
        # Only statements hold definitions; walking expressions would cost most of the time.
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _docstrings(child, origin)


def _named() -> Iterator[tuple[pathlib.Path, str]]:
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in stdlib_files():
        yield path, path.relative_to(root).as_posix()


def _decode_source(data: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding)


def _distinct(documents: Iterator[Document]) -> Iterator[Document]:
    seen = set()
    for document in documents:
        digest = hashlib.blake2b(document.text.encode("utf-8", "surrogatepass")).digest()
        if document.text and digest not in seen:
            seen.add(digest)
            yield document


def _stdlib_fingerprint(rule: str) -> str:
    # The files read, not the documents gathered: parsing 8 MB costs seconds, hashing it does not.
    total = hashlib.sha256(rule.encode())
    for path, name in _named():
        data = path.read_bytes()
        total.update(f"{name}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()


# --- A corpus of exactly known entropy -------------------------------------------------------

MARKOV_ALPHABET = "aehinorstdlmu ,."
MARKOV_WEIGHTS = (8, 4, 2, 1, 1)  # sixteenths
MARKOV_SEED = 20260101
MARKOV_STOP = 10  # after every character the document ends with probability 2**-10
MARKOV_DOCUMENTS = 2048


def markov() -> Iterator[Document]:
    """Documents of an order-1 Markov chain, about 2 MB, the same on every machine.

    Every character has five successors with probabilities 8, 4, 2, 1 and 1 sixteenths; successor
    number k of the characters is a permutation for every k, so the stationary distribution is
    exactly uniform, and so is a document's first character. Lengths are geometric, hence
    memoryless: an order-1 model with the right tables reaches `markov_bits_per_byte()` exactly,
    whatever its context. Bits come from SHAKE-256, not from a library's generator.
    """
    table = []  # [states][sum of the weights]: each successor as often as its weight
    for successors in markov_successors():
        row = []
        for successor, weight in zip(successors, MARKOV_WEIGHTS, strict=True):
            row += [successor] * weight
        table.append(row)
    expected = MARKOV_DOCUMENTS * 2**MARKOV_STOP
    bits = hashlib.shake_256(f"markov:{MARKOV_SEED}".encode()).digest(4 * expected)
    # One 16-bit word a character: 4 bits choose it, 10 decide whether the document ends.
    words = iter(struct.unpack(f"<{2 * expected}H", bits))
    for number in range(MARKOV_DOCUMENTS):
        word = next(words)
        state = word & 15
        characters = [state]
        while word >> 4 & (2**MARKOV_STOP - 1):
            word = next(words)
            state = table[state][word & 15]
            characters.append(state)
        text = "".join([MARKOV_ALPHABET[c] for c in characters])
        yield Document(text, f"markov:{number}")


def markov_successors() -> list[list[int]]:
    """The chain: `[state][rank]` is the successor with probability `MARKOV_WEIGHTS[rank] / 16`.

    A seeded order of the states, walked in a circle: successor k of the state at place p is the
    state at place p + k + 1.
    """
    size = len(MARKOV_ALPHABET)
    order = sorted(
        range(size), key=lambda i: hashlib.sha256(f"{MARKOV_SEED}:{i}".encode()).digest()
    )
    successors = [[] for _ in range(size)]  # [states][weights]: those that follow in the order
    for place, state in enumerate(order):
        for k in range(len(MARKOV_WEIGHTS)):
            successors[state].append(order[(place + k + 1) % size])
    return successors


def markov_bits_per_byte() -> float:
    """Bits per byte of the best possible model of `markov`, ends of documents included.

    A document of expected length 1/p costs log2(16) for its first character, H for each of the
    1/p - 1 others, and the binary entropy h(p) for stop-or-go after every one. Per byte:
    p log2(16) + (1 - p) H + h(p), with H = 1.875 bits and p = 2**-10.
    """
    stop = 2.0**-MARKOV_STOP
    total = sum(MARKOV_WEIGHTS)
    step = -sum(w / total * math.log2(w / total) for w in MARKOV_WEIGHTS)
    ends = -stop * math.log2(stop) - (1 - stop) * math.log2(1 - stop)
    return stop * math.log2(len(MARKOV_ALPHABET)) + (1 - stop) * step + ends


def _markov_fingerprint() -> str:
    facts = (MARKOV_ALPHABET, MARKOV_WEIGHTS, MARKOV_SEED, MARKOV_STOP, MARKOV_DOCUMENTS)
    return hashlib.sha256(repr(("markov/1", facts)).encode()).hexdigest()


CORPORA = {
    "pydocs": Corpus(
        pydocs,
        lambda: _stdlib_fingerprint("pydocs/1"),
        "Python's topics and the standard library's docstrings, about 2 MB of English prose",
    ),
    "pysrc": Corpus(
        pysrc,
        lambda: _stdlib_fingerprint("pysrc/1"),
        "the standard library's sources, about 8 MB",
    ),
    "markov": Corpus(
        markov, _markov_fingerprint, "an order-1 Markov chain of exactly known entropy, 2 MB"
    ),
}
