"""The machine that programs are compiled for: this process's devices, or those of another.

Kernels, dtypes and forms of products are chosen for it, and meshes hold its devices.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import jax

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_DEVICES: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("devices", default=())


@contextlib.contextmanager
def compiling_for(name: str, devices: Sequence[Any] = ()) -> Iterator[None]:
    """Within a `with`, programs are traced for a platform, "cpu", "gpu" or "tpu", whatever this
    process computes on, and meshes hold these devices, if any are given: a topology's can be
    compiled for and not run on."""
    tokens = _PLATFORM.set(name), _DEVICES.set(tuple(devices))
    try:
        yield
    finally:
        _PLATFORM.reset(tokens[0])
        _DEVICES.reset(tokens[1])


def platform() -> str:
    """The platform."""
    return _PLATFORM.get() or jax.default_backend()


def devices() -> tuple[Any, ...]:
    """The devices that a mesh may hold."""
    return _DEVICES.get() or tuple(jax.devices())
