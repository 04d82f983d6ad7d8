"""The platform that programs are compiled for: that of this process, or another.

Kernels, dtypes and forms of products are chosen for it.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Within a `with`, programs are traced for a platform, "cpu", "gpu" or "tpu", whatever this
    process computes on."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """The platform."""
    return _PLATFORM.get() or jax.default_backend()
