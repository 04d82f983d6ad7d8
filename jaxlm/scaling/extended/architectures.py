"""Laws of loss in what is not only N and D: experts, sparsity, upcycled tokens, vocabulary.

    record = architectures.run("moe", train, test, replicates=200, level=0.95, seed=0)

Each form is a sum of columns with linear coefficients, whose exponents are searched: starts by
variable projection over a grid, then least squares of all parameters. Every fit is tried on rows
that it has not seen: those of a test file, or those of the largest value of the first input.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling.laws import bootstrap, least_squares

Array = np.ndarray
Record = dict[str, Any]

# Starts that are refined; replicates solved together, for memory.
REFINED, TOGETHER = 12, 50


class Form(NamedTuple):
    """One law. y = sum_j coefficients_j columns_j(exponents, inputs)."""

    inputs: tuple[tuple[str, tuple[str, ...]], ...]
    """Fields, each with the usual names of its column."""
    linear: tuple[str, ...]
    """Coefficients."""
    others: tuple[str, ...]
    """Parameters that the columns depend on."""
    grid: tuple[tuple[float, ...], ...]
    """Starting values of `others`."""
    columns: Callable[[Array, Sequence[Array]], list[Array]]
    """(others [R,q], inputs m x [n]) -> one array [R,n] or [n] a coefficient."""
    positive: bool
    """Coefficients are at least 0."""
    log: bool
    """y is the decimal logarithm of the loss, or the loss itself (which may be negative)."""
    source: str
    """Paper and equation."""


class Fitted(NamedTuple):
    """A form's least squares."""

    theta: Array  # [k] coefficients, then the others
    rmse: float  # of y
    reached: float


def run(
    name: str,
    train: Mapping[str, Array],
    test: Mapping[str, Array] | None,
    replicates: int,
    level: float,
    seed: int,
    columns: Mapping[str, str] = {},
) -> Record:
    """The record of a form fitted to the columns of one file and tried on another's.

    columns: {field: column} of fields that are not result by their usual names.

    Raises: ValueError naming the form, the column, the row, or too few rows.
    """
    if name not in FORMS:
        raise ValueError(f"--form {name!r} is none of {', '.join(FORMS)}")
    form = FORMS[name]
    x, y = inputs(form, train, columns)
    held = np.zeros(len(y), bool) if test is not None else _largest(x)
    unseen = (
        inputs(form, test, columns, fitted=False)
        if test is not None
        else ([v[held] for v in x], y[held])
    )
    seen = [v[~held] for v in x], y[~held]
    fitted = fit(form, x, y)
    tested = fitted if test is not None else fit(form, *seen)
    draws = resample(form, fitted, x, y, replicates, seed)
    low, high = bootstrap.interval(draws, level)
    names = (*form.linear, *form.others)
    return {
        "form": name,
        "source": form.source,
        "rows": len(y),
        "theta": {
            k: [float(fitted.theta[i]), [float(low[i]), float(high[i])]]
            for i, k in enumerate(names)
        },
        "rmse": fitted.rmse,
        "reached": fitted.reached,
        "test": {
            "rows": len(unseen[1]),
            "fitted": len(seen[1]),
            "of": "the test file" if test is not None else "the largest inputs",
            **_errors(form, tested, *unseen),
        },
    }


def inputs(
    form: Form, data: Mapping[str, Array], columns: Mapping[str, str], *, fitted: bool = True
) -> tuple[list[Array], Array]:
    """(the form's inputs m x [n], losses [n]) of a file's columns; what is fitted must vary.

    Raises: ValueError naming the column and the row.
    """
    wanted = (*form.inputs, ("loss", LOSSES))
    unknown = set(columns) - {field for field, _ in wanted}
    if unknown:
        raise ValueError(
            f"--column {sorted(unknown)[0]}: the form reads {', '.join(f for f, _ in wanted)}"
        )
    out = []
    for field, names in wanted:
        there = [columns[field]] if field in columns else [c for c in names if c in data]
        if not there or there[0] not in data:
            given = columns.get(field)
            what = f"column {given!r}" if given else f"column for {field} ({', '.join(names)})"
            raise ValueError(f"no {what}; name it, --column {field}=NAME; there are {list(data)}")
        values = data[there[0]]
        if values.dtype.kind != "f":
            raise ValueError(f"column {there[0]!r}: {str(values[0])!r} is no number")
        least = -np.inf if field == "loss" and not form.log else 0.0
        bad = np.flatnonzero(~(np.isfinite(values) & (values > least)))
        if bad.size:
            raise ValueError(
                f"row {bad[0] + 2}, column {there[0]!r}: {values[bad[0]]:g}; a finite number"
                f"{'' if least < 0 else ' above 0'} is needed"
            )
        if len(values) > 1 and field != "loss" and fitted and np.ptp(values) == 0:
            raise ValueError(f"column {there[0]!r}: every row has {values[0]:g}")
        out.append(values)
    return out[:-1], out[-1]


def fit(form: Form, x: Sequence[Array], y: Array) -> Fitted:
    """The form's least squares on inputs m x [n] and losses [n].

    Raises: ValueError for fewer rows than parameters.
    """
    k = len(form.linear) + len(form.others)
    if len(y) < k + 1:
        raise ValueError(f"{len(y)} rows; the form's {k} parameters need {k + 1}")
    from scipy import optimize

    target = np.log10(y) if form.log else y
    starts = []
    for others in itertools.product(*form.grid):
        with np.errstate(all="ignore"):
            design = np.stack(_design(form, np.array([others]), x, len(y)), -1)[0]
        if not np.isfinite(design).all():
            continue
        unit = np.sqrt((design**2).sum(0)) + 1e-300
        if form.positive:
            linear, _ = optimize.nnls(design / unit, target)
        else:
            linear, *_ = np.linalg.lstsq(design / unit, target, rcond=1e-10)
        cost = float(np.sum((target - design / unit @ linear) ** 2))
        starts.append((cost, [*(linear / unit), *others]))
    starts.sort(key=lambda s: s[0])
    solved = least_squares.minimise(
        _value(form, x, len(y)),
        np.array([s for _, s in starts[:REFINED]]),
        target,
        low=_low(form),
    )
    theta, cost, reached = least_squares.best(solved)
    return Fitted(theta, float(np.sqrt(cost / len(y))), reached)


def predict(form: Form, theta: Array, x: Sequence[Array]) -> Array:
    """Losses [n] at inputs m x [n]."""
    value = _value(form, x, len(x[0]))(theta[None])[0]
    return 10**value if form.log else value


def resample(
    form: Form, fitted: Fitted, x: Sequence[Array], y: Array, replicates: int, seed: int
) -> Array:
    """[R,k] refits to rows drawn with replacement."""
    n = len(y)
    target = np.log10(y) if form.log else y
    random = np.random.default_rng(seed)
    out = []
    for first in range(0, replicates, TOGETHER):
        many = min(TOGETHER, replicates - first)
        weights = random.multinomial(n, np.full(n, 1 / n), many).astype(float)
        start = np.repeat(fitted.theta[None], many, 0)
        solved = least_squares.minimise(
            _value(form, x, n), start, target, weights, low=_low(form), steps=100
        )
        out.append(solved.theta)
    return np.concatenate(out)


def _design(form: Form, others: Array, x: Sequence[Array], n: int) -> list[Array]:
    return [np.broadcast_to(c, (len(others), n)) for c in form.columns(others, x)]


def _low(form: Form) -> Array:
    """[k] lower bounds."""
    bound = 0.0 if form.positive else -np.inf
    return np.array([bound] * len(form.linear) + [-np.inf] * len(form.others))


def _value(form: Form, x: Sequence[Array], n: int) -> least_squares.Value:
    m = len(form.linear)

    def value(theta: Array) -> Array:
        columns = _design(form, theta[:, m:], x, n)
        return sum((theta[:, i, None] * columns[i] for i in range(1, m)), theta[:, :1] * columns[0])

    return value


def _largest(x: Sequence[Array]) -> Array:
    """[n] bool: the tenth of the rows with the largest product of the inputs, at least two."""
    size = np.sum(np.log(np.stack(x)), 0)
    held = np.zeros(len(size), bool)
    held[np.argsort(-size, kind="stable")[: max(2, len(size) // 10)]] = True
    return held


def _errors(form: Form, fitted: Fitted, x: Sequence[Array], y: Array) -> Record:
    """{r2, mean, mae, largest}: of the loss, predicted minus measured."""
    error = predict(form, fitted.theta, x) - y
    spread = float(np.sum((y - y.mean()) ** 2))
    return {
        "r2": 1 - float(np.sum(error**2)) / spread if spread > 0 else None,
        "mean": float(error.mean()),
        "mae": float(np.abs(error).mean()),
        "largest": float(np.abs(error).max()),
    }


def text(record: Record) -> str:
    """The report of a form."""
    test = record["test"]
    lines = [f"{record['form']}: {record['source']}", f"  {record['rows']} rows"]
    for name, (value, ends) in record["theta"].items():
        lines.append(f"  {name:<10}{value:>14.6g}  [{ends[0]:.4g}, {ends[1]:.4g}]")
    r2 = "-" if test["r2"] is None else f"{test['r2']:.4f}"
    lines.append(
        f"  on {test['rows']} rows of {test['of']} (fitted on {test['fitted']}): R2 {r2}, loss "
        f"{test['mean']:+.4f} on average, {test['mae']:.4f} mean absolute, {test['largest']:.4f} "
        f"largest; {record['reached']:.0%} of starts agree"
    )
    return "\n".join(lines)


# --- The forms ---------------------------------------------------------------------------------

LOSSES = ("loss", "val_loss", "loss_validation", "lm_loss", "unigram_normalized_loss")
_PARAMS = ("params", "N", "dense_parameter_count", "non_vocab_parameters", "Non_vocab_parameters")
_EXPONENTS = (0.1, 0.25, 0.5, 0.8)


def _power(base: Array, exponent: Array) -> Array:
    """base [n] to exponents [R]: [R,n]."""
    return np.exp(exponent[:, None] * np.log(base))


def _moe(others: Array, x: Sequence[Array]) -> list[Array]:
    """Saturated experts: 1/E' = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max."""
    experts, params = x
    start, most = np.exp(others).T[:, :, None]
    e = np.log10(1 / (1 / (experts - 1 + 1 / (1 / start - 1 / most)) + 1 / most))
    n = np.log10(params)
    return [np.broadcast_to(n, e.shape), e, n * e, np.ones_like(e)]


def _sparsity(others: Array, x: Sequence[Array]) -> list[Array]:
    a, b, c = others.T
    p, n = (np.log(v) for v in x)
    return [np.exp(-a[:, None] * p - b[:, None] * n + c[:, None] * p * n), np.ones_like(p)]


def _sparsity_tokens(others: Array, x: Sequence[Array]) -> list[Array]:
    a, b, c, beta = others.T
    return [*_sparsity(np.stack([a, b, c], 1), x[:2]), _power(x[2], -beta)]


def _upcycling(others: Array, x: Sequence[Array]) -> list[Array]:
    a, b, c, beta = others.T
    first, second = np.log(x[0]), np.log(x[1])
    tokens = -a[:, None] * first + (c[:, None] * first - b[:, None]) * second
    return [np.exp(tokens), _power(x[2], -beta), np.ones_like(first)]


def _vocabulary(others: Array, x: Sequence[Array]) -> list[Array]:
    alpha, gamma, beta, phi = others.T
    params, vocab, characters = (v / np.exp(np.mean(np.log(v))) for v in x)
    shared = np.log(characters) - phi[:, None] * np.log(vocab)
    parts = [_power(params, -alpha), _power(vocab, -gamma), np.exp(-beta[:, None] * shared)]
    return [*parts, np.ones_like(params)]


FORMS: dict[str, Form] = {
    "moe": Form(
        inputs=(("experts", ("experts", "num_experts", "E")), ("params", _PARAMS)),
        linear=("a", "b", "c", "d"),
        others=("log_E_start", "log_E_max"),
        grid=((0.2, 0.7, 1.5), (4.0, 5.5, 7.0)),
        columns=_moe,
        positive=False,
        log=True,
        source="log10 L = a log10 N + b log10 E' + c log10 N log10 E' + d, E' of E experts "
        "saturating from E_start to E_max: Clark et al. 2022 (arXiv:2202.01169), eq. 1",
    ),
    "sparsity": Form(
        inputs=(("sparsity", ("sparsity", "P")), ("active", ("active", "N_active"))),
        linear=("A", "E"),
        others=("a", "b", "c"),
        grid=(_EXPONENTS, _EXPONENTS, (-0.1, 0.0, 0.1)),
        columns=_sparsity,
        positive=True,
        log=False,
        source="L = A P^-a N^(-b + c log P) + E of total over active parameters P and active N: "
        "ScaleBench (arXiv:2604.22753), on the runs of Liew et al. 2025 (arXiv:2502.03009)",
    ),
    "sparsity_tokens": Form(
        inputs=(
            ("sparsity", ("sparsity", "P")),
            ("active", ("active", "N_active")),
            ("tokens", ("tokens", "D", "D2")),
        ),
        linear=("A", "E", "B"),
        others=("a", "b", "c", "beta"),
        grid=(_EXPONENTS, _EXPONENTS, (-0.1, 0.0, 0.1), _EXPONENTS),
        columns=_sparsity_tokens,
        positive=True,
        log=False,
        source="the form sparsity and B D^-beta of the tokens that the sparse model is trained on",
    ),
    "upcycling": Form(
        inputs=(
            ("dense_tokens", ("dense_tokens", "D1")),
            ("tokens", ("tokens", "D", "D2")),
            ("active", ("active", "N_active")),
        ),
        linear=("A", "B", "E"),
        others=("a", "b", "c", "beta"),
        grid=(_EXPONENTS, _EXPONENTS, (0.0, 0.02, 0.1), _EXPONENTS),
        columns=_upcycling,
        positive=True,
        log=False,
        source="L = A D1^-a D2^(-b + c log D1) + B N^-beta + E: Liew et al. 2025 "
        "(arXiv:2502.03009)",
    ),
    "vocabulary": Form(
        inputs=(
            ("params", _PARAMS),
            ("vocab", ("vocab", "vocab_size", "V")),
            ("characters", ("characters", "num_characters", "H")),
        ),
        linear=("A", "B", "C", "E"),
        others=("alpha", "gamma", "beta", "phi"),
        grid=(_EXPONENTS, _EXPONENTS, _EXPONENTS, (0.0, 0.1, 0.3)),
        columns=_vocabulary,
        positive=False,
        log=False,
        source="L = A N^-alpha + B V^-gamma + C (H V^-phi)^-beta + E of parameters without the "
        "vocabulary's, vocabulary and characters, each over its geometric mean, after Tao et al. "
        "2024 (arXiv:2407.13623), approach 3",
    ),
}
