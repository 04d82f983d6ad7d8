"""Where derived files are kept, and which compiled programs are."""

import pathlib

import jax

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
