"""Columns of a file matched to the fields of a table, with their units."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxlm.scaling.reading import grid, units

# field of Table -> names of a column that holds it, in small letters and without punctuation.
ALIASES: dict[str, tuple[str, ...]] = {
    "params": (
        *("n", "params", "parameters", "n_params", "num_params", "params_n", "nparams"),
        *("model_size", "size", "model_params", "param_count", "parameter_count", "num_parameters"),
        *("n_parameters", "number_of_parameters", "total_params", "total_parameters"),
    ),
    "tokens": (
        *("d", "tokens", "n_tokens", "num_tokens", "tokens_d", "training_tokens", "train_tokens"),
        *("tokens_seen", "total_tokens", "tokens_trained", "consumed_tokens", "data_size"),
        *("pretraining_data_size", "dataset_tokens", "number_of_tokens", "ntokens"),
    ),
    "flops": (
        *("c", "flops", "flop", "compute", "training_flop", "training_flops", "train_flops"),
        *("total_flops", "total_flop", "train_flop", "training_compute", "train_compute"),
        *("total_compute", "n_flops", "num_flops", "compute_budget", "flops_total"),
    ),
    "loss": (
        *("loss", "l", "val_loss", "validation_loss", "final_loss", "nll", "nats_per_token"),
        *("eval_loss", "valid_loss", "test_loss", "lm_loss", "loss_val", "loss_validation"),
        *("final_val_loss", "final_validation_loss", "val_nll", "cross_entropy", "ce_loss"),
        *("held_out_loss", "heldout_loss", "final_eval_loss", "pretraining_loss"),
    ),
    "loss_se": (
        *("loss_se", "loss_std", "loss_stderr", "loss_sem", "loss_sd", "loss_standard_error"),
        *("val_loss_se", "val_loss_std", "val_loss_stderr", "stderr", "std_err", "se"),
        *("standard_error", "loss_std_err", "se_loss"),
    ),
    "unique": (
        *("unique", "u", "unique_tokens", "unique_tokens_u", "tokens_u", "n_unique_tokens"),
        *("num_unique_tokens",),
    ),
    "run": ("run", "run_id", "run_name"),
    "counting": ("counting", "param_count", "params_counting"),
}
# Taken where no name above is there.
LESSER: dict[str, tuple[str, ...]] = {
    "params": (
        *("non_embedding_params", "params_non_embedding", "non_embedding_parameters"),
        *("non_embedding_param_size", "params_no_embed", "n_non_embedding", "nonembedding_params"),
        *("non_vocab_parameters", "active_params", "n_active", "dense_parameter_count"),
        *("total_parameter_count",),
    ),
}
NUMBERS = ("params", "tokens", "flops", "loss", "loss_se", "unique")
# Names that a unit alone implies: total_gflops is total_flops in GFLOP, val_bpb a val_loss.
_ALONE = {"flops": "flops", "loss": "loss"}
_NON_EMBEDDING = re.compile(r"non_?(embed|vocab)|no_embed|without_embed")


class Column(NamedTuple):
    """A field's column."""

    name: str
    unit: units.Unit | None  # None: none is named
    stated: bool = False  # whether the unit was stated by the reader, not by the header


def resolve(
    sheet: grid.Grid,
    named: Mapping[str, str],
    stated: Mapping[str, str],
    columns_of_run: Sequence[str] = (),
    fields: Sequence[str] = tuple(ALIASES),
) -> dict[str, Column]:
    """{field: its column}, those named first; two of params, tokens, flops, and loss are there.

    named: {field: column}; stated: {field: unit}. fields: those to look for; without loss among
    them none is needed.

    Raises: ValueError for what is missing or not known, with the flag that sets it.
    """
    path, header = sheet.path, sheet.header
    for field in (*named, *stated):
        if field not in ALIASES:
            known = ", ".join(ALIASES)
            raise ValueError(f"--column, --unit: no field {field!r}; there are {known}")
    for field, column in named.items():
        if column not in header:
            raise ValueError(
                f"{path}: no column {column!r} for --column {field}={column}"
                f"{_near(column, header)}; it has {_list(header)}"
            )
    doubled = [f for f, c in named.items() if list(named.values()).count(c) > 1]
    if doubled:
        column = named[doubled[0]]
        raise ValueError(f"--column: {column!r} is named for {' and '.join(doubled)}")
    for column in columns_of_run:
        if column not in header:
            raise ValueError(
                f"{path}: no column {column!r} for --run-columns{_near(column, header)}; it has "
                f"{_list(header)}"
            )
    out = {f: Column(c, _unit_of(f, c)) for f, c in named.items()}
    for field in fields:
        if field not in out and not (field == "run" and columns_of_run):
            taken = {c.name for c in out.values()}
            column = _search(path, field, [h for h in header if h not in taken])
            if column is not None:
                out[field] = column
    _enough(sheet, out, "loss" in fields)
    for field, text in stated.items():
        if field not in out or field not in NUMBERS:
            raise ValueError(
                f"{path}: --unit {field}={text}: there is no column of numbers for {field}; there "
                f"are {', '.join(f for f in out if f in NUMBERS)}"
            )
    return {f: _with_unit(f, c, stated.get(f)) for f, c in out.items()}


def _with_unit(field: str, column: Column, text: str | None) -> Column:
    if text is None:
        return column
    unit = units.unit(field, text) if field in NUMBERS else None
    if unit is None:
        raise ValueError(
            f"--unit {field}={text}: no unit of {field}; such as {units.examples(field)}"
        )
    return Column(column.name, unit, True)


def _search(path: str, field: str, header: Sequence[str]) -> Column | None:
    """The column of a field by its name. Raises: ValueError where several could be it."""
    for names in (ALIASES[field], LESSER.get(field, ())):
        for ends in (_full_name, _last):
            matches = [
                Column(h, unit)
                for h in header
                for unit in [_match(field, ends(h), names)]
                if unit is not None
            ]
            # a loss in nats is meant where another column has it in bits or as a perplexity
            bare = [m for m in matches if field == "loss" and m.unit == units.ONE]
            matches = bare or matches
            if len(matches) > 1:
                several = [m.name for m in matches]
                # the counting's column has a name that parameters have in other files
                if field == "params" and "param_count" in map(units.plain, several):
                    matches = [m for m in matches if units.plain(m.name) != "param_count"]
            if len(matches) > 1:
                several = [m.name for m in matches]
                raise ValueError(
                    f"{path}: columns {_list(several)} may all be {field}; name the one that is "
                    f"meant: {flag(field, several[-1])}"
                )
            if matches:
                unit = matches[0].unit
                return Column(matches[0].name, None if unit == units.ONE else unit)
    return None


def _full_name(name: str) -> str:
    return name


def _last(name: str) -> str:
    """The last part of a nested name: n_params of `config.n_params`, loss of `eval/loss`."""
    parts = re.split(r"[./]", re.sub(r"\(.*?\)|\[.*?\]", "", name))
    return parts[-1] if len(parts) > 1 else ""


def _match(field: str, name: str, names: Sequence[str]) -> units.Unit | None:
    """The unit of a header that is one of the names; a Unit without text where none is in it."""
    if units.plain(name) in names:
        return units.ONE
    if field not in NUMBERS:
        return None
    for base, text in _splits(name):
        unit = units.unit(field, text)
        if unit is None:
            continue
        alone = _ALONE.get(field)
        full = "_".join(filter(None, (base, alone))) if alone and _speaks(field, text) else base
        if base in names or full in names:
            return unit
    return None


def _speaks(field: str, text: str) -> bool:
    """Whether a unit names its field by itself: gflops and bpb do, B does not."""
    name = units.plain(text)
    if field == "flops":
        return len(name) > 2 and name not in units.PREFIXES
    return name not in ("nat", "nats")


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """(name, unit) of `name (unit)`, `name [unit]` and of `name_unit` with one to five words."""
    enclosed = re.fullmatch(r"(.*?)\s*[(\[]\s*(.*?)\s*[)\]]\s*", name)
    if enclosed:
        yield units.plain(enclosed[1]), re.sub(r"^in\s+", "", enclosed[2])
    words = units.plain(name).split("_")
    for count in range(1, min(len(words), 5) + 1):
        base = words[:-count]
        yield "_".join(base[:-1] if base[-1:] == ["in"] else base), "_".join(words[-count:])


def _unit_of(field: str, name: str) -> units.Unit | None:
    """The unit in the header of a column that was named; only a unit that cannot be a word."""
    if field not in NUMBERS or units.plain(name) in (*ALIASES[field], *LESSER.get(field, ())):
        return None
    for base, text in _splits(name):
        unit = units.unit(field, text)
        enclosed = text not in units.plain(name).split("_") or f"({text})" in name
        if unit is not None and (enclosed or base in ALIASES[field] or len(text) > 2):
            return unit
    return None


def _enough(sheet: grid.Grid, out: Mapping[str, Column], loss: bool) -> None:
    if loss and "loss" not in out:
        raise ValueError(_missing(sheet, "loss", out))
    have = [f for f in ("params", "tokens", "flops") if f in out]
    if len(have) < 2:
        lack = next(f for f in ("params", "tokens", "flops") if f not in out)
        raise ValueError(
            f"{_missing(sheet, lack, out)}; two of params, tokens, flops are needed, and "
            f"{have or 'none'} found"
        )


def _missing(sheet: grid.Grid, field: str, out: Mapping[str, Column]) -> str:
    taken = {c.name for c in out.values()}
    near = [
        name
        for name, cell in zip(sheet.header, sheet.rows[0].cells)
        if name not in taken
        and any(c.isdigit() for c in cell)
        and set(units.plain(name).split("_")) & {field, *ALIASES[field]}
    ]
    shown = flag(field, near[0] if near else "COLUMN")
    return (
        f"{sheet.path}: no column for {field} ({', '.join(ALIASES[field][:4])}, ...); name it, "
        f"such as {shown}; it has {_list(sheet.header)}"
    )


def flag(field: str, column: str) -> str:
    """`--column field=column`, quoted where a shell needs it."""
    text = f"{field}={column}"
    return f"--column {text}" if re.fullmatch(r"[\w=./+:-]+", text) else f"--column '{text}'"


def counts(name: str) -> str:
    """The counting of parameters that a header names: "non-embedding", else "given"."""
    return "non-embedding" if _NON_EMBEDDING.search(units.plain(name)) else "given"


def _near(name: str, header: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, header, 1)
    return f" (nearest: {close[0]!r})" if close else ""


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:20])
    return f"[{shown}]" if len(names) <= 20 else f"[{shown}, ... {len(names)} in all]"
