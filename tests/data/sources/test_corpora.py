"""The built-in corpora: deterministic, distinct, and a chain whose entropy is known."""

import collections
import itertools
import math

import pytest

from jaxlm.data.sources import corpora, source


@pytest.fixture(scope="module")
def markov() -> list[str]:
    return [document.text for document in corpora.markov()]


def test_markov_is_the_same_on_every_machine(markov):
    # Golden: depends on SHAKE-256 and the constants alone.
    assert markov[0].startswith("losde,mhurlotide,hna ro.tiemhnlo.tie,huna o.stide,mhna .i,murlosd")
    assert len(markov) == corpora.MARKOV_DOCUMENTS
    assert sum(map(len, markov)) == 2_047_208


def test_markov_transitions_are_doubly_stochastic():
    successors = corpora.markov_successors()
    size = len(corpora.MARKOV_ALPHABET)
    assert len(set(corpora.MARKOV_ALPHABET)) == size == 16
    for rank in range(len(corpora.MARKOV_WEIGHTS)):
        assert sorted(row[rank] for row in successors) == list(range(size))
    assert all(len(set(row)) == len(row) for row in successors)


def test_markov_entropy_is_the_log_loss_of_the_true_model(markov):
    """Scores every document with the chain's own probabilities, ends included."""
    successors = corpora.markov_successors()
    letters = corpora.MARKOV_ALPHABET
    cost = {
        (letters[i], letters[j]): -math.log2(weight / 16)
        for i, row in enumerate(successors)
        for j, weight in zip(row, corpora.MARKOV_WEIGHTS, strict=True)
    }
    stop = 2.0**-corpora.MARKOV_STOP
    bits = 0.0
    for text in markov:
        pairs = collections.Counter(itertools.pairwise(text))
        bits += 4 + sum(n * cost[pair] for pair, n in pairs.items())
        bits += -math.log2(stop) - (len(text) - 1) * math.log2(1 - stop)
    size = sum(map(len, markov))
    # sd of the mean of 2M steps is 1e-3
    assert bits / size == pytest.approx(corpora.markov_bits_per_byte(), abs=3e-3)
    # ... and the closed form from its parts: H = 1.875 bits a step.
    assert corpora.markov_bits_per_byte() == pytest.approx(1.875 + 0.01117 + 0.00207, abs=1e-4)


def test_markov_letters_are_uniform(markov):
    counts = collections.Counter(itertools.chain.from_iterable(markov))
    size = sum(counts.values())
    assert all(n / size == pytest.approx(1 / 16, rel=0.02) for n in counts.values())


def test_pydocs_prefers_prose_and_drops_copies(monkeypatch):
    """On a few files: parsing the whole library takes seconds."""
    few = [path for path in corpora.stdlib_files() if path.name in ("textwrap.py", "heapq.py")]
    monkeypatch.setattr(corpora, "stdlib_files", lambda: few + few)
    found = list(source.documents("pydocs"))
    texts = [document.text for document in found]
    assert len(texts) == len(set(texts))
    topics = [d for d in found if d.origin.startswith("pydocs:topics/")]
    assert len(topics) > 50
    docstrings = {d.origin: d.text for d in found if not d.origin.startswith("pydocs:topics/")}
    assert "pydocs:textwrap.py:TextWrapper:fill" in docstrings
    assert docstrings["pydocs:heapq.py:heappush"].startswith("Push item onto heap")
    assert all(len(text) >= 40 for text in docstrings.values())
    assert [d.text for d in source.documents("pydocs")] == texts


def test_stdlib_files_are_sources_of_the_library_alone():
    found = corpora.stdlib_files()
    assert len(found) > 300
    names = {"/".join(path.parts) for path in found}
    for excluded in ("/test/", "/idlelib/", "/site-packages/", "/encodings/", "_sysconfigdata"):
        assert not [name for name in names if excluded in name]
    assert any(name.endswith("json/decoder.py") for name in names)


def test_pysrc_and_fingerprints(monkeypatch):
    few = [path for path in corpora.stdlib_files() if path.name in ("textwrap.py", "heapq.py")]
    monkeypatch.setattr(corpora, "stdlib_files", lambda: few)
    found = list(source.documents("pysrc"))
    assert [d.text for d in found] == [path.read_text("utf-8") for path in few]
    both = source.fingerprint("pysrc")
    assert both != source.fingerprint("pydocs") != source.fingerprint("markov")
    monkeypatch.setattr(corpora, "stdlib_files", lambda: few[:1])
    assert source.fingerprint("pysrc") != both
