"""Responses of a policy to prompts, as rows to learn from: one compiled program.

What is learnt from them (rewards, a teacher's distributions, ...) is up to the caller.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Array, Prompts, Rollout
from jaxlm.data.records.prompts import packed
from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.decode.serve import refill
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.ops import linear, sampling
from jaxlm.ops.attention import At

# generate(params, frozen, prompts [N, P], key, temperature) -> Rollout [N, P + max_new]
Generate = Callable[[param.Tree, param.Tree, Prompts, Array, float], Rollout]


def program(
    model: Model,
    objective: Objective,
    *,
    max_new: int,
    stop: tuple[int, ...],
    slots: int | None = None,
) -> Generate:
    """The compiled function that samples a response to every prompt; it compiles once per width of
    the prompts.

    A response has at most max_new tokens and ends with any of the `stop` ids. Tokens are drawn from
    softmax(logits / temperature), all of them, so that `behaviour` is what a forward pass gives;
    temperature 0 takes the likeliest, and behaviour is 0. Row r draws with fold_in(key, r), key
    uint32[2] (`jax.random.key_data`): its response does not depend on the rows around it. slots:
    rows that are decoded at a time, where one that has ended makes room for another; None decodes
    all at once, until the last has ended.

    Raises: ValueError for slots with a model whose rows are not independent of others.
    """
    if slots is not None:
        token_sampling.check_independent(model, "rollout.slots")

    def generate(
        params: param.Tree, frozen: param.Tree, prompts: Prompts, key: jax.Array, temperature: float
    ) -> Rollout:
        # a base in 4 bits is unpacked once, not at every token
        whole = linear.merged(objective.weights(params, frozen))
        weights = token_sampling.prepare(model, whole)
        at = At(prompts.segments, prompts.positions)
        settings = _rows(prompts, key, max_new, temperature, stop)
        asked = model, weights, prompts.tokens, at, settings, max_new
        if slots is None or slots >= len(prompts.tokens):
            return joined(prompts, sampling_loop.generate(*asked))
        return joined(prompts, refill.generate(*asked, slots))

    return jax.jit(generate)


def respond(
    model: Model,
    params: param.Tree,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    max_new: int = 64,
    temperature: float = 1.0,
    stop: tuple[int, ...] = (),
    seed: int = 0,
) -> Rollout:
    """Rollout (numpy) of responses to prompts given as token ids, `samples` to each in consecutive
    rows.

    params: as `trained_weights.load` gives them. A call compiles: to sample again and again from
    weights that change, keep what `program` returns.

    Raises: ValueError for an empty prompt.
    """
    run = program(model, Objective(model.spec, _no_loss), max_new=max_new, stop=stop)
    longest = max(len(p) for p in prompts)
    rows = packed([np.asarray(p, np.int32) for p in prompts], longest)
    key = np.random.SeedSequence((seed,)).generate_state(2)
    return jax.device_get(run(params, {}, repeated(rows, samples), key, temperature))


def _no_loss(params: param.Tree, frozen: param.Tree, batch: Any, key: jax.Array | None) -> Any:
    raise AssertionError("nothing is learnt here")


def _rows(
    prompts: Prompts, key: jax.Array, max_new: int, temperature: float, stop: tuple[int, ...]
) -> sampling_loop.Rows:
    n = prompts.tokens.shape[0]
    controls = sampling.Controls(
        temperature=jnp.full(n, temperature, jnp.float32),
        top_k=jnp.zeros(n, jnp.int32),
        top_p=jnp.ones(n, jnp.float32),
        min_p=jnp.zeros(n, jnp.float32),
        repetition=jnp.ones(n, jnp.float32),
    )
    typed = jax.random.wrap_key_data(key)
    keys = jax.vmap(lambda r: jax.random.fold_in(typed, r))(jnp.arange(n))
    limit = jnp.where(prompts.segments[:, 0] > 0, max_new, 0)
    return sampling_loop.Rows(controls, keys, jnp.tile(jnp.array(stop, jnp.int32), (n, 1)), limit)


def joined(prompts: Prompts, out: sampling_loop.Generation) -> Rollout:
    """The Rollout of prompts [N, P] and what was generated after each, [N, M]; T = P + M."""
    new = out.tokens.shape[1]
    length = jnp.sum(prompts.segments > 0, axis=1)[:, None]  # [N, 1]
    place = jnp.arange(prompts.tokens.shape[1] + new)[None]  # [1, T]
    end = length + out.lengths[:, None]  # [N, 1]

    def shifted(x: jax.Array, start: jax.Array) -> jax.Array:
        """x [N, M] from column `start` of each row on; what is outside is undefined."""
        return jnp.take_along_axis(x, jnp.clip(place - start, 0, new - 1), axis=1)

    sampled = (place >= length) & (place < end)  # [N, T]
    prompt = jnp.pad(prompts.tokens, [(0, 0), (0, new)])  # [N, T]
    tokens = jnp.where(sampled, shifted(out.tokens, length), jnp.where(place < length, prompt, 0))
    scored = (place >= length - 1) & (place < end - 1)
    return Rollout(
        tokens=tokens,
        targets=jnp.pad(tokens[:, 1:], [(0, 0), (0, 1)]),
        weight=scored.astype(jnp.float32),
        segments=(place < end).astype(jnp.int32),
        positions=jnp.where(place < end, place, 0).astype(jnp.int32),
        behaviour=jnp.where(scored, shifted(out.support_log_probs, length - 1), 0.0),
        finished=out.finish == sampling_loop.STOP_TOKEN,
    )


def repeated(prompts: Prompts, times: int) -> Prompts:
    """Every prompt (numpy) `times` times, in consecutive rows."""
    return Prompts(*(np.repeat(x, times, axis=0) for x in prompts))


def narrowed(prompts: Prompts) -> Prompts:
    """The prompts (numpy) without columns that no row uses, but for a few, so that few widths
    compile (`token_sampling.bucket`)."""
    longest = int(np.max(np.sum(prompts.segments > 0, axis=1), initial=1))
    wanted = min(prompts.tokens.shape[1], token_sampling.bucket(longest, 8))
    cut = {n: getattr(prompts, n)[:, :wanted] for n in ("tokens", "segments", "positions")}
    return prompts._replace(**cut)


def width(segments: np.ndarray) -> int:
    """The columns to keep of rows [N, T] that begin at the left: those in use, and a few more so
    that few widths compile."""
    longest = int(np.max(np.sum(segments > 0, axis=1), initial=1))
    return min(segments.shape[1], token_sampling.bucket(longest))


def fitted(rows: Any, columns: int) -> Any:
    """A tree of arrays (numpy) [N, T] with columns cut off or empty ones added on the right; arrays
    [N] as they are."""

    def fit(x: np.ndarray) -> np.ndarray:
        if x.ndim == 1:
            return x
        return np.pad(x, [(0, 0), (0, max(0, columns - x.shape[1]))])[:, :columns]

    return jax.tree.map(fit, rows)
