"""Checks every family's Config makes when it is built: errors name the field, value and fix."""

from typing import Any


def positive(cfg: Any, *names: str) -> None:
    """Raises: ValueError for a field below 1."""
    for name in names:
        if getattr(cfg, name) < 1:
            raise ValueError(f"model.{name}: {getattr(cfg, name)} given; at least 1 is needed")


def divides(cfg: Any, part: str, whole: str) -> None:
    """Raises: ValueError unless `part` divides `whole`, naming the values that would."""
    a, b = getattr(cfg, part), getattr(cfg, whole)
    if b % a:
        fits = [n for n in range(1, b + 1) if b % n == 0]
        raise ValueError(
            f"model.{part}: {a} does not divide model.{whole}={b}; choose one of {fits}"
        )


def even(cfg: Any, name: str, why: str) -> None:
    """Raises: ValueError for an odd field."""
    if getattr(cfg, name) % 2:
        raise ValueError(f"model.{name}: {getattr(cfg, name)} is odd; {why}")


def pattern(cfg: Any) -> None:
    """Raises: ValueError unless `pattern` has 1 to `layers` kinds of layers, and `window` is given
    where one of them is "local", and only there."""
    if not 1 <= len(cfg.pattern) <= cfg.layers:
        raise ValueError(
            f"model.pattern: {len(cfg.pattern)} layers given; 1 to model.layers={cfg.layers} fit"
        )
    local = "local" in cfg.pattern
    if local and (cfg.window is None or cfg.window < 1):
        raise ValueError(f"model.window: {cfg.window} given; local layers see at least 1 key")
    if not local and cfg.window is not None:
        raise ValueError(f"model.window: {cfg.window} given; model.pattern has no local layer")
