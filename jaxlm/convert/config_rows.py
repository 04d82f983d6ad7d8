"""Correspondence of a Config's fields to those of a config.json: rows that convert both ways.

    required("vocab", "vocab_size")                           missing is an error
    field("kv", "num_key_value_heads", same_as("heads"))      missing or null is the default
    nullable("window", "sliding_window", 4096)                missing is the default, null is None
    choice("activation", "hidden_act", "silu", ACTIVATIONS)   their names of our values
    always(norm="pre", out_bias=same_as("bias"))              ours, without a field of theirs
    only("attention_bias", False)                             theirs, without a field of ours
    written("pad_token_id", 0)                                written, and not read

A default is the one of transformers: a value, or a function of the Config, which while reading has
the fields of the rows before. Where none of these fits, a `Row` is a pair of functions.

Each field of a config.json is read by a row, ignored by name (`ignored_fields`), or refused; each
field of a Config is written by a row, or refused unless at its default.
"""

import dataclasses
import operator
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from jaxlm.convert.config_json import Fields
from jaxlm.convert.weight_rows import Table


def _read_nothing(f: Fields, cfg: Any) -> dict[str, Any]:
    return {}


def _write_nothing(cfg: Any) -> dict[str, Any]:
    return {}


class Row(NamedTuple):
    """ours: the fields of a Config that it decides.

    read(config.json, fields of the rows before) -> the values of `ours`. write(Config) -> fields of
    a config.json. Both raise ValueError for what the other side cannot express.
    """

    ours: tuple[str, ...]
    read: Callable[[Fields, Any], dict[str, Any]] = _read_nothing
    write: Callable[[Any], dict[str, Any]] = _write_nothing


def refuse(cfg: Any, name: str, fits: str) -> NoReturn:
    """Raises: ValueError for the value of a Config's field, which a config.json cannot express."""
    raise ValueError(
        f"model.{name}={getattr(cfg, name)!r} has no counterpart in this config.json ({fits})"
    )


def same_as(name: str) -> Callable[[Any], Any]:
    """The value of another field of the Config, as a default."""
    return operator.attrgetter(name)


def head_size(cfg: Any) -> int:
    """The size of a head where the width is divided among the heads, as a default."""
    return cfg.embed // cfg.heads


def _of(default: Any, cfg: Any) -> Any:
    return default(cfg) if callable(default) else default


def required(ours: str, theirs: str, *aliases: str) -> Row:
    """A field that has no default, and is never null."""

    def read(f: Fields, cfg: Any) -> dict[str, Any]:
        value = f.take(theirs, *aliases)
        if value is None:
            raise ValueError(f"{theirs}=null is not supported; a value is required")
        return {ours: value}

    def write(cfg: Any) -> dict[str, Any]:
        value = getattr(cfg, ours)
        if value is None:
            refuse(cfg, ours, "never None")
        return {theirs: value}

    return Row((ours,), read, write)


def field(ours: str, theirs: str, default: Any, *aliases: str, none: Any = None) -> Row:
    """A field with a default, which null also means; a number where the default is one.

    none: the value of theirs that is None here, where there is one.
    """

    def read(f: Fields, cfg: Any) -> dict[str, Any]:
        value = f.get(theirs, _of(default, cfg), *aliases)
        value = float(value) if isinstance(default, float) and isinstance(value, int) else value
        return {ours: None if value == _of(none, cfg) else value}

    def write(cfg: Any) -> dict[str, Any]:
        value = getattr(cfg, ours)
        value = _of(none, cfg) if value is None else value
        if value is None and default is not None:
            refuse(cfg, ours, "never None")
        return {theirs: value}

    return Row((ours,), read, write)


def nullable(ours: str, theirs: str, default: Any, null: Any = None) -> Row:
    """A field in which null is a value, which means `null` here."""

    def read(f: Fields, cfg: Any) -> dict[str, Any]:
        value = f.maybe(theirs, default)
        return {ours: _of(null, cfg) if value is None else value}

    return Row((ours,), read, lambda cfg: {theirs: getattr(cfg, ours)})


def choice(ours: str | tuple[str, ...], theirs: str, default: Any, known: Mapping[Any, Any]) -> Row:
    """A field whose values have other names: known[theirs] = ours. Of several the first is written.
    Where ours is a tuple of fields, so are their values."""
    names = (ours,) if isinstance(ours, str) else ours

    def read(f: Fields, cfg: Any) -> dict[str, Any]:
        value = f.among(theirs, default, known)
        return {ours: value} if isinstance(ours, str) else dict(zip(names, value, strict=True))

    def write(cfg: Any) -> dict[str, Any]:
        value = operator.attrgetter(*names)(cfg)
        for name, meaning in known.items():
            if meaning == value:
                return {theirs: name}
        expressed = ", ".join(f"model.{name}={getattr(cfg, name)!r}" for name in names)
        raise ValueError(f"{expressed}: {theirs} has no such value; it has {list(known)}")

    return Row(names, read, write)


def always(**values: Any) -> Row:
    """Fields of a Config that have one value in a model_type, or follow from others."""

    def write(cfg: Any) -> dict[str, Any]:
        for name, value in values.items():
            if getattr(cfg, name) != _of(value, cfg):
                refuse(cfg, name, f"always {_of(value, cfg)!r}")
        return {}

    return Row(
        tuple(values), lambda f, cfg: {name: _of(v, cfg) for name, v in values.items()}, write
    )


def only(theirs: str, default: Any, *allowed: Any, export: bool = False) -> Row:
    """A field of theirs that must have one of these values. export: whether the default is written,
    or the field left out."""

    def read(f: Fields, cfg: Any) -> dict[str, Any]:
        f.only(theirs, _of(default, cfg), *allowed)
        return {}

    return Row((), read, lambda cfg: {theirs: _of(default, cfg)} if export else {})


def written(theirs: str, value: Any, *ours: str) -> Row:
    """A field that is written for other readers. ours: fields of the Config that are written by it
    and keep their defaults when a config.json is read, as rates of dropout do."""
    return Row(ours, write=lambda cfg: {theirs: _of(value, cfg)})


class Architecture(NamedTuple):
    """One `model_type` of transformers.

    family: the class of its Config. architecture: transformers' class. fields: rows of its
    config.json. weights: rows of its weights, or a function of the Config. settle(Config, names of
    tensors) -> the Config of a checkpoint that has these, where config.json does not decide it.
    """

    model_type: str
    family: type
    architecture: str
    fields: Sequence[Row]
    weights: Table | Callable[[Any], Table]
    settle: Callable[[Any, Collection[str]], Any] | None = None

    def names(self, cfg: Any) -> Table:
        """The rows of a Config's weights."""
        return self.weights if isinstance(self.weights, Table) else self.weights(cfg)

    def read(self, f: Fields) -> Any:
        """The Config of a config.json. Raises: ValueError for values that are not supported."""
        return self.family(**read(self.fields, f))

    def write(self, cfg: Any) -> dict[str, Any]:
        """The config.json of a Config. Raises: ValueError for what it cannot express."""
        kind = {"architectures": [self.architecture], "model_type": self.model_type}
        return kind | write(self.fields, cfg)


def read(rows: Sequence[Row], f: Fields) -> dict[str, Any]:
    """The values of a Config's fields, row after row."""
    cfg = types.SimpleNamespace()
    for row in rows:
        vars(cfg).update(row.read(f, cfg))
    return vars(cfg)


def write(rows: Sequence[Row], cfg: Any) -> dict[str, Any]:
    """The fields of a config.json. Raises: ValueError for a field of the Config that no row names,
    unless it has its default, and for what a row cannot express."""
    named = {name for row in rows for name in row.ours}
    for own in dataclasses.fields(cfg):
        if own.name not in named and getattr(cfg, own.name) != own.default:
            refuse(cfg, own.name, f"always {own.default!r}")
    record: dict[str, Any] = {}
    for row in rows:
        record |= row.write(cfg)
    return record
