"""Reading a `config.json` so that nothing in it is overlooked: every field is taken or refused."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxlm.convert.families import ignored_fields

# transformers' names of nonlinearities -> those of models/layers/ffn.py. Of several the first is
# written.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "relu": "relu",
    "relu2": "relu2", "silu": "silu", "swish": "silu",
}  # fmt: skip


class Fields:
    """A `config.json` that remembers which of its fields were read.

    What its model_type can do without (`ignored_fields`) counts as read. `ignored`: unknown
    fields that the user answers for; `skipped` holds those that were there.

    Every method raises ValueError naming the field, its value, and the values that are supported.
    """

    def __init__(
        self, record: Mapping[str, Any], where: str = "config.json", ignored: Collection[str] = ()
    ):
        self._record, self._where, self._ignored = dict(record), where, frozenset(ignored)
        self._harmless = ignored_fields.names(record.get("model_type"))
        self._understood: set[str] = set()
        self._parts: list[Fields] = []

    def take(self, name: str, *aliases: str) -> Any:
        """A field's value. Raises: ValueError where it is missing under all of its names, or where
        two of them contradict each other."""
        given = self._given(name, *aliases)
        if not given:
            raise ValueError(f"{self._where}: {name} is missing")
        return self._agreed(given)

    def _agreed(self, given: dict[str, Any]) -> Any:
        """The value that all names of a field give it."""
        if any(value != next(iter(given.values())) for value in given.values()):
            raise ValueError(f"{self._where}: {given} are one field and differ")
        return next(iter(given.values()))

    def get(self, name: str, default: Any, *aliases: str) -> Any:
        """A field's value, or the default of transformers where it is absent or null. Raises:
        ValueError where two of its names contradict each other."""
        given = {k: v for k, v in self._given(name, *aliases).items() if v is not None}
        return self._agreed(given) if given else default

    def _given(self, name: str, *aliases: str) -> dict[str, Any]:
        self._understood |= {name, *aliases}
        return {k: self._record[k] for k in (name, *aliases) if k in self._record}

    def maybe(self, name: str, default: Any) -> Any:
        """A field's value, where null is a value too; the default of transformers where absent."""
        self._understood.add(name)
        return self.take(name) if name in self._record else default

    def only(self, name: str, default: Any, *allowed: Any) -> Any:
        """A field that has to have one of these values (the default among them)."""
        value = self.get(name, default)
        if value not in (default, *allowed):
            raise ValueError(
                f"{self._where}: {name}={value!r} is not supported; there is "
                f"{sorted({repr(v) for v in (default, *allowed)})}"
            )
        return value

    def among(self, name: str, default: str, known: Mapping[str, Any]) -> Any:
        """The entry of `known` for a field's value. Raises: ValueError if there is none."""
        value = self.get(name, default)
        if value not in known:
            raise ValueError(
                f"{self._where}: {name}={value!r} is not supported; there is {sorted(known)}"
            )
        return known[value]

    def part(self, name: str) -> "Fields":
        """A field that is a record, to be read (and its rest refused) like the whole."""
        inner = self.take(name)
        kind = {"model_type": self._record.get("model_type")}
        self._parts.append(Fields(kind | inner, f"{self._where}: {name}", self._ignored))
        return self._parts[-1]

    def refuse_two_ways(self) -> None:
        """Raises: ValueError where `is_causal` lets a decoder see what comes after a token, as
        published embedding models do; transformers takes null for false."""
        value = self.maybe("is_causal", True)
        if not value and "is_causal" not in self._harmless:
            raise ValueError(
                f"{self._where}: is_causal={value!r} is not supported: every token would see those "
                "after it; a decoder here sees those before it alone (true)"
            )

    def refuse_rest(self) -> None:
        """Raises: ValueError for fields that nothing has read and that may have an effect: an
        unknown field may change what the model computes. Null, false, 0 and empty values have none;
        of those that transformers reads without declaring them, `tests/convert/test_law.py` proves
        it."""
        known = self._understood | self._harmless | self._ignored
        rest = {k: v for k, v in sorted(self._record.items()) if v and k not in known}
        if rest:
            raise ValueError(
                f"{self._where}: unknown fields {rest}; a model that may compute something else is "
                f"not imported. If you know that they change nothing: `--ignore {next(iter(rest))}`"
            )

    def skipped(self) -> dict[str, Any]:
        """The fields that only `ignored` lets pass, with their values.

        Raises: ValueError for a name in `ignored` that is understood here, and so never skipped, or
        that this config.json does not have.
        """
        parts = (self, *self._parts)
        understood = sorted(self._ignored & set().union(*(p._understood for p in parts)))
        if understood:
            raise ValueError(
                f"--ignore {understood[0]}: {self._where} is read with this field, which cannot be "
                "ignored; only fields that are unknown here can"
            )
        present = {k: p._record[k] for p in parts for k in sorted(self._ignored) if k in p._record}
        absent = sorted(self._ignored - present.keys())
        if absent:
            raise ValueError(f"--ignore {absent[0]}: {self._where} has no such field")
        return present
