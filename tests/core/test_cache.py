"""Where derived files are kept, and which compiled programs are."""

import os
import pathlib
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxlm.core import cache

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def test_programs_go_to_the_users_cache_or_where_jax_is_told(monkeypatch, tmp_path):
    before = {name: jax.config.values[name] for name in NAMES}
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        assert cache.folder() == tmp_path / "jaxlm"
        jax.config.update(NAMES[0], None)
        cache.programs(0.0)
        assert jax.config.values[NAMES[0]] == str(tmp_path / "jaxlm" / "xla")
        assert jax.config.values[NAMES[1]] == 0.0
        jax.config.update(NAMES[0], "elsewhere")
        cache.programs()
        assert [jax.config.values[name] for name in NAMES] == ["elsewhere", 0.2]
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
        cache.programs(0.0)
        assert jax.config.values[NAMES[1]] == 0.2
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == pathlib.Path.home() / ".cache" / "jaxlm"


def test_programs_are_kept_where_jax_has_not_started(monkeypatch, tmp_path):
    """Asking for the cache starts no JAX: it finds its settings when it starts, if it does."""
    for name in (cache.FOLDER, cache.LEAST):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax")
    cache.programs(0.0)
    assert "jax" not in sys.modules
    assert os.environ[cache.FOLDER] == str(tmp_path / "jaxlm" / "xla")
    assert os.environ[cache.LEAST] == "0.0"
    monkeypatch.setenv(cache.FOLDER, "elsewhere")
    cache.programs()
    assert os.environ[cache.FOLDER] == "elsewhere" and os.environ[cache.LEAST] == "0.0"


def test_several_processes_on_cpus_keep_no_programs(monkeypatch, tmp_path):
    """A ring over two processes ended in the first run, and waited for ever in the second, which
    read its step from the disk (tests/train/interruptions/test_other_processes.py)."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    try:
        cache.programs()
        assert not jax.config.values["jax_enable_compilation_cache"]
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
