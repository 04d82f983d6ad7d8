"""Checks of a Config's fields when it is built: errors name the field, its value and what fits."""

import math
from typing import Any


def field(name: str, value: Any, ok: bool, fits: str) -> None:
    """Raises: ValueError unless ok: field("data.seq", 0, False, "at least 1")."""
    if not ok:
        raise ValueError(f"{name}: {value!r} given; it must be {fits}")


def within(
    where: str,
    cfg: Any,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float = math.inf,
) -> None:
    """Raises: ValueError for a field outside of an interval, and for NaN. None is not checked.

    where: the name of cfg in a Run, such as "objective"; "" names the fields alone. least and most
    belong to the interval, above and below do not; infinity fits nowhere.
    """
    low = "" if least is None and above is None else f"{above if least is None else least}"
    if most is None and below == math.inf:
        fits = f"at least {low}" if above is None else f"above {low}"
    else:
        end = f"{below})" if most is None else f"{most}]"
        fits = f"in {'[' if above is None else '('}{low}, {end}"
    for name in names:
        value = cfg
        for part in name.split("."):
            value = getattr(value, part)
        if value is None:
            continue
        ok = (least is None or value >= least) and (above is None or value > above)
        ok = ok and (value < below if most is None else value <= most)
        field(f"{where}.{name}" if where else name, value, ok, fits)


def positive(cfg: Any, *names: str) -> None:
    """Raises: ValueError for a field of a model's Config below 1."""
    within("model", cfg, *names, least=1)


def divides(cfg: Any, part: str, total: str) -> None:
    """Raises: ValueError unless `part` divides `total`, naming the values that would."""
    a, b = getattr(cfg, part), getattr(cfg, total)
    if b % a:
        fits = [n for n in range(1, b + 1) if b % n == 0]
        raise ValueError(
            f"model.{part}: {a} does not divide model.{total}={b}; choose one of {fits}"
        )


def even(cfg: Any, *names: str) -> None:
    """Raises: ValueError for an odd field of a model's Config, whose dimensions RoPE pairs."""
    for name in names:
        value = getattr(cfg, name)
        field(f"model.{name}", value, not value % 2, "even, since RoPE rotates pairs of dimensions")


def pattern(cfg: Any) -> None:
    """Raises: ValueError unless `pattern` has 1 to `layers` kinds of layers, and `window` is given
    where one of them is "local", and only there."""
    count = len(cfg.pattern)
    fits = f"1 to model.layers={cfg.layers} kinds of layers"
    field("model.pattern", cfg.pattern, 1 <= count <= cfg.layers, fits)
    if "local" in cfg.pattern:
        ok = cfg.window is not None and cfg.window >= 1
        field("model.window", cfg.window, ok, "at least 1, since model.pattern has local layers")
    else:
        fits = "None, since model.pattern has no local layer"
        field("model.window", cfg.window, cfg.window is None, fits)
