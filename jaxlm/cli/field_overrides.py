"""Typed overrides of a config's leaves from the command line."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def apply(cfg: T, args: Sequence[str], prog: str) -> T:
    """cfg, a frozen dataclass, with `--field.leaf value` overrides.

    Where a field is a union (a run's model), the config's own member is what can be changed; where
    it is None, a member is chosen by `field:member`, after all other overrides and before its own
    (`model.scaling:yarn --model.scaling.factor 4 --model.scaling.original 2048`).
    `--help` prints every leaf with its meaning and default, and exits with 0. An unknown name, a
    wrong type and a value that the dataclass refuses are printed with the nearest name or the
    reason, and exit with 2.
    """
    if not args:
        return cfg  # tyro takes longer to load than all that answers without it
    import tyro

    narrow = _narrowed(cfg)
    parsed = tyro.cli(
        type(narrow),
        default=narrow,
        args=list(args),
        prog=prog,
        config=(tyro.conf.FlagConversionOff,),
    )
    return _widened(parsed, cfg)


def _narrowed(cfg: Any) -> Any:
    """cfg as a member of a subclass whose unions of dataclasses are the values' own classes."""
    hints = typing.get_type_hints(type(cfg))
    values = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
    inner = {n: _narrowed(v) for n, v in values.items() if dataclasses.is_dataclass(v)}
    own = [
        (name, type(value), dataclasses.field(default=value))
        for name, value in inner.items()
        if hints[name] is not type(value)
    ]
    if not own:
        return cfg
    narrow: Any = dataclasses.make_dataclass(
        type(cfg).__name__,
        own,
        bases=(type(cfg),),
        namespace={"__doc__": type(cfg).__doc__},
        frozen=True,
        kw_only=True,
    )
    return narrow(**{**values, **inner})


def _widened(value: Any, like: Any) -> Any:
    """value, of narrowed classes, as a member of the classes of `like`."""
    if not dataclasses.is_dataclass(like) or type(value) is type(like):
        return value
    names = [f.name for f in dataclasses.fields(like)]
    cls: Any = type(like)
    return cls(**{n: _widened(getattr(value, n), getattr(like, n)) for n in names})
