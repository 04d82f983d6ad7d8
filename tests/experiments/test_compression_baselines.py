"""The baselines against known entropies and the command-line compressors."""

import bz2
import lzma
import random

import pytest

from experiments import compression_baselines
from jaxlm.data.sources import corpora


def test_order0_of_known_frequencies():
    assert compression_baselines.order0(bytes(range(256)) * 3) == pytest.approx(8)
    assert compression_baselines.order0(b"aabbccdd") == pytest.approx(2)
    assert compression_baselines.order0(b"aaaabbcd") == pytest.approx(1.75)


def test_incompressible_text_costs_its_entropy():
    letters = "0123456789abcdef"
    rng = random.Random(0)
    texts = ["".join(rng.choices(letters, k=20_000)).encode() for _ in range(4)]
    found = compression_baselines.measure(texts[:2], texts[2:])
    for value in found:
        assert 3.95 < value < 4.9  # 4 bits a byte, and what each format adds


def test_priming_finds_what_was_seen_before():
    """A held-out text that the training text contains costs next to nothing."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefghijklmnop", k=30_000)).encode() for _ in range(4)]
    found = compression_baselines.measure(texts, [texts[1]])
    assert found.xz_primed < 0.05 < 4 < found.xz
    # Sorting by context puts copies side by side, but bzip2 cannot say "go on copying".
    assert found.bz2_primed < 0.8 * found.bz2


def test_unprimed_figures_are_the_tools_own():
    texts = [document.text.encode() for document in list(corpora.markov())[:60]]
    found = compression_baselines.measure(texts[:40], texts[40:])
    held = b"".join(text + b"\0" for text in texts[40:])
    size = len(held) - 20
    assert found.bz2 == pytest.approx(8 * len(bz2.compress(held, 9)) / size)
    xz = 8 * len(lzma.compress(held, preset=9 | lzma.PRESET_EXTREME)) / size
    assert found.xz == pytest.approx(xz, rel=1e-3)
    # No compressor beats the chain's entropy.
    assert min(found) > corpora.markov_bits_per_byte() - 0.02


def test_nothing_held_out_is_named():
    with pytest.raises(ValueError, match="no held-out text"):
        compression_baselines.measure([b"a"], [])
