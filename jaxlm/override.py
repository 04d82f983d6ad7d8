"""Typed overrides of a config's leaves from the command line."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def apply(cfg: T, args: Sequence[str], prog: str) -> T:
    """cfg, a frozen dataclass, with `--field.leaf value` overrides.

    Where a field is a union (a run's model), the config's own member is what can be changed.
    `--help` prints every leaf with its meaning and default, and exits with 0. An unknown name, a
    wrong type and a value that the dataclass refuses are printed with the nearest name or the
    reason, and exit with 2.
    """
    import tyro

    cls: Any = type(cfg)
    values = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cls)}
    narrow = _narrowed(cls, values)
    found = tyro.cli(
        narrow,
        default=narrow(**values),
        args=list(args),
        prog=prog,
        config=(tyro.conf.FlagConversionOff,),
    )
    return cls(**{name: getattr(found, name) for name in values})


def _narrowed(cls: Any, values: dict[str, Any]) -> Any:
    """A subclass whose unions of dataclasses are the values' own classes."""
    hints = typing.get_type_hints(cls)
    own = [
        (name, type(value), dataclasses.field(default=value))
        for name, value in values.items()
        if dataclasses.is_dataclass(value) and hints[name] is not type(value)
    ]
    return dataclasses.make_dataclass(
        cls.__name__,
        own,
        bases=(cls,),
        namespace={"__doc__": cls.__doc__},
        frozen=True,
        kw_only=True,
    )
