"""Values that no run can have: refused by row and column, with the flag that corrects them.

Bounds on units are wide enough for every public study that we know of and narrow enough that N in
millions, C in GFLOPs or a perplexity in place of a loss fall outside. A unit that is stated
(`--unit params=1`) is believed.

    N, D            at least 1e3
    D/N             1e-3 to 1e7 in each row, and .05 in the median: N and D exchanged
    C/(N D)         2 to 40: 6 N D with a fourth of the parameters active, or with attention over
                    long contexts
    loss            at most 12.5 nats in each row: a uniform guess over 262,144 tokens has 12.48,
                    so a run above it has diverged. In the median at most 3 times what Hoffmann et
                    al.'s law gives for its N and D: tokenizers and texts move it by less than 2,
                    while a perplexity is exp(L), 3.2 L and more for L above 1.7. No bound of 5
                    nats: models of 3M parameters have 6 (the law gives 6.1), and so have early
                    points of any run.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

from jaxlm.scaling.reading import units

LEAST = 1e3
WORDS = {"params": "parameters", "tokens": "tokens"}
RATIO, MEDIAN_RATIO = (1e-3, 1e7), 0.05
FACTOR = (2.0, 40.0)
LOSS, TIMES = 12.5, 3.0
# C = 6 N D must hold to this, relative to the rows' own median factor: tables round N and D to
# three digits, and a run ends within a step of its budget; the attention's share is larger.
SAME_FACTOR = 0.03
# Sizes that a smooth curve of C/(N D) against N needs to be one.
SMOOTH = 6
# Chance of as steep a rise by noise alone, below which a loss counts as rising with size.
RISES = 1e-3

Array = np.ndarray
Places = Sequence[str]


def positive(numbers: Mapping[str, Array], names: Mapping[str, str], places: Places) -> None:
    """Raises: ValueError for numbers that are not finite and above 0."""
    for field, values in numbers.items():
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"{places[i]}, column {names.get(field, field)!r}: {values[i]:g}; a number above 0 "
                "is needed (--drop-incomplete leaves such rows out)"
            )


def plausible(
    numbers: Mapping[str, Array],
    names: Mapping[str, str],
    places: Places,
    stated: Sequence[str],
) -> None:
    """Raises: ValueError for numbers of an implausible unit; fields whose unit is stated pass."""
    given = {f: v for f, v in numbers.items() if f not in stated}
    for field in ("params", "tokens"):
        if field in given and (given[field] < LEAST).any():
            i = int(np.argmin(given[field]))
            raise ValueError(
                f"{places[i]}, column {names[field]!r}: {given[field][i]:g} {WORDS[field]}, below "
                f"{LEAST:g}: what does the column count? {_unit_hints(given, names)} says so "
                f"(--unit {field}=1: as it is)"
            )
    if "params" in numbers and "tokens" in numbers and {"params", "tokens"} & set(given):
        _ratio(numbers["tokens"] / numbers["params"], numbers, names, places)
    if {"params", "tokens"} <= set(numbers) and "flops" in given:
        _factor(numbers, names, places)


def _unit_hints(given: Mapping[str, Array], names: Mapping[str, str]) -> str:
    small = [f for f in ("params", "tokens") if f in given and np.median(given[f]) < 1e5]
    likely = {"params": "M (millions) or B", "tokens": "B (billions) or M"}
    return " and ".join(f"--unit {f}={likely[f]}" for f in small or ["params"])


def _ratio(ratio: Array, numbers: Mapping[str, Array], names: Mapping[str, str], places: Places):
    n, d = names.get("params", "C/6D"), names.get("tokens", "C/6N")
    if np.median(ratio) < MEDIAN_RATIO:
        i = int(np.argmin(np.abs(np.log(ratio / np.median(ratio)))))
        raise ValueError(
            f"{places[i]}, columns {n!r} and {d!r}: {numbers['tokens'][i]:.4g} tokens for "
            f"{numbers['params'][i]:.4g} parameters, and few in most rows: are they exchanged "
            f"(--column params={d} --column tokens={n}), or in other units "
            "(--unit tokens=B)? (--unit params=1 --unit tokens=1: as they are)"
        )
    bad = (ratio < RATIO[0]) | (ratio > RATIO[1])
    if bad.any():
        i = int(np.argmax(np.abs(np.log(ratio / np.median(ratio)))))
        raise ValueError(
            f"{places[i]}, columns {n!r} and {d!r}: {numbers['tokens'][i]:.4g} tokens for "
            f"{numbers['params'][i]:.4g} parameters, {ratio[i]:.3g} each, where most rows have "
            f"{np.median(ratio):.3g}: correct the row, or say what the columns count, such as "
            "--unit params=M (--unit params=1 --unit tokens=1: as they are)"
        )


def _factor(numbers: Mapping[str, Array], names: Mapping[str, str], places: Places) -> None:
    factor = numbers["flops"] / (numbers["params"] * numbers["tokens"])
    bad = (factor < FACTOR[0]) | (factor > FACTOR[1])
    if not bad.any():
        return
    i = int(np.argmax(bad))
    usual = float(np.median(factor))
    hint = "--unit flops=GFLOP"
    for name, value in units.PREFIXES.items():
        if FACTOR[0] <= usual * value <= FACTOR[1] and len(name) == 1:
            hint = f"--unit flops={name.upper()}FLOP, which makes it {usual * value:.3g} N D"
    raise ValueError(
        f"{places[i]}, column {names['flops']!r}: C = {factor[i]:.3g} N D, outside "
        f"{FACTOR[0]:g} to {FACTOR[1]:g}: correct the row, or say what the column counts, such as "
        f"{hint} (--unit flops=1: as it is)"
    )


def diverged(loss: Array) -> Array:
    """[n] bool: losses above a uniform guess's; none if most are, which is another unit."""
    high = loss > LOSS
    return high & (2 * high.sum() < np.isfinite(loss).sum())


def losses(
    loss: Array, params: Array, tokens: Array, name: str, places: Places, stated: bool
) -> None:
    """Raises: ValueError for losses in no plausible unit (unless stated), all equal, or that rise
    with size."""
    if not stated:
        expected = 1.82 + 478 / params**0.347 + 2143 / tokens**0.367
        if np.median(loss) > LOSS or np.median(loss / expected) > TIMES:
            i = int(np.argmax(loss))
            raise ValueError(
                f"{places[i]}, column {name!r}: {loss[i]:g}, and {np.median(loss):.3g} in the "
                f"median, where models of these sizes have about {np.median(expected):.2g} nats "
                "per token: --unit loss=perplexity takes its logarithm, --unit loss=bits is bits "
                "per token (--unit loss=nats: as it is)"
            )
        bad = diverged(loss)
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"{places[i]}, column {name!r}: {loss[i]:g} nats, more than a uniform guess over "
                "262,144 tokens: a run that diverged? --drop-incomplete leaves it out (--unit "
                "loss=nats: as it is)"
            )
    if len(loss) > 2 and loss.max() <= loss.min() * (1 + 1e-9):
        raise ValueError(
            f"{places[0]} and all others, column {name!r}: all {len(loss)} losses are {loss[0]:g}, "
            "which no law of size describes; --column loss=COLUMN names the measured one"
        )
    _falls(loss, params, tokens, name, places)


def _falls(loss: Array, params: Array, tokens: Array, name: str, places: Places) -> None:
    """Raises: ValueError if the loss rises with N at fixed D, with D at fixed N, or with both.

    By the slopes of log loss on log N and log D; on log C alone too, for accuracies.
    """
    n = len(loss)
    if n < 5:
        return
    y = np.log(loss)
    x, d = np.log(params), np.log(tokens)
    for what, columns in (("N", (x, d)), ("D", (d, x)), ("N D", (x + d,))):
        # a variable that hardly varies has no slope
        used = [c for c in columns if np.ptp(c) > 0.01]
        if not used or used[0] is not columns[0]:
            continue
        slope, chance = _slope(np.stack([np.ones(n), *used], 1), y)
        if slope > 1e-4 and chance < RISES:
            i = int(np.argmax(y))
            raise ValueError(
                f"{places[i]}, column {name!r}: {loss[i]:g}, the highest, and the loss rises with "
                f"{what} (by {100 * slope:.2g} % for each factor of e): is it an accuracy or "
                "another experiment? --column loss=COLUMN names the loss, --where COLUMN=TEXT "
                "takes one experiment"
            )


def _slope(design: Array, y: Array) -> tuple[float, float]:
    """(coefficient of the second column by least squares, chance of as large a one by noise alone);
    (0, 1) where the columns do not determine it."""
    beta, _, rank, _ = np.linalg.lstsq(design, y, rcond=1e-8)
    free = len(y) - rank
    if rank < design.shape[1] or free < 1:
        return 0.0, 1.0
    rest = y - design @ beta
    error = np.sqrt(np.linalg.inv(design.T @ design)[1, 1] * (rest @ rest) / free)
    return float(beta[1]), float(scipy.special.stdtr(free, -beta[1] / max(error, 1e-300)))


def convention(
    numbers: Mapping[str, Array], names: Mapping[str, str], places: Places
) -> tuple[str, str]:
    """("6ND" or "given", a note or "") of files with N, D and C.

    C/(N D) is to be one number, or one for each N: exact counts are, since attention and the
    embedding are a share of a model that depends on its size.

    Raises: ValueError where C is neither, naming the row.
    """
    n, d = numbers["params"], numbers["tokens"]
    factor = numbers["flops"] / (n * d)
    usual = float(np.median(factor))
    off = np.abs(np.log(factor / usual))
    if off.max() <= np.log1p(SAME_FACTOR):
        return "6ND" if abs(usual / 6 - 1) <= SAME_FACTOR else "given", ""
    if _by_size(n, d, factor):
        return "given", (
            f"C is {factor.min():.3g} to {factor.max():.3g} N D, one number for each N: exact "
            "counts, taken as given"
        )
    worst = int(np.argmax(off))
    raise ValueError(
        f"{places[worst]}, column {names['flops']!r}: C = {factor[worst]:.4g} N D, of most rows "
        f"{usual:.4g} N D: mixed conventions; --where COLUMN=TEXT selects one, and if C counts "
        "more than 6 N D say which counting it is, such as --counting total 'exact causal'"
    )


def _by_size(n: Array, d: Array, factor: Array) -> bool:
    """Whether the factor depends on N alone: one number at each N, or smooth in it."""
    order = np.argsort(n)
    group = np.concatenate([[0], np.cumsum(np.diff(np.log(n[order])) > 0.01)])
    f, tokens = np.log(factor[order]), np.log(d[order])
    several = 0
    sizes = int(group[-1]) + 1
    for g in range(sizes):
        at = group == g
        if np.ptp(f[at]) > 2 * np.log1p(SAME_FACTOR):
            return False
        several += bool(np.ptp(tokens[at]) > 0.05)
    if 2 * several >= sizes:
        return True
    if sizes < SMOOTH:
        return False
    x = np.log(n[order])
    rest = f - np.polyval(np.polyfit(x - x.mean(), f, 2), x - x.mean())
    return bool(np.abs(rest).max() <= np.log1p(SAME_FACTOR))


def unique(unique_tokens: Array, tokens: Array, name: str, places: Places) -> None:
    """Raises: ValueError for more unique tokens than tokens."""
    if (unique_tokens > tokens * (1 + 1e-9)).any():
        i = int(np.argmax(unique_tokens / tokens))
        raise ValueError(
            f"{places[i]}, column {name!r}: {unique_tokens[i]:g} unique tokens of {tokens[i]:g} "
            "trained on; is a unit missing, such as --unit tokens=B?"
        )


def once(run: Array, tokens: Array, name: str, places: Places) -> None:
    """Raises: ValueError for a run that is twice at one number of tokens."""
    first: dict[tuple[str, float], int] = {}
    for i, key in enumerate(zip(run.tolist(), tokens.tolist())):
        if key in first:
            raise ValueError(
                f"{places[i]}, column {name!r}: run {key[0]!r} is at {key[1]:g} tokens in "
                f"{seen_from(places[first[key]], places[i])} too; a run has one loss there "
                "(--run-columns A B names what tells runs apart)"
            )
        first[key] = i


def repeats(keys: Sequence[tuple[float, ...]]) -> list[tuple[int, int]]:
    """(row, the earlier row that it equals) of keys."""
    first: dict[tuple[float, ...], int] = {}
    return [(i, j) for i, key in enumerate(keys) for j in [first.setdefault(key, i)] if j != i]


def seen_from(place: str, other: str) -> str:
    """A place in a message that has named another: without the file where it is the same."""
    file, _, row = place.rpartition(" row ")
    return f"row {row}" if file == other.rpartition(" row ")[0] else place
