"""Log-likelihoods of continuations, packed: what tasks, rolling perplexity and curation read.

requests = [Request(context, continuation) for ...]          # token ids
scored = score(scorer(model, plan), params, requests, seq=1024, plan=plan)
scored[0].log_prob, scored[0].greedy

Truncation and windows are those of lm-eval 0.4 (`HFLM._loglikelihood_tokens`,
`utils.get_rolling_token_windows`), so that its figures and these are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import check, config, param
from jaxlm.core.batch import Batch
from jaxlm.data import pack
from jaxlm.models import model as models
from jaxlm.models.model import Model
from jaxlm.ops.losses import cross_entropy
from jaxlm.parallel import transfer
from jaxlm.parallel.plan import Plan

ROWS = 16  # of a batch, which several requests share


class Request(NamedTuple):
    """Token ids to predict, and those that are read before them: at least one of each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """Scores of a Request. log_probs: float32[tokens of the continuation], in nats; greedy: whether
    each of them was the likeliest token, the first of equals."""

    log_probs: np.ndarray
    greedy: bool

    @property
    def log_prob(self) -> float:
        """Nats of the whole continuation, summed in float64."""
        return float(self.log_probs.sum(dtype=np.float64))


class Places(NamedTuple):
    """Scores of every target of a batch: log_probs float32[B, T]; likeliest bool[B, T]."""

    log_probs: jax.Array
    likeliest: jax.Array


# (params, Batch [B, T]) -> Places
Scorer = Callable[[param.Tree, Batch], Places]


def scorer(model: Model, plan: Plan) -> Scorer:
    """The compiled function that scores a batch; the logits of a whole batch are never held.

    Raises: ValueError for a model that is no decoder.
    """
    if model.kind != "decoder":
        raise ValueError(
            f"a {config.kind(type(model.cfg))} model gives a text no likelihood from left to "
            "right; a decoder does"
        )

    def place(head: param.Tree, x: jax.Array, target: jax.Array) -> Places:
        logits = model.unembed(head, x)  # [B, C, V]
        ours = cross_entropy.at_target(logits, target)
        log_probs = ours - jax.nn.logsumexp(logits, axis=-1)
        return Places(log_probs, jnp.argmax(logits, axis=-1) == target)

    def score(params: param.Tree, rows: Batch) -> Places:
        x = models.read(model, params, rows).x
        head = model.head(params)
        return cross_entropy.per_token(place, head, (x, rows.targets), plan.loss_tokens)

    return jax.jit(score, out_shardings=plan.replicated)


def score(
    compiled: Scorer,
    params: param.Tree,
    requests: Sequence[Request],
    *,
    seq: int,
    plan: Plan,
    rows: int = ROWS,
) -> list[Likelihood]:
    """The Likelihood of every request, in order. Several share a row [seq] and none sees another.

    A request reads its last `seq` + 1 tokens: the context loses its first ones. Every process gives
    all requests and gets all scores.

    Raises: ValueError for a request without a context or a continuation, or with a continuation of
    more than `seq` tokens; FloatingPointError for log-probabilities that are not finite.
    """
    check.field("seq", seq, seq >= 1, "at least 1")
    parts = transfer.reader(plan).count
    check.field("rows", rows, rows >= 1 and rows % parts == 0, f"a positive multiple of {parts}")
    for number, request in enumerate(requests):
        _refuse(number, request, seq)
    if not requests:
        return []
    texts = _Texts([_cut(request, seq) for request in requests])
    packed = pack.pack(np.array([len(text) for text in texts.tokens]), seq, "best_fit")
    reader = pack.Reader(packed, texts)
    out: dict[int, Likelihood] = {}
    for start in range(0, len(packed), rows):
        numbers = np.arange(start, min(start + rows, len(packed)))
        places = jax.device_get(compiled(params, _batch(reader, numbers, rows, plan)))
        for request, row, place in _spans(packed, numbers):
            n = len(requests[request].continuation)
            last = slice(place.stop - n, place.stop)
            log_probs = np.asarray(places.log_probs[row, last])
            if not np.isfinite(log_probs).all():
                raise FloatingPointError(f"request {request}: log-probabilities are not finite")
            out[request] = Likelihood(log_probs, bool(places.likeliest[row, last].all()))
    return [out[number] for number in range(len(requests))]


def _refuse(number: int, request: Request, seq: int) -> None:
    if not len(request.context) or not len(request.continuation):
        empty = "continuation" if len(request.context) else "context"
        raise ValueError(
            f"request {number}: its {empty} is empty; a token has to be read, and one predicted"
        )
    if len(request.continuation) > seq:
        raise ValueError(
            f"request {number}: a continuation of {len(request.continuation)} tokens; at most "
            f"{seq} fit, the length of a row"
        )


def _cut(request: Request, seq: int) -> np.ndarray:
    """The last seq + 1 tokens: int32, of which all but the last are read."""
    return np.array([*request.context, *request.continuation][-(seq + 1) :], np.int32)


class _Texts(NamedTuple):
    """Documents of a `pack.Reader`."""

    tokens: list[np.ndarray]

    def docs(self, numbers: Sequence[int]) -> list[np.ndarray]:
        return [self.tokens[number] for number in numbers]


def _batch(reader: pack.Reader, numbers: np.ndarray, rows: int, plan: Plan) -> Any:
    """The batch [rows, seq] on devices; rows beyond `numbers` are empty."""
    part = reader.read(numbers)
    missing = rows - len(numbers)
    whole = Batch(*(np.pad(array, ((0, missing), (0, 0))) for array in part))
    return transfer.batch(plan, transfer.own(plan, whole))


def _spans(packed: pack.Rows, numbers: np.ndarray) -> Iterator[tuple[int, int, slice]]:
    """(request, row among `numbers`, its columns) of every request of these rows."""
    for row, number in enumerate(numbers):
        column = 0
        for piece in range(int(packed.first[number]), int(packed.first[number + 1])):
            size = int(packed.size[piece])
            yield int(packed.doc[piece]), row, slice(column, column + size)
            column += size


def windows(tokens: Sequence[int], begin: int, seq: int) -> Iterator[Request]:
    """Requests that predict every token of a text once, each with as much before it as fits: the
    first window reads `begin`, each of the others the `seq` tokens before its last.

    A text of n tokens gives ceil(n / seq) windows. The last one predicts what is left, with a
    context as long as fits.
    """
    first = min(seq, len(tokens))
    if first:
        yield Request([begin], tokens[:first])
    for done in range(first, len(tokens), seq):
        end = min(done + seq, len(tokens))
        # [end - seq - 1, end) holds seq + 1 tokens: all that a row can read and predict
        yield Request(tokens[max(end - seq - 1, 0) : done], tokens[done:end])
