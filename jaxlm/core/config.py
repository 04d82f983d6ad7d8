"""Frozen dataclasses to and from JSON, and configs from Python files. No jax import.

A config is a tree of frozen dataclasses with typed leaves. Where a field is a union of dataclasses
(a model is any family's Config), "kind" in the JSON names the member.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import traceback
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Stored:
    """Reader of a type from JSON: `Annotated[type, Stored(parse)]`."""

    parse: typing.Callable[[Any, str], Any]
    """The value of (JSON value, path of the field). Raises: ValueError with the path."""


def to_dict(cfg: Any) -> dict[str, Any]:
    """JSON-ready dict of a dataclass; tuples become lists, nested dataclasses carry their kind."""

    def value(x: Any) -> Any:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return {"kind": kind(type(x)), **_fields(x, value)}
        if isinstance(x, tuple | list):
            return [value(v) for v in x]
        return x

    return _fields(cfg, value)


def _fields(cfg: Any, value: typing.Callable[[Any], Any]) -> dict[str, Any]:
    return {f.name: value(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}


def kind(cls: type) -> str:
    """The name a config class is stored under: its attribute `KIND`, e.g. "llama", and without one
    the class's own name in small letters, e.g. "yarn". Neither moves with the class's file.

    Raises: TypeError for a class named Config without `KIND`.
    """
    explicit = cls.__dict__.get("KIND")
    if explicit is None and cls.__name__ == "Config":
        raise TypeError(f"{cls.__module__}.Config needs KIND, the name that it is stored under")
    return explicit or cls.__name__.lower()


def from_dict(cls: type[T], record: dict[str, Any], where: str = "") -> T:
    """An instance of a dataclass from `to_dict`'s output.

    Raises: ValueError naming the field for unknown or missing fields, kinds and wrong types.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = _optional(cls)
    for name in record:
        if name not in fields and name != "kind":
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; fields: {sorted(fields)}"
            raise ValueError(
                f"{where}{name}: no such field in {cls.__module__}.{cls.__name__}{hint}"
            )
    missing = [n for n, optional in fields.items() if n not in record and not optional]
    if missing:
        raise ValueError(f"{where}{missing[0]}: missing from the record of {cls.__name__}")
    values = {n: _parse(hints[n], record[n], f"{where}{n}") for n in fields if n in record}
    return cls(**values)


def _optional(cls: Any) -> dict[str, bool]:
    """{field: whether it has a default} of a dataclass."""
    none = dataclasses.MISSING
    return {
        f.name: not (f.default is none and f.default_factory is none)
        for f in dataclasses.fields(cls)
    }


def by_fields(classes: tuple[Any, ...], value: Any, where: str) -> Any:
    """An instance of the one of several dataclasses that has a record's fields.

    Raises: ValueError as `from_dict`, and where the fields are those of none.
    """
    given = set(value) if isinstance(value, dict) else set()
    for cls in classes:
        fields = _optional(cls)
        if {name for name, has in fields.items() if not has} <= given <= set(fields):
            return _parse(cls, value, where)
    needed = " or ".join(str(sorted(_optional(cls))) for cls in classes)
    raise ValueError(f"{where}: fields {sorted(given)} given, {needed} are needed")


def _parse(hint: Any, value: Any, where: str) -> Any:
    """value as the type `hint`, recursively."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Annotated:
        for note in args[1:]:
            if isinstance(note, Stored):
                return note.parse(value, where)
        return _parse(args[0], value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        return {name: _parse(args[1], v, f"{where}.{name}") for name, v in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{where}: {value!r} is none of {list(args)}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _parse_union(args, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        each = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(each) != len(value):
            raise ValueError(f"{where}: expected {len(each)} values, got {value!r}")
        return tuple(_parse(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(each, value)))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        return from_dict(typing.cast(type, hint), value, where + ".")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _parse_union(args: tuple, value: Any, where: str) -> Any:
    if value is None:
        if type(None) in args:
            return None
        raise ValueError(f"{where}: must not be empty")
    members = [a for a in args if a is not type(None)]
    records = [a for a in members if dataclasses.is_dataclass(a)]
    if isinstance(value, dict) and records and (len(records) > 1 or "kind" in value):
        for member in records:
            if kind(member) == value.get("kind"):
                return _parse(member, value, where)
        raise ValueError(
            f"{where}.kind: {value.get('kind')!r} is none of {[kind(m) for m in records]}"
        )
    errors = []
    for member in members:
        try:
            return _parse(member, value, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(errors[0])


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    """A record (of `to_dict`) less some fields, named by path: without(record, "data.workers").

    Raises: KeyError for a name that the record does not have.
    """
    out = dict(record)
    for name in names:
        first, _, rest = name.partition(".")
        if rest:
            out[first] = without(out[first], rest)
        else:
            del out[first]
    return out


def digest(record: dict[str, Any]) -> str:
    """12 hex digits of SHA-256 over a record's JSON: the identity of an experiment."""
    text = json.dumps(record, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(a: Any, b: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) of each leaf where two records differ, in a's order.

    A field that only one record has counts with the value None in the other.
    """
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if a == b else [(where, a, b)]
    changed: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys((*a, *b)):
        path = f"{where}.{name}" if where else name
        changed += differences(a.get(name), b.get(name), path)
    return changed


def file(target: str) -> tuple[pathlib.Path, str]:
    """(the Python file of a config, its function): of `path.py` config, of `path.py:variant` that.

    Raises: FileNotFoundError for a missing file.
    """
    name, _, variant = target.partition(".py:")
    path = pathlib.Path(name if name.endswith(".py") else name + ".py")
    if not path.is_file():
        saved = pathlib.Path(target) / "config.json"
        hint = f"; the run in that directory is {str(saved)!r}" if saved.is_file() else ""
        raise FileNotFoundError(
            f"no config file {str(path)!r}; a config is a .py file with config(){hint}"
        )
    return path, variant or "config"


class FreshSource(importlib.machinery.SourceFileLoader):
    """Reads the source, never bytecode: that of a file that was changed within a second, to the
    same size, is of the old one."""

    def path_stats(self, path: Any) -> Any:
        """Raises: OSError, on which the source is compiled."""
        raise OSError(f"{path}: bytecode is neither read nor written")


def load(target: str) -> Any:
    """Returns the result of `config()` in a Python file; of `variant()` for `path.py:variant`.

    Raises: FileNotFoundError for a missing file; ValueError naming file and line for a syntax error
    or a dataclass that is called with a field it does not have, and naming the functions there are
    when the variant is not one of them.
    """
    path, wanted = file(target)
    name = f"jaxlm_config_{path.stem}"
    loader = importlib.util.spec_from_file_location(name, path, loader=FreshSource(name, str(path)))
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    with _explained(path):
        loader.loader.exec_module(module)
    have = variants(module)
    if wanted not in have:
        raise ValueError(no_function(path, wanted, have))
    with _explained(path):
        return getattr(module, wanted)()


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    """Turns exceptions of a config, OSError aside, into one line that names the config's line.
    Raises: ImportError for a missing module; ValueError for all else."""
    try:
        yield
    except OSError:
        raise
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        own = [place.lineno for place in places if _same(place, path)]
        where = f"{path}:{own[-1]}" if own else str(path)
        if isinstance(error, ImportError):
            raise ImportError(f"{where}: {error}; correct the name, or install it") from error
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: {text}") from error


def run_file(folder: pathlib.Path) -> pathlib.Path:
    """The config.json of a run directory. Raises: FileNotFoundError if there is none."""
    file = folder / "config.json"
    if not file.is_file():
        others = sorted(p.parent.name for p in folder.parent.glob("*/config.json"))
        hint = f"; {folder.parent} holds {others}" if others else ""
        raise FileNotFoundError(f"{folder} is no run directory: it has no config.json{hint}")
    return file


def _same(frame: traceback.FrameSummary, path: pathlib.Path) -> bool:
    return pathlib.Path(frame.filename).absolute() == path.absolute()


def no_function(path: pathlib.Path, wanted: str, have: list[str]) -> str:
    """A message about a variant that a config file does not define."""
    close = difflib.get_close_matches(wanted, have, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{path}: no function {wanted!r}; it has {have}{hint}"


def near(name: str, names: typing.Iterable[str], otherwise: str | None = None) -> str:
    """The end of a message about a wrong name: the nearest right one, or else all of them, or
    `otherwise` where they are too many."""
    matches = difflib.get_close_matches(name, list(names), 1)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; {otherwise}" if otherwise else f"; there are {sorted(names)}"


def variants(module: types.ModuleType) -> list[str]:
    """Names of the public functions defined in a config module that take no arguments."""
    return [
        n
        for n, f in vars(module).items()
        if isinstance(f, types.FunctionType)
        and f.__module__ == module.__name__
        and not n.startswith("_")
        and not f.__code__.co_argcount
    ]
