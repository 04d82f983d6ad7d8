"""Compiled HLO as text, read into computations, and how often each of them runs."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bits of an element; tokens and opaque values have none.
BITS = {
    **{"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32},
    **{"s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
    **{"f8e4m3fn": 8, "f8e5m2": 8, "f4e2m1fn": 4, "f8e8m0fnu": 8, "token": 0},
}


class Operation(NamedTuple):
    """name = type opcode(...): one line, whose attributes are in `text`."""

    name: str
    type: str
    opcode: str
    text: str


class Program(NamedTuple):
    """Computations by name, the entry's name, and the names of those that are a fusion's."""

    computations: dict[str, list[Operation]]
    entry: str
    fused: frozenset[str]


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"^([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"(calls|body|condition|to_apply|called_computations|branch_computations)=")


def parse(text: str) -> Program:
    """The Program of `compiled.as_text()`. Raises: ValueError for a text without an entry."""
    computations: dict[str, list[Operation]] = {}
    entry, fused, current = "", set(), None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _LINE.match(line)):
            operation = _operation(match[1], match[2])
            current.append(operation)
            if operation.opcode == "fusion":
                fused.update(name for _, name in called(operation))
    if not entry:
        raise ValueError("this text has no ENTRY computation: compiled.as_text() is needed")
    return Program(computations, entry, frozenset(fused))


def _operation(name: str, rest: str) -> Operation:
    """The Operation of a line "type opcode(operands), attributes"."""
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    after = rest[end:].lstrip()
    opcode = _OPCODE.match(after)
    return Operation(name, rest[:end], opcode[1] if opcode else "", after)


def _closing(text: str) -> int:
    """The index after the parenthesis that closes the first one."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i + 1
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def elements(kind: str) -> list[str]:
    """The types that a tuple type "(a, (b, c))" has at its first level: a and (b, c)."""
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(kind):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and not depth):
            parts.append(kind[start:i].strip())
            start = i + 1
    return parts


def nbytes(kind: str) -> int:
    """Bytes of a type, of a tuple all of its arrays, without padding."""
    total = 0
    for name, sizes in _ARRAY.findall(kind):
        if name in BITS:
            shape = [int(n.lstrip("<=")) for n in sizes.split(",") if n]
            total += math.prod(shape) * BITS[name]
    return -(-total // 8)


def shape(kind: str) -> tuple[int, ...]:
    """The shape of an array's type; () of a tuple's."""
    found = None if kind.startswith("(") else _ARRAY.search(kind)
    return tuple(int(n.lstrip("<=")) for n in found[2].split(",") if n) if found else ()


def called(operation: Operation) -> Iterator[tuple[str, str]]:
    """(attribute, computation) of everything that an operation calls."""
    for match in _CALLED.finditer(operation.text):
        rest = operation.text[match.end() :]
        names = rest[1 : rest.index("}")] if rest.startswith("{") else rest
        listed = names.split(",") if rest.startswith("{") else [re.split(r"[,\s)]", names)[0]]
        for name in listed:
            yield match[1], name.strip().lstrip("%")


def executions(program: Program) -> dict[str, int | None]:
    """{computation: times it runs in one call of the program}, of those that run; None in a loop
    whose length the text does not show. Of a conditional every branch counts as if it were taken.
    """
    times: dict[str, int | None] = {}

    def visit(name: str, count: int | None) -> None:
        before = times.get(name, 0)
        times[name] = None if count is None or before is None else before + count
        for operation in program.computations[name]:
            if operation.opcode.endswith(("-done", "-update")):
                continue  # of what its start has called
            inner = count
            if operation.opcode == "while" and count is not None:
                length = trips(program, operation)
                inner = None if length is None else count * length
            for attribute, callee in called(operation):
                if attribute != "to_apply" or operation.opcode == "call":
                    visit(callee, inner)

    visit(program.entry, 1)
    return times


_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"^constant\((-?\d+)\)")


def trips(program: Program, loop: Operation) -> int | None:
    """Iterations of a loop that counts from 0 to a constant, as a scan does: as the compiler noted
    them, or by the one comparison of the loop's condition. None for any other loop."""
    if known := _KNOWN.search(loop.text):
        return int(known[1])
    condition = next(name for attribute, name in called(loop) if attribute == "condition")
    operations = [
        op
        for name in (condition, *(n for o in program.computations[condition] for _, n in called(o)))
        for op in program.computations[name]
    ]
    limits = {m[1] for op in operations if (m := _CONSTANT.match(op.text))}
    compared = [op for op in operations if op.opcode == "compare"]
    if len(limits) != 1 or len(compared) != 1 or "direction=LT" not in compared[0].text:
        return None
    return int(limits.pop())
