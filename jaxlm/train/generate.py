"""Responses of a policy to prompts, as rows to learn from: one compiled program.

What is learnt from them (rewards, a teacher's distributions, ...) is its reader's business.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Prompts
from jaxlm.decode import loop, sample
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.ops import logits
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


class Responses(NamedTuple):
    """N whole texts, a prompt and its response to a row, from the row's left end.

    For the prompt `[p q]` and the response `[x eos]`, T = 6:

        tokens    p q x eos 0 0
        targets   q x eos 0 0 0
        weight    0 1 1 0 0 0      on targets that were sampled, the end among them
        behaviour . a b . . .      log-probability of the target, as it was sampled

    tokens, targets, segments, positions: int32[N, T]; weight, behaviour: float32[N, T].
    finished bool[N]: whether the response ended by itself. Rows without a prompt are all zero.
    """

    tokens: jax.Array
    targets: jax.Array
    weight: jax.Array
    segments: jax.Array
    positions: jax.Array
    behaviour: jax.Array
    finished: jax.Array


# generate(params, frozen, prompts [B, P], key) -> Responses [B * samples, P + max_new]
Generate = Callable[[param.Tree, param.Tree, Prompts, jax.Array], Responses]


def program(
    model: Model,
    objective: Objective,
    plan: Plan,
    *,
    samples: int,
    max_new: int,
    temperature: float,
    stop: tuple[int, ...],
) -> Generate:
    """The compiled function that samples responses; it compiles once per width of the prompts.

    Each prompt has `samples` responses, in consecutive rows, of at most max_new tokens, ended by
    any of the `stop` ids. Tokens are drawn from softmax(logits / temperature), all of them
    (temperature 0 takes the likeliest), so that `behaviour` is what a forward pass gives. Row r
    draws with fold_in(key, r): its response does not depend on the rows around it.
    """

    def generate(
        params: param.Tree, frozen: param.Tree, prompts: Prompts, key: jax.Array
    ) -> Responses:
        weights = sample.prepare(model, objective.weights(params, frozen))
        rows = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts)
        at = At(rows.segments, rows.positions)
        asked = _rows(rows, key, max_new, temperature, stop)
        out = loop.generate(model, weights, rows.tokens, at, asked, max_new)
        return joined(rows, out)

    return jax.jit(generate)


def _rows(
    prompts: Prompts, key: jax.Array, max_new: int, temperature: float, stop: tuple[int, ...]
) -> loop.Rows:
    n = prompts.tokens.shape[0]
    controls = logits.Controls(
        temperature=jnp.full(n, temperature, jnp.float32),
        top_k=jnp.zeros(n, jnp.int32),
        top_p=jnp.ones(n, jnp.float32),
        min_p=jnp.zeros(n, jnp.float32),
        repetition=jnp.ones(n, jnp.float32),
    )
    keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(n))
    limit = jnp.where(prompts.segments[:, 0] > 0, max_new, 0)
    return loop.Rows(controls, keys, jnp.tile(jnp.array(stop, jnp.int32), (n, 1)), limit)


def joined(prompts: Prompts, out: loop.Generation) -> Responses:
    """The Responses of prompts [N, P] and what was generated after each, [N, M]; T = P + M."""
    new = out.tokens.shape[1]
    length = jnp.sum(prompts.segments > 0, axis=1)[:, None]
    place = jnp.arange(prompts.tokens.shape[1] + new)[None]
    end = length + out.lengths[:, None]

    def shifted(x: jax.Array, start: jax.Array) -> jax.Array:
        """x [N, M] from column `start` of each row on; what is outside is undefined."""
        return jnp.take_along_axis(x, jnp.clip(place - start, 0, new - 1), axis=1)

    sampled = (place >= length) & (place < end)
    prompt = jnp.pad(prompts.tokens, [(0, 0), (0, new)])
    tokens = jnp.where(sampled, shifted(out.tokens, length), jnp.where(place < length, prompt, 0))
    scored = (place >= length - 1) & (place < end - 1)
    return Responses(
        tokens=tokens,
        targets=jnp.pad(tokens[:, 1:], [(0, 0), (0, 1)]),
        weight=scored.astype(jnp.float32),
        segments=(place < end).astype(jnp.int32),
        positions=jnp.where(place < end, place, 0).astype(jnp.int32),
        behaviour=jnp.where(scored, shifted(out.support_log_probs, length - 1), 0.0),
        finished=out.finish == loop.STOP_TOKEN,
    )


def narrowed(prompts: Prompts) -> Prompts:
    """The prompts (numpy) without columns that no row uses, but for a few, so that few widths
    compile (`sample.bucket`)."""
    longest = int(np.max(np.sum(prompts.segments > 0, axis=1), initial=1))
    width = min(prompts.tokens.shape[1], sample.bucket(longest, 8))
    cut = {n: getattr(prompts, n)[:, :width] for n in ("tokens", "segments", "positions")}
    return prompts._replace(**cut)


def of_width(rows: Responses, width: int) -> Responses:
    """The rows (numpy) [N, T] with columns cut off or empty ones added on the right."""

    def fit(x: np.ndarray) -> np.ndarray:
        more = [(0, 0)] * (x.ndim - 1) + [(0, max(0, width - x.shape[-1]))]
        return np.pad(x, more)[..., :width] if x.ndim > 1 else x

    return type(rows)(*(fit(x) for x in rows))
