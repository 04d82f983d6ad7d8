"""What simple models and compressors make of the same held-out bytes, in bits per byte.

Documents are joined with a zero byte, the compressors' price for the end of a document, as eos is
the model's. The denominator is the documents' own bytes, as for the model.
"""

import bz2
import lzma
import math
from collections import Counter
from collections.abc import Iterable
from concurrent import futures
from typing import NamedTuple

_BZ2_BLOCK = 900_000  # what bzip2 -9 sorts at once
_BZ2_PIECE = 225_000  # a quarter of it held-out bytes, the rest training bytes
_LARGEST_DICTIONARY = 256 << 20


class Baselines(NamedTuple):
    """Bits per held-out byte. Primed: the compressor has read the training bytes first."""

    order0: float
    xz: float
    xz_primed: float
    bz2: float
    bz2_primed: float


def measure(train: Iterable[bytes], val: Iterable[bytes]) -> Baselines:
    """The baselines for held-out documents, given the training documents (`Shards.contents`).

    order0: the entropy of the held-out bytes' own frequencies, documents' ends left out.
    xz: `xz -9e`. Primed: size(train + val) - size(train), with a dictionary that holds both, up
    to 256 MiB; of more training text the end is used.
    bz2: `bzip2 -9`. It forgets at every block of 900 kB, so priming is partial: the held-out bytes
    in pieces of 225 kB, each after the last 675 kB of training, size(tail + piece) - size(tail).

    A compressor also learns from one held-out document for the next; the model does not.

    Raises: ValueError without held-out text.
    """
    texts = list(val)
    size = sum(map(len, texts))
    if not size:
        raise ValueError("no held-out text to measure: set data.holdout above 0")
    held = b"".join(text + b"\0" for text in texts)
    seen = b"".join(text + b"\0" for text in train)
    with futures.ThreadPoolExecutor() as pool:  # both libraries let go of the interpreter lock
        primed = [pool.submit(f, seen, held) for f in (_primed_xz, _primed_bz2)]
        alone = [pool.submit(f, held) for f in (_xz, _bz2)]
        xz_primed, bz2_primed = (8 * job.result() / size for job in primed)
        xz, bzip = (8 * job.result() / size for job in alone)
    return Baselines(order0(b"".join(texts)), xz, xz_primed, bzip, bz2_primed)


def order0(data: bytes) -> float:
    """The entropy in bits per byte of the data's own byte frequencies."""
    return -sum(n / len(data) * math.log2(n / len(data)) for n in Counter(data).values())


def _xz(data: bytes) -> int:
    dictionary = min(max(64 << 20, 1 << len(data).bit_length()), _LARGEST_DICTIONARY)
    chain = [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": dictionary,
        }
    ]
    return len(lzma.compress(data, filters=chain))


def _bz2(data: bytes) -> int:
    return len(bz2.compress(data, 9))


def _primed_xz(seen: bytes, held: bytes) -> int:
    room = max(_LARGEST_DICTIONARY - len(held), 0)
    seen = seen[max(len(seen) - room, 0) :]
    return _xz(seen + held) - _xz(seen)


def _primed_bz2(seen: bytes, held: bytes) -> int:
    tail = seen[-(_BZ2_BLOCK - _BZ2_PIECE) :]
    pieces = [held[i : i + _BZ2_PIECE] for i in range(0, len(held), _BZ2_PIECE)]
    return sum(_bz2(tail + piece) for piece in pieces) - len(pieces) * _bz2(tail)
