"""Locality-sensitive hashing of MinHash signatures: pairs that may be alike, by bands.

Two sets of Jaccard similarity s agree in a slot of their signatures with probability s, and in all
r slots of at least one of b bands with 1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman, Mining of
Massive Datasets, section 3.4).
"""

import numpy as np

_MULTIPLY = 0x9E3779B97F4A7C15


def bands(signatures: np.ndarray, count: int) -> np.ndarray:
    """uint64[documents, count] hashes of the bands of signatures, uint32[documents, slots]."""
    parts = signatures.reshape(len(signatures), count, -1)  # [documents, bands, rows]
    hashes = np.zeros(parts.shape[:2], np.uint64)
    for slot in range(parts.shape[2]):
        hashes = (hashes ^ parts[:, :, slot]) * np.uint64(_MULTIPLY)
        hashes ^= hashes >> np.uint64(32)
    return hashes


class Index:
    """Documents in order, and of each the earlier ones that share a band with it."""

    def __init__(self, hashes: np.ndarray):
        """hashes: uint64[documents, bands]."""
        documents, count = hashes.shape
        self._orders = np.empty((count, documents), np.int32)
        self._starts = np.empty((count, documents), np.int32)
        self._places = np.empty((count, documents), np.int32)
        counted = np.arange(documents, dtype=np.int32)
        for band in range(count):
            values = hashes[:, band]
            order = np.argsort(values, kind="stable")  # equal bands keep the documents' order
            new = np.ones(documents, bool)
            new[1:] = values[order][1:] != values[order][:-1]
            self._orders[band] = order
            self._places[band][order] = counted
            self._starts[band][order] = np.maximum.accumulate(np.where(new, counted, 0))

    def suspects(self) -> np.ndarray:
        """The documents that share a band with an earlier one."""
        return np.flatnonzero((self._places > self._starts).any(axis=0))

    def earlier(self, number: int) -> np.ndarray:
        """The earlier documents that share a band with a document, ascending."""
        places, starts = self._places[:, number], self._starts[:, number]
        shared = np.flatnonzero(places > starts)
        return np.unique(
            np.concatenate([self._orders[b, starts[b] : places[b]] for b in shared.tolist()])
        )
