"""The cache: prefill and decoding are the full forward, and nothing of its size is copied."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.models import model as models
from jaxlm.models.layers import stack
from jaxlm.ops.attention import At

T = 11


def places(segments):
    """At for rows whose non-zero segments count up from 0, wherever they stand."""
    segments = np.asarray(segments, np.int32)
    positions = np.where(segments > 0, np.cumsum(segments > 0, axis=1) - 1, 0)
    return At(jnp.asarray(segments), jnp.asarray(positions, jnp.int32))


@pytest.mark.parametrize("name", ["llama", "window", "gpt"])
def test_prefill_and_decode_are_the_full_forward(name, tiny):
    """Prefill of 5, then 4 more at once (chunked prefill), then two one by one. Row 1 has padding
    in front and in the middle: there is no padding side."""
    model, params = tiny(name)
    tokens = jax.random.randint(jax.random.key(0), (2, T), 0, 32)
    segments = np.ones((2, T), np.int32)
    segments[1, [0, 1, 6]] = 0
    at = places(segments)
    full = jax.jit(lambda p, t, at: models.logits(model, p, t, at))(params, tokens, at)

    @jax.jit
    def cached(params, tokens, at):
        params, cache, out = sampling_loop.unstacked(params), sampling_loop.empty(model, 2), []
        cuts = [0, 5, 9, 10, 11]
        for i, (a, b) in enumerate(zip(cuts, cuts[1:])):
            x, cache, _ = model.hidden(
                params, tokens[:, a:b], At(*(v[:, a:b] for v in at[:2])), cache
            )
            out.append(model.unembed(model.head(params), x))
            if i == 0:
                cache = sampling_loop.grow(model, cache, T)
        return jnp.concatenate(out, axis=1)

    got = cached(params, tokens, at)
    real = segments > 0
    np.testing.assert_allclose(got[real], full[real], atol=2e-5)
    assert np.abs(np.asarray(full)[real]).max() > 0.5


def greedy_rows(batch, limit):
    return token_sampling.rows_of(
        [token_sampling.Sampling(max_new=limit, temperature=0.0)] * batch, batch
    )


def loop_bodies(text):
    """The lines of all computations that the bodies of loops reach; prefill is outside of them."""
    parts = {}
    for part in re.split(r"\n(?=(?:ENTRY )?%)", text):
        if head := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", part):
            parts[head.group(1)] = part
    reached, todo = {}, re.findall(r"while\(.*?body=%([\w.\-]+)", text)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached[name] = parts[name].split("\n")
            todo += [n for n in re.findall(r"%([\w.\-]+)", parts[name]) if n in parts]
    return [line for lines in reached.values() for line in lines]


def moved(text, elements):
    """Instructions in the body of the loop that write `elements` or more without computing: copies,
    transposes, slices and pads (an update in place writes one slot of what it is given, whatever is
    fused with it)."""
    found = []
    for line in loop_bodies(text):
        made = re.match(r"\s+(?:ROOT )?%(\S+) = \w+\[([\d,]*)\]\S* ([\w\-]+)\(", line)
        if not made:
            continue
        name, shape, op = made.groups()
        names = ("copy", "transpose", "dynamic-slice", "slice", "pad", "concatenate", "gather")
        # a fusion is named after what it does: copy_bitcast_fusion
        does = op in names or (op == "fusion" and re.match("copy|transpose|(dynamic-)?slice", name))
        if "dynamic-update-slice" in name:
            continue
        if does and np.prod([int(n) for n in shape.split(",") if n]) >= elements:
            found.append(line.strip()[:120])
    return found


def compiled(model, params, run, batch=2, width=16, new=32):
    tokens = jnp.ones((batch, width), jnp.int32)
    return (
        jax.jit(run)
        .lower(params, tokens, places(tokens), greedy_rows(batch, new))
        .compile()
        .as_text()
    )


CACHE = 2 * 2 * 47 * 8  # batch, kv, slots, head: one layer's keys
WEIGHT = 16 * 4 * 8  # one layer's query matrix


@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_no_copy_of_the_cache_in_the_compiled_body(name, tiny):
    """XLA copied every layer's keys and values three times a token when they lay [B,S,K,H] and
    could be written before the step's end; stacked weights would be sliced at each token."""
    model, params = tiny(name)
    text = compiled(
        model, params, lambda p, t, at, r: sampling_loop.generate(model, p, t, at, r, 32)
    )
    assert len(re.findall(r"f32\[2,2,47,8\]\S* dynamic-update-slice", text)) >= 4
    assert moved(text, WEIGHT) == []


def test_the_copy_check_finds_copies(tiny):
    """Two bad loops: one that writes a cache it still has to read, one that slices weights."""
    model, params = tiny("llama")

    def written_early(params, tokens, at, rows):
        """Each step adds 1 to the oldest key once the step has begun to read."""
        params = sampling_loop.unstacked(params)
        state = sampling_loop.start(model, params, tokens, at, rows, 32)

        def body(state):
            new = sampling_loop.advance(model, params, state, rows, 1)
            late = jnp.sum(state.cache.layers[0]["k"][:, :, ::-1] * new.out.log_probs[0, 0])
            return new._replace(step=new.step + (late > 1e30))

        return jax.lax.while_loop(lambda s: s.step < 32, body, state).out

    assert any(
        "[2,2,47,8]" in line for line in moved(compiled(model, params, written_early), CACHE)
    )

    def sliced(params, tokens, at, rows):
        state = sampling_loop.start(model, params, tokens, at, rows, 32)
        layers = params["stack"]["0"]

        def body(state):
            i = state.step % 2
            one = jax.tree.map(lambda w: jax.lax.dynamic_slice_in_dim(w, i, 1), layers)
            two = jax.tree.map(lambda w: jax.lax.dynamic_slice_in_dim(w, 1 - i, 1), layers)
            return sampling_loop.advance(
                model, params | {"stack": {"0": one, "1": two}}, state, rows, 1
            )

        return jax.lax.while_loop(lambda s: s.step < 32, body, state).out

    assert moved(compiled(model, params, sliced), WEIGHT)


def test_more_tokens_than_slots_are_an_error(tiny):
    model, params = tiny("llama")
    at = places(np.ones((1, 3)))
    cache = sampling_loop.grow(model, sampling_loop.empty(model, 1), 2)
    with pytest.raises(ValueError, match="3 tokens do not fit in 2 slots"):
        jax.eval_shape(model.hidden, params, jnp.ones((1, 3), int), at, cache)


def test_unstacked_layers_are_the_layers(tiny):
    model, params = tiny("llama")
    apart = sampling_loop.unstacked(params)
    assert sampling_loop.unstacked(apart) is apart
    assert stack.kinds(apart["stack"]) == stack.kinds(params["stack"])
    q = [apart["stack"][str(i)]["0_global"]["attn"]["q"] for i in range(2)]
    np.testing.assert_array_equal(jnp.concatenate(q), params["stack"]["0"]["0_global"]["attn"]["q"])


def test_generate_runs_inside_another_program(tiny):
    """A rollout jits it with what follows; the result is that of the host's `generate`."""
    model, params = tiny("llama")
    prompts = np.arange(24).reshape(2, 12).tolist()
    settings = token_sampling.Sampling(max_new=10, temperature=1.0, seed=3)
    want = token_sampling.generate(model, params, prompts, settings)

    @jax.jit
    def rollout(params, tokens, at, rows):
        out = sampling_loop.generate(model, params, tokens, at, rows, 10)
        return out, jnp.sum(out.log_probs)

    tokens = jnp.asarray(prompts)
    rows = token_sampling.rows_of(token_sampling.each(settings, 2), 2)
    out, total = rollout(params, tokens, places(np.ones((2, 12))), rows)
    np.testing.assert_array_equal(out.tokens, want.tokens)
    np.testing.assert_allclose(total, want.log_probs.sum(), rtol=1e-5)
