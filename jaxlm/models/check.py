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
