"""Log-likelihoods of continuations: against float64 NumPy, lm-eval's rules, and one another."""

import jax
import numpy as np
import pytest

from jaxlm.core import batch as batches
from jaxlm.eval import log_likelihoods
from jaxlm.eval.log_likelihoods import Request
from jaxlm.models import model as models
from jaxlm.parallel import plan
from tests import programs
from tests.families.sizes import T, V

PLAN = plan.Plan()


def requests(count=40):
    draw = np.random.default_rng(0)
    sizes = [(draw.integers(1, T), draw.integers(1, T // 2)) for _ in range(count)]
    return [
        Request(draw.integers(0, V, a).tolist(), draw.integers(0, V, b).tolist()) for a, b in sizes
    ]


def expected(family, request):
    """Log-probabilities and likeliest tokens from the logits of the request alone, in float64."""
    shape = programs.shape(family)
    tokens = [*request.context, *request.continuation][-(T + 1) :]
    rows = batches.rows([tokens[:-1]], T)
    hidden = models.read(shape, programs.weights(family), rows).x
    logits = np.asarray(shape.unembed(shape.head(programs.weights(family)), hidden), np.float64)[0]
    logits = logits[: len(tokens) - 1][-len(request.continuation) :]
    peak = logits.max(-1, keepdims=True)
    log_probs = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    picked = log_probs[np.arange(len(logits)), request.continuation]
    return picked, (logits.argmax(-1) == request.continuation).all()


@pytest.fixture(scope="module")
def scored():
    compiled = log_likelihoods.scorer(programs.shape("llama-all"), PLAN)

    def score(given, rows=4):
        weights = programs.weights("llama-all")
        return log_likelihoods.score(compiled, weights, given, seq=T, plan=PLAN, rows=rows)

    return score


def test_scores_are_those_of_each_request_alone(scored):
    """Packed into rows, in batches with rows to spare; contexts that are too long lose their first
    tokens."""
    given = requests()
    assert any(len(r.context) + len(r.continuation) > T + 1 for r in given)
    got = scored(given)
    for request, one in zip(given, got, strict=True):
        log_probs, greedy = expected("llama-all", request)
        np.testing.assert_allclose(one.log_probs, log_probs, atol=1e-5)
        assert one.greedy == greedy
        assert one.log_prob == pytest.approx(log_probs.sum(), abs=1e-4)


def test_order_and_batch_change_nothing(scored):
    given = requests(24)
    got = scored(given)
    for other in (
        scored(given, rows=8),
        scored(given[::-1])[::-1],
        [scored([g])[0] for g in given],
    ):
        for a, b in zip(got, other, strict=True):
            np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)
            assert a.greedy == b.greedy


def test_a_greedy_continuation_is_called_that(scored):
    """The model's own likeliest tokens, one after the other, and with one changed."""
    shape, weights = programs.shape("llama-all"), programs.weights("llama-all")
    read = jax.jit(
        lambda rows: shape.unembed(shape.head(weights), models.read(shape, weights, rows).x)
    )
    tokens = [3, 1, 4]
    while len(tokens) < 8:
        logits = read(batches.rows([tokens], T))[0, len(tokens) - 1]
        tokens.append(int(logits.argmax()))
    (own,) = scored([Request(tokens[:3], tokens[3:])])
    assert own.greedy and len(own.log_probs) == 5
    other = [*tokens[3:7], (tokens[7] + 1) % V]
    assert not scored([Request(tokens[:3], other)])[0].greedy


def test_what_cannot_be_scored_is_refused(scored):
    with pytest.raises(ValueError, match="request 1: its context is empty"):
        scored([Request([1], [2]), Request([], [2])])
    with pytest.raises(ValueError, match="request 0: its continuation is empty"):
        scored([Request([1], [])])
    with pytest.raises(ValueError, match=f"a continuation of {T + 1} tokens; at most {T} fit"):
        scored([Request([1], [0] * (T + 1))])
    with pytest.raises(ValueError, match="gives a text no likelihood"):
        log_likelihoods.scorer(programs.shape("bert"), PLAN)
    assert scored([]) == []


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 11, 12, 13])
def test_windows_predict_every_token_once(length):
    """The rules of lm-eval's rolling windows with a context of 1, written down for rows of 4."""
    text = list(range(100, 100 + length))
    got = [(list(r.context), list(r.continuation)) for r in log_likelihoods.windows(text, 7, 4)]
    assert sum((continuation for _, continuation in got), []) == text
    for number, (context, continuation) in enumerate(got):
        done = 4 * number
        # a window holds 5 tokens where there are as many before its end, and the text begins with 7
        end = done + len(continuation)
        assert context == ([7] if number == 0 else text[max(end - 5, 0) : done])
        assert len(context) + len(continuation) <= 5
