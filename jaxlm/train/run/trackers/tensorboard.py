"""TensorBoard event files, written as bytes.

The libraries that write them import torch or TensorFlow where these are installed (seconds), and
hand records to a thread that a full disk kills silently. The format is small: a file is a sequence
of framed protocol buffers.

    frame    uint64 length, masked CRC-32C of it, the message, masked CRC-32C of it (little-endian)
    Event    1 wall_time double, 2 step int64, 3 file_version string, 5 Summary, 7 SessionLog
    Summary  1 repeated Value; Value: 1 tag string, 2 simple_value float; SessionLog: 1 status enum
"""

import math
import os
import pathlib
import struct
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # protocol buffers' wire types
_START = 1  # SessionLog.START


class Events(NamedTuple):
    """One event file of a run directory. Every method raises OSError on a full disk."""

    path: pathlib.Path

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append the numbers of a step; one beyond float32 is infinite there."""
        with np.errstate(over="ignore"):
            scalars = {tag: float(np.float32(value)) for tag, value in scalars.items()}
        values = b"".join(
            _message(1, _message(1, tag.encode()) + _key(2, _FLOAT) + _float(value))
            for tag, value in scalars.items()
        )
        self._append(_event(step, _message(5, values)))

    def restart(self, step: int) -> None:
        """Makes TensorBoard discard what earlier files have from this step on."""
        self._append(_event(step, _message(7, _key(1, _VARINT) + _varint(_START))))

    def _append(self, message: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(frame(message))


def open(folder: str | os.PathLike[str]) -> Events:
    """A new event file in a folder. Raises: OSError."""
    events = Events(
        pathlib.Path(folder, f"events.out.tfevents.{time.time_ns()}.jaxlm.{os.getpid()}")
    )
    events._append(_event(0, _message(3, b"brain.Event:2")))
    return events


def frame(message: bytes) -> bytes:
    """A message as it is stored in the file: with its length and the checksums of both."""
    length = struct.pack("<Q", len(message))
    return length + _masked(length) + message + _masked(message)


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC-32 of some bytes (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = tuple(_table_entry(i) for i in range(256))


def _masked(data: bytes) -> bytes:
    # The format rotates and offsets checksums, so that a checksum of checksums is not degenerate.
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _event(step: int, body: bytes) -> bytes:
    start = _key(1, _DOUBLE) + struct.pack("<d", time.time())
    return start + _key(2, _VARINT) + _varint(step) + body


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _message(field: int, body: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(body)) + body


def _float(value: float) -> bytes:
    # NaN and infinities are drawn by TensorBoard; what float32 cannot hold becomes infinite
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
