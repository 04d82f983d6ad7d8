"""The devices of this process: a compiler setting that they need, and the memory they have.

Nothing is imported here before it is needed: a command line calls `correct` before JAX starts.
"""

import importlib.metadata
import os
import pathlib
import re
import sys
import warnings
from typing import NamedTuple

YNN = "xla_cpu_experimental_ynn_fusion_type"
# The default set of fusions less the one that is wrong; matrix products keep theirs.
REDUCE = f"--{YNN}=-reduce"
# Set to 0, what needs more memory than there is is tried all the same.
UNCHECKED = "JAXLM_MEMORY_CHECK"


def wrong(version: str) -> bool:
    """Whether this version of jaxlib computes wrong numbers on CPUs unless `correct` is called.

    0.10.0 to 0.10.2 fuse a matrix product with a reduction over it. With a small inner size (3 in
    float32, in 0.10.2 also 3, 5, 6 and 7 in float64) and tens of thousands of rows on the other
    side (32,769 to some 49,000; in float64 from 16,385), thousands of results are off by as much as
    their own size. 0.11.0 and later are right. Of the programs here, evaluations of models that
    normalise queries and keys have that fusion, with the model's width as inner size.
    """
    return re.match(r"0\.10\.", version) is not None


def correct() -> None:
    """Turn that fusion off for all programs of this process and its children, by XLA_FLAGS.

    Every command of the command line calls it, and `train.loop.run`, `train.population.run` and
    `train.saved.load`. In a program of one's own it comes before JAX's first device call: XLA reads
    its flags once. If it is too late, a warning says what to do. It does nothing for another
    version of jaxlib, on an accelerator, or where XLA_FLAGS already choose YNN's fusions.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if YNN in flags or not wrong(importlib.metadata.version("jaxlib")):
        return
    if not _started():
        os.environ["XLA_FLAGS"] = f"{flags} {REDUCE}".strip()
    elif sys.modules["jax"].default_backend() == "cpu":
        warnings.warn(
            "jaxlib 0.10 may compute wrong numbers on CPUs, and JAX has started without the flag "
            "that prevents it: call jaxlm.parallel.devices.correct() before JAX's first device "
            f"call, or start Python with XLA_FLAGS={REDUCE}",
            stacklevel=3,
        )


def _started() -> bool:
    """Whether JAX has devices by now, so that XLA's flags are read."""
    if "jax" not in sys.modules:
        return False
    # No public function of JAX 0.10 answers without starting them; later versions never ask.
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


class Space(NamedTuple):
    """Memory for arrays: bytes, whether all devices of this process share them, and whose they
    are."""

    bytes: int
    shared: bool
    name: str

    def __str__(self) -> str:
        return f"{self.name} has {binary(self.bytes)}"


def compile_once() -> dict[str, int] | None:
    """Compiler options for a program that runs once: LLVM's first level compiles an init to
    code with the same results and speed as its third, bit for bit, in a quarter of the time. A
    level in XLA_FLAGS is kept; None off the CPU."""
    import jax

    level = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 1}


def check(what: str, need: int) -> None:
    """Raises: ValueError if so many bytes on each device that is used are more than there are.
    what: what needs them."""
    there = space()
    if there is not None and need > there.bytes and not unchecked():
        raise ValueError(
            f"{what}: {binary(need)} are needed, and {there}; {UNCHECKED}=0 tries all the same"
        )


def unchecked() -> bool:
    """Whether the user turned these checks off."""
    return os.environ.get(UNCHECKED) == "0"


def binary(n: float) -> str:
    """A number of bytes in the largest unit that leaves at least a tenth."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= 0.1 * size:
            return f"{n / size:,.2f} {unit}"
    return f"{n:.0f} B"


def space() -> Space | None:
    """The memory of this process's devices: an accelerator's own, or on CPU what the machine and
    the limits on this process leave; None where the platform does not report it."""
    import jax

    first = jax.local_devices()[0]
    stats = first.memory_stats()
    if stats and "bytes_limit" in stats:
        return Space(stats["bytes_limit"], False, f"a {first.device_kind}")
    free = host_memory()
    if free is None or first.platform != "cpu":
        return None
    return Space(free, True, "this machine")


def host_memory(root: pathlib.Path = pathlib.Path("/")) -> int | None:
    """Bytes of memory that this process may still take: the machine's available memory, or what is
    left under a limit of its control groups (those of containers and job schedulers), whichever is
    less. None where the system does not say.

    Control groups count the files that they cache, which are given up when memory is needed: the
    inactive ones are not counted here.
    """
    free = [int(text) << 10 for text in _fields(root / "proc/meminfo", "MemAvailable:")]
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        files = V1 if kinds else V2
        place = base / "memory" if kinds else base
        # the group and all above it; inside a container the mount itself is the group
        parts = pathlib.PurePosixPath(path).relative_to("/").parts
        for depth in range(len(parts) + 1):
            free += _left(place.joinpath(*parts[:depth]), *files)
    return min(free, default=None)


# Limit, use, and the use's part that is inactive files, of both versions of control groups.
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def _left(group: pathlib.Path, limit: str, used: str, files: str) -> list[int]:
    """[bytes left under a group's limit], [] if it has none."""
    numbers = [_text(group / name).strip() for name in (limit, used)]
    if not all(text.isdecimal() for text in numbers):
        return []  # "max", or no such group
    cached = [int(text) for text in _fields(group / "memory.stat", files)]
    return [max(0, int(numbers[0]) - int(numbers[1]) + sum(cached))]


def _fields(path: pathlib.Path, name: str) -> list[str]:
    """The value of each line of a file that begins with this name."""
    rows = (line.split() for line in _text(path).splitlines())
    return [row[1] for row in rows if row and row[0] == name]


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
