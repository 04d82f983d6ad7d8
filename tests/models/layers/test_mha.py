"""The pieces that families share around attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models.layers import mha
from jaxlm.ops import attention as kernels
from jaxlm.ops.kernels import splash
from jaxlm.parallel import context_parallel
from jaxlm.parallel.plan import Plan


@pytest.mark.slow
def test_a_kernel_that_cannot_be_cut_runs_on_each_devices_rows_and_heads():
    """splash on data=2 x fsdp=2 x tensor=2 is xla on one device, value and gradient."""
    rng = np.random.default_rng(0)
    heads, kv, head, rows, length = 4, 2, 8, 4, 40
    q, g = rng.normal(size=(2, rows, length, heads, head)).astype(np.float32)
    k, v = rng.normal(size=(2, rows, length, kv, head)).astype(np.float32)
    sinks = rng.normal(size=heads).astype(np.float32)
    segments = np.repeat([[1, 2, 0]], [15, 20, 5], axis=1).repeat(rows, axis=0)
    at = kernels.At(jnp.asarray(segments), jnp.tile(jnp.arange(length), (rows, 1)))
    rule = kernels.masks.rule(q, k, v, True, 7, None, None)

    def interpreted(q, k, v, q_at, k_at, sinks):
        return splash.attend(q, k, v, q_at, k_at, rule, None, sinks, interpret=True)

    plan = Plan(data=2, fsdp=2, tensor=2, attention="splash")
    runs = {
        "split": context_parallel.per_device(interpreted, plan),
        "whole": functools.partial(kernels.attend, window=7),
    }

    @functools.partial(jax.jit, static_argnums=0)
    def outcome(name, *arrays):
        def run(q, k, v, sinks):
            return runs[name](q, k, v, at, at, sinks=sinks)

        out, pull = jax.vjp(run, *arrays)
        return out, *pull(jnp.asarray(g))

    for ours, true in zip(*(outcome(name, q, k, v, sinks) for name in runs), strict=True):
        np.testing.assert_allclose(ours, true, atol=2e-5)


def test_what_a_cache_cannot_hold_is_refused():
    at = kernels.At(jnp.ones((1, 2), int), jnp.arange(2)[None], jnp.ones((1, 2), bool))
    q = jnp.ones((1, 2, 1, 4))
    memory = mha.Slots({}, at)
    with pytest.raises(ValueError, match="bidirectional models have no KV cache"):
        mha.attend(q, q, q, at, memory, Plan(), causal=False)
    with pytest.raises(ValueError, match="shared tokens and a window"):
        mha.attend(q, q, q, at, memory, Plan(), window=2)
