"""Fine-tuning on conversations: no leak between them, no NaN, exact means, noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models, objectives
from jaxlm.core.batch import Batch
from jaxlm.models import bert, llama
from jaxlm.objectives import clm, sft
from jaxlm.ops.attention import At
from tests import programs
from tests.families.sizes import T, V
from tests.objectives.cases import sft as cases

MODEL = llama.Config(vocab=V, embed=16, layers=2, heads=2, kv=1, head=8, ffn=24, context=T)


@functools.cache
def compiled():
    """(model, its weights, the compiled loss with its gradient, the compiled logits)."""
    model = models.build(MODEL)
    params = programs.drawn(model.spec, 3)
    loss = objectives.build(sft.Config(), model).loss

    def whole(params, batch):
        total, weight, sums = loss(params, {}, batch, None)
        return total, (weight, sums)

    def logits(params, batch):
        x = model.hidden(params, batch.tokens, At(batch.segments, batch.positions)).x
        return model.unembed(model.head(params), x)

    return model, params, jax.jit(jax.value_and_grad(whole, has_aux=True)), jax.jit(logits)


def flat(grads):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(grads)])


def test_the_loss_is_the_answers_cross_entropy():
    """Against float64 NumPy: the sum over targets with weight, of logits of the same positions."""
    _, params, loss, logits = compiled()
    batch = cases.batch(0)
    (total, (weight, sums)), _ = loss(params, batch)
    z = np.asarray(logits(params, batch), np.float64)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    nll = -np.take_along_axis(logp, batch.targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(total, (nll * batch.weight).sum(), rtol=1e-5)
    assert weight == batch.weight.sum() and sums["nll"] == total


def test_one_conversation_reads_nothing_of_another_in_its_row():
    """Packed without segments ("wrapped"), a conversation is learnt as the last one's sequel."""
    model, params, _, _ = compiled()
    batch = jax.tree.map(lambda x: x[1:2], cases.batch(0))
    second = batch._replace(weight=batch.weight * (batch.segments == 2))
    assert second.weight.sum() > 0

    @jax.jit
    def reach(delta):
        def moved(params, tokens, at, key=None):
            return model.hidden(params, tokens, at, perturb=lambda x: x + delta)

        loss = clm.build(clm.Config(), model._replace(hidden=moved)).loss
        return loss(params, {}, second, None)[0]

    slopes = np.asarray(jax.grad(reach)(jnp.zeros((1, T, MODEL.embed))))[0]
    first = np.asarray(batch.segments[0]) == 1
    assert not slopes[first].any()
    assert np.abs(slopes[np.asarray(second.weight[0]) > 0]).min() > 0


def test_packed_is_unpacked():
    _, params, loss, _ = compiled()
    batch = cases.batch(0)
    (packed, (weight, _)), grads = loss(params, batch)
    apart = [np.zeros((16, T), x.dtype) for x in batch]
    for r in range(8):
        for s in (1, 2):
            at = batch.segments[r] == s
            for one, x in zip(apart, batch, strict=True):
                one[2 * r + s - 1, : at.sum()] = x[r, at]
    unpacked = Batch(*apart)
    unpacked = unpacked._replace(segments=np.minimum(unpacked.segments, 1))
    total, held, gathered = 0.0, 0.0, 0.0
    for half in (slice(0, 8), slice(8, 16)):
        (part, (count, _)), slopes = loss(params, Batch(*(x[half] for x in unpacked)))
        total, held, gathered = total + part, held + count, gathered + flat(slopes)
    np.testing.assert_allclose(total, packed, rtol=1e-6)
    assert held == weight
    np.testing.assert_allclose(gathered, flat(grads), rtol=1e-4, atol=1e-6)


def test_rows_without_an_answer_give_nothing_and_no_nan():
    _, params, loss, _ = compiled()
    batch = cases.batch(0)
    (total, (weight, _)), grads = loss(params, batch._replace(weight=0 * batch.weight))
    assert total == 0 and weight == 0
    assert not flat(grads).any()


def test_the_mean_is_over_all_tokens_of_a_step_not_over_parts():
    """A mean of the parts' means weighs the tokens of short answers more: found in 2024 in most
    trainers (transformers issue 34191)."""
    _, params, loss, _ = compiled()
    batch = cases.batch(0)
    (_, (weight, _)), grads = loss(params, batch)
    wanted = flat(grads) / weight
    parts = []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 8)):
        kept = np.zeros((8, 1), np.float32)
        kept[rows] = 1
        parts.append(loss(params, batch._replace(weight=batch.weight * kept)))
    summed = sum(flat(g) for _, g in parts) / sum(w for (_, (w, _)), _ in parts)
    means = sum(flat(g) / w for (_, (w, _)), g in parts) / len(parts)

    def off(x):
        return np.linalg.norm(x - wanted) / np.linalg.norm(wanted)

    assert off(summed) < 2e-6 and off(means) > 0.01


def test_noise_is_as_large_as_each_conversation_is_long():
    """Jain et al. 2023, algorithm 1: |noise| <= alpha / sqrt(L D), its variance a third of that
    squared; L counts the conversation's own tokens, not the row's."""
    segments = np.array([[1] * 20 + [2] * 5 + [0] * 7, [1] * 32])
    noise = np.asarray(sft.noise(jax.random.key(0), jnp.asarray(segments), 64, 5.0))
    assert not noise[0, 25:].any()
    for r, s, length in ((0, 1, 20), (0, 2, 5), (1, 1, 32)):
        part, bound = noise[r][segments[r] == s], 5 / np.sqrt(length * 64)
        assert 0.9 * bound < np.abs(part).max() <= bound
        np.testing.assert_allclose(part.std(), bound / np.sqrt(3), rtol=0.1)


def test_noise_is_for_training_alone():
    model, params, _, _ = compiled()
    batch = cases.batch(0)
    noisy = jax.jit(objectives.build(sft.Config(neftune=5.0), model).loss)
    quiet = compiled()[2](params, batch)[0][0]
    assert noisy(params, {}, batch, None)[0] == pytest.approx(float(quiet), rel=1e-6)
    a, b, again = (noisy(params, {}, batch, jax.random.key(k))[0] for k in (1, 2, 1))
    assert a != b and a == again and abs(a - quiet) > 1e-3


def test_wrong_settings_and_models_are_refused():
    with pytest.raises(ValueError, match="objective.neftune: -1"):
        sft.Config(neftune=-1)
    encoder = models.build(bert.Config(vocab=V, embed=16, layers=1, heads=2, ffn=16, context=T))
    with pytest.raises(ValueError, match="sft given with model bert"):
        objectives.build(sft.Config(), encoder)
    with pytest.raises(ValueError, match="0 for a model without experts"):
        objectives.build(sft.Config(token=clm.Config(balance=0.1)), compiled()[0])
