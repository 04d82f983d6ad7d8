"""A policy without a model: its weights are the logits of every place of the batch. What a loss
makes of log-probabilities is seen through it in value and gradient, with nothing in between."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Rollout
from jaxlm.models.model import Hidden, Model


def model(rows: int, seq: int, vocab: int) -> Model:
    """The Model of logits [rows, seq, vocab]; x is the logits."""
    p = param.shaper(batch=rows, seq=seq, embed=vocab)

    def hidden(params, tokens, at, cache=None, key=None):
        return Hidden(params["logits"], None)

    return Model(
        cfg=SimpleNamespace(embed=vocab),
        spec={"logits": p("batch seq embed", init=param.zeros)},
        hidden=hidden,
        head=lambda params: {},
        unembed=lambda head, x: x,
        cache=lambda batch, slots: (),
        context=None,
    )


def given(log_probs: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """(logits [N, T, vocab], targets [N, T]) under which the targets have these log-probabilities:
    the target's logit is log p, all others share what is left."""
    logits = np.log(-np.expm1(log_probs) / (vocab - 1))[..., None].repeat(vocab, -1)
    targets = np.arange(log_probs.size).reshape(log_probs.shape) % vocab
    np.put_along_axis(logits, targets[..., None], log_probs[..., None], -1)
    return logits, targets.astype(np.int32)


def rollout(weight, behaviour, **more) -> Rollout:
    """A Rollout of these weights and log-probabilities; what is not given is 0."""
    zero, ids = np.zeros_like(behaviour), np.zeros(weight.shape, np.int32)
    filled = {"reference": zero, "value": zero, "advantage": zero, "returns": zero, "targets": ids}
    segments, positions = ids + 1, ids + np.arange(weight.shape[1], dtype=np.int32)
    return Rollout(
        tokens=ids,
        weight=weight,
        segments=segments,
        positions=positions,
        behaviour=behaviour,
        **filled | more,
    )


def slope(objective, params, frozen, batch):
    """(loss, metrics, gradient) of an objective as the step makes them: sums divided once."""

    def f(params):
        total, weight, sums = objective.loss(params, frozen, batch, None)
        return total / jnp.maximum(weight, 1e-9), (weight, sums)

    (value, (weight, sums)), grads = jax.jit(jax.value_and_grad(f, has_aux=True))(params)
    means = {name: x / weight for name, x in sums.items() if not x.ndim}
    return value, means | objective.report(sums), grads
