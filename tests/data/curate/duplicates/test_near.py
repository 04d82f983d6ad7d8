"""Near duplicates: the law of the bands, planted faults, and who stays."""

import math
import random

import numpy as np
import pytest

from jaxlm.data.curate import corpus_step
from jaxlm.data.curate.duplicates import lsh, shingles
from jaxlm.data.curate.duplicates.near import Near

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("l", "n", "rt", "sk", "m")]


def drawn(rng, count):
    return [rng.choice(WORDS) + str(rng.randrange(30)) for _ in range(count)]


def corpus(texts, step, source=None, against=(), alive=None, scores=None):
    """The corpus of some texts, in two shards."""

    def documents(texts, source):
        half = len(texts) // 2 if len(texts) > 1 else len(texts)
        parts = [part for part in (texts[:half], texts[half:]) if part]
        measure = step.measure(0)
        ids = [f"{shingles.hash64(t):016x}" for t in texts]
        sizes = np.array([len(t.encode()) for t in texts], np.int64)
        first = np.cumsum([0, *map(len, parts)])
        return corpus_step.Documents(ids, source, sizes, first, [measure(p) for p in parts], ids)

    source = np.zeros(len(texts), np.int32) if source is None else np.array(source, np.int32)
    old = np.zeros(len(against), np.int32)
    living = np.ones(len(texts), bool) if alive is None else np.array(alive)
    return corpus_step.Corpus(
        documents(texts, source), living, documents([*against], old), lambda *_: scores
    )


def removed(texts, step=None, **kwargs):
    """{document: (score, witness's number in the texts)} of those that go."""
    step = step or Near()
    given = corpus(texts, step, **kwargs)
    ids = {name: i for i, name in enumerate(given.documents.ids)}
    ids |= {name: len(texts) + i for i, name in enumerate(given.against.ids)}
    decision = step.decide(given)
    return {i: (r.score, ids[r.witness]) for i, r in decision.removals.items()}


def jaccard(a, b, n=5):
    """By sets of tuples of words, as the definition says."""

    def grams(text):
        words = text.lower().split()
        return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}

    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


@pytest.mark.parametrize("share", [0.5, 0.7, 0.8])
def test_proposals_follow_the_law_of_bands(share):
    """Pairs of known similarity share a band with probability 1 - (1 - s^r)^b."""
    rng, pairs, size = np.random.default_rng(0), 1500, 60
    step = Near(bands=16, rows=8)
    measured = pytest.importorskip("rensa").CMinHash.digests64_from_token_hash_sets
    common = round(2 * size * share / (1 + share))
    exact = common / (2 * size - common)
    sets = []
    for _ in range(pairs):
        pool = rng.integers(0, 2**63, 2 * size - common, dtype=np.uint64)
        sets += [pool[:size], np.concatenate([pool[:common], pool[size:]])]
    digests = np.array(measured(sets, num_perm=step.bands * step.rows, seed=1), np.uint64)
    bands = lsh.bands(digests.astype(np.uint32), step.bands)
    proposed = (bands[0::2] == bands[1::2]).any(axis=1).mean()
    law = 1 - (1 - exact**step.rows) ** step.bands
    assert abs(proposed - law) < 4 * math.sqrt(law * (1 - law) / pairs)


def test_an_index_proposes_exactly_those_that_share_a_band():
    hashes = np.random.default_rng(1).integers(0, 12, (80, 3)).astype(np.uint64)
    index = lsh.Index(hashes)
    for number in range(80):
        wanted = [i for i in range(number) if (hashes[i] == hashes[number]).any()]
        if wanted:
            assert index.earlier(number).tolist() == wanted
        assert (number in index.suspects()) == bool(wanted)


def test_planted_copies_are_found_and_a_template_stays():
    """400 originals with copies of many edit rates, in the shuffled company of 200 documents of
    one template: copies of Jaccard 0.85 and above go, documents of the template do not."""
    rng = random.Random(3)
    originals = [drawn(rng, rng.randrange(60, 260)) for _ in range(400)]
    copies = []
    for words in originals:
        edited, rate = [*words], rng.choice((0.0, 0.005, 0.01, 0.02, 0.05))
        for place in range(len(edited) - 1):
            if rng.random() < rate:
                edited[place] = "edited" + str(rng.randrange(10**6))
        copies.append(" ".join(edited[:-1]))
    frame = drawn(rng, 60)
    template = [" ".join([*frame[:30], *drawn(rng, 12), *frame[30:]]) for _ in range(200)]
    texts = [" ".join(words) for words in originals] + copies + template
    gone = removed(texts)
    assert not [i for i in gone if i >= 800]
    close = [(i, jaccard(texts[i], texts[i + 400])) for i in range(400)]
    wanted = [i for i, s in close if s >= 0.85]
    found = sum(i in gone or i + 400 in gone for i in wanted)
    assert len(wanted) > 200 and found / len(wanted) >= 0.95
    for i, (score, j) in gone.items():
        # the longer of a pair stays, the score is the exact similarity, and nothing else goes
        assert abs(i - j) == 400 and len(texts[i]) <= len(texts[j])
        assert score == pytest.approx(jaccard(texts[i], texts[j]), abs=1e-6) and score >= 0.8


def test_nothing_goes_by_transitivity():
    """a ~ b ~ c with a and c apart: b goes for a, which stays; c is like no document that stays,
    and is of their component all the same."""
    rng = random.Random(0)
    words = ["w" + word for word in drawn(rng, 254)]
    a, b, c = (" ".join(words[low:high]) for low, high in ((0, 220), (20, 238), (40, 252)))
    assert jaccard(a, b) > 0.82 < jaccard(b, c) and jaccard(a, c) < 0.75
    assert len(a) > len(b) > len(c)
    step = Near()
    assert {i: j for i, (_, j) in removed([c, b, a], step).items()} == {1: 2}
    links = step.decide(corpus([c, b, a], step)).links
    assert {frozenset(pair) for pair in links} == {frozenset((1, 2)), frozenset((1, 0))}


def test_order_is_source_then_quality_then_length():
    rng = random.Random(1)
    words = drawn(rng, 100)
    long, short = " ".join(words), " ".join(words[:-2])
    assert [*removed([short, long])] == [0]
    assert [*removed([short, long], source=[0, 1])] == [1]
    quality = Near(quality=("gopher", "score"))
    assert [*removed([short, long], quality, scores=np.array([2.0, 1.0]))] == [1]
    assert [*removed([short, long], quality, scores=np.array([np.nan, 1.0]))] == [0]
    assert not removed([short, long], alive=[True, False])


def test_what_is_kept_elsewhere_stays():
    rng = random.Random(2)
    words = drawn(rng, 100)
    texts = [" ".join(words), " ".join(drawn(rng, 100))]
    gone = removed(texts, against=[" ".join(words[:-2])])
    assert gone == {0: (pytest.approx(94 / 96), 2)}


def test_short_documents_are_compared_by_their_whole_text():
    """Documents with fewer words than a shingle, and those without any: equal sketches of empty
    sets would make copies of all of them."""
    texts = ["One two three", "one, two THREE!", "one two four", "?!", "...", "?!", "9", "10"]
    gone = removed(texts)
    assert {*gone} in ({0, 5}, {0, 3}) and gone[0] == (1.0, 1)


def test_numbers_and_unspaced_scripts_tell_documents_apart():
    assert not removed(["in 1999 we sold 40 of them", "in 2001 we sold 75 of them"])
    text = "这是一个关于机器学习的长句子用来测试没有空格的文字"
    assert removed([text + "好的", text + "好"])


def test_containment_is_of_the_document_that_would_go():
    rng = random.Random(4)
    words = drawn(rng, 130)
    long, short = " ".join(words), " ".join(words[:100])
    assert not removed([long, short])
    ((score, _),) = removed(
        [long, short], Near(measure_by="containment", bands=64, rows=2)
    ).values()
    assert score == 1.0


def test_equal_sets_go_with_their_first():
    """Documents with one set of shingles are judged once, and share a witness."""
    rng = random.Random(5)
    words = drawn(rng, 80)
    base, near = " ".join(words), " ".join(words[:-1])
    assert removed([base, near, near.upper()]) == {
        1: (pytest.approx(75 / 76), 0), 2: (pytest.approx(75 / 76), 0)
    }  # fmt: skip


def test_shingles_are_those_of_the_definition():
    rng = random.Random(6)
    known = shingles.WordHashes()
    for count in (1, 3, 4, 5, 6, 40):
        words = [rng.choice("ab") for _ in range(count)]
        flat, offsets = shingles.shingles([" ".join(words)], 5, known)
        grams = {tuple(words[i : i + 5]) for i in range(max(1, count - 4))}
        assert len(flat) == len(grams) == offsets[1]
    assert shingles.words("Don't PANIC: 3.5 été 机器 ok_1") == [
        "don", "t", "panic", "3", "5", "été", "机", "器", "ok_1"
    ]  # fmt: skip
    assert [*Near(threshold=0, words=0, measure_by="cosine").problems()] == [  # ty: ignore
        "near.threshold: 0 given; it must be in (0, 1]",
        "near.words: 0 given; it must be at least 1",
        "near.measure_by: 'cosine' given; it must be one of ['jaccard', 'containment']",
    ]
