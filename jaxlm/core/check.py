"""Checks of settings, in lines that name the field, its value and what fits.

Settings have `problems(...)`, which yields such lines, and `refuse` raises all of them together. A
Config is checked when it is built, by what raises: `field`, `within` and those below it.
"""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def refuse(heading: str, problems: Iterable[str]) -> None:
    """Raises: ValueError with all problems under the heading ("" is none), where there are any."""
    lines = list(problems)
    if lines and heading:
        lines = [heading, *(f"  {line}" for line in lines)]
    if lines:
        raise ValueError("\n".join(lines))


def problem(name: str, value: Any, ok: bool, fits: str) -> Iterator[str]:
    """A line unless ok: problem("data.seq", 0, False, "at least 1")."""
    if not ok:
        yield f"{name}: {value!r} given; it must be {fits}"


def outside(
    where: str,
    cfg: Any,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float = math.inf,
) -> Iterator[str]:
    """A line for each field outside of an interval, NaN or no number. None fits where a field's
    type has it.

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
        *parents, last = name.split(".")
        owner: Any = functools.reduce(getattr, parents, cfg)
        value = getattr(owner, last)
        if value is None and types.NoneType in typing.get_args(_types(owner)[last]):
            continue
        ok = isinstance(value, numbers.Real)
        ok = ok and (least is None or value >= least) and (above is None or value > above)
        ok = ok and (value < below if most is None else value <= most)
        yield from problem(path(where, name), value, ok, fits)


def _types(cfg: Any) -> dict[str, Any]:
    return _hints(type(cfg))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def choices(where: str, cfg: Any) -> Iterator[str]:
    """A line for each field whose type lists its values (a Literal, or None) and has another."""
    for name, hint in _types(cfg).items():
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = typing.get_args(hint) if union else (hint,)
        if all(k is types.NoneType or typing.get_origin(k) is typing.Literal for k in kinds):
            fits = [value for kind in kinds for value in typing.get_args(kind) or (None,)]
            value = getattr(cfg, name)
            yield from problem(path(where, name), value, value in fits, f"one of {fits}")


def changed(where: str, cfg: Any, *names: str, why: str) -> Iterator[str]:
    """A line for each field that is not at its default, where nothing else fits. why: the reason,
    such as "with a teacher"."""
    for field in dataclasses.fields(cfg):
        if field.name in names:
            value, fits = getattr(cfg, field.name), f"{field.default!r} {why}"
            yield from problem(path(where, field.name), value, value == field.default, fits)


def loaded(where: str, load: Callable[[], T]) -> Generator[str, None, T | None]:
    """The value of load(), for `value = yield from loaded(...)`; None, and a line with the reason
    after `where` ("" is the reason alone), if it raises."""
    try:
        return load()
    except (ValueError, OSError, ImportError) as error:
        yield f"{where}: {error}" if where else str(error)
        return None


def path(where: str, name: str) -> str:
    """The name of a field of the settings that are at `where`."""
    return f"{where}.{name}" if where else name


def field(name: str, value: Any, ok: bool, fits: str) -> None:
    """Raises: ValueError with the line of `problem`, unless ok."""
    refuse("", problem(name, value, ok, fits))


def within(
    where: str,
    cfg: Any,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float = math.inf,
) -> None:
    """Raises: ValueError with the lines of `outside`."""
    refuse("", outside(where, cfg, *names, least=least, above=above, most=most, below=below))


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
