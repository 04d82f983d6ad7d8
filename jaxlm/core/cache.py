"""Files that are derived from others and kept from one process to the next."""

import os
import pathlib
import sys

FOLDER = "JAX_COMPILATION_CACHE_DIR"
LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def folder() -> pathlib.Path:
    """The directory of these files: $XDG_CACHE_HOME/jaxlm, or ~/.cache/jaxlm."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxlm"


def programs(least: float = 0.2) -> None:
    """Keep compiled programs that took `least` seconds or more to compile.

    In `folder()`/xla, or $JAX_COMPILATION_CACHE_DIR if that is set (name shared storage there on a
    cluster). JAX_ENABLE_COMPILATION_CACHE=false turns it off. JAX itself keeps what took a second;
    a tiny model's programs take less, and are as many.

    Several processes that train on CPUs keep none: what XLA compiles runs its collectives in one
    order, but what it reads from a disk does not (jaxlib 0.10.2), and processes that meet them in
    another order wait for each other for ever. Call it after they have joined.
    """
    here = str(folder() / "xla")
    if "jax" not in sys.modules:
        # JAX reads these when it starts, and a command that needs none of it does not start it
        os.environ.setdefault(FOLDER, here)
        os.environ.setdefault(LEAST, str(least))
        return
    jax = sys.modules["jax"]
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        from jax.experimental.compilation_cache import compilation_cache

        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX asks once, at its first program
        return
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", here)
    if LEAST not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
