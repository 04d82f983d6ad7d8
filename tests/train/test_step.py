"""The step: float32 weights under low-precision compute, overflow, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.parallel.plan import Plan
from tests import programs


@pytest.mark.parametrize("family", ["gpt", "llama-all"])
def test_bfloat16_is_close_to_float32(family):
    w, batch = programs.weights(family), programs.rows(7, programs.UNEVEN)
    want, got = (
        programs.prober(family, plan)(w, batch) for plan in (Plan(), Plan(compute="bfloat16"))
    )
    # bfloat16 keeps 8 bits: 0.4 % each rounding
    np.testing.assert_allclose(got.loss, want.loss, rtol=0.01)
    for path, a in param.flatten(want.grads).items():
        b = param.flatten(got.grads)[path]
        assert b.dtype == jnp.float32, path
        if not path.endswith(programs.VOID.get(family, ())):
            assert np.linalg.norm(a - b) < 0.06 * np.linalg.norm(a), path


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_low_precision_trains(compute):
    batches = [programs.rows(0)] * 30
    _, want = programs.run("llama-all", Plan(), batches)
    state, told = programs.run("llama-all", Plan(compute=compute), batches)
    assert want[-1]["loss"] < 0.5 * want[0]["loss"]
    assert told[-1]["loss"] == pytest.approx(want[-1]["loss"], rel=0.05)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    if compute == "float16":
        assert told[-1]["loss_scale"] == 1024 and told[-1]["skipped"] == 0


def test_float16_recovers_from_overflow():
    made = programs.trainer("llama-all", Plan(compute="float16"))
    state = made.start()
    huge = state.opt.scale._replace(value=jnp.float32(2.0**22))
    before = jax.tree.map(np.asarray, state.params)
    state = jax.device_put(state._replace(opt=state.opt._replace(scale=huge)), made.shardings)
    seen = []
    for _ in range(16):
        state, told = made.step(state, programs.rows(0))
        if int(told["skipped"]) == 1:
            programs.same(state.params, before)
        seen.append({k: float(v) for k, v in told.items()})
    assert 1 <= seen[-1]["skipped"] < 12 and np.isfinite(seen[-1]["loss"])
    assert seen[-1]["loss_scale"] == 2.0 ** (22 - seen[-1]["skipped"])
    assert seen[-1]["loss"] < seen[0]["loss"]
