"""Experts on several devices: what each token gets, and every gradient, as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models.layers import moe
from jaxlm.parallel import expert_parallel
from jaxlm.parallel.plan import Plan

B, T, D, E, F, K = 8, 4, 6, 4, 10, 3
PLAN = Plan(expert=2, fsdp=2, tensor=2, poison=True)


def run(plan, matrices, h, weights, experts):
    return expert_parallel.apply(
        lambda w, *rows: moe._dropless(w, *rows, moe.swiglu, plan.poison),
        plan, {name: matrices[name] for name in moe.AXES if name in matrices}, moe.AXES,
        h, weights, experts,
    )  # fmt: skip


def dense(matrices, h, weights, experts):
    """Every expert computes every token, and a token adds up those it goes to."""
    each = jax.nn.silu(jnp.einsum("BTD,EDF->BTEF", h, matrices["gate"]))
    each = each * jnp.einsum("BTD,EDF->BTEF", h, matrices["up"])
    each = jnp.einsum("BTEF,EFD->BTED", each, matrices["down"])
    hit = experts[..., None] == jnp.arange(E)  # [B,T,K,E]
    return jnp.einsum("BTED,BTK,BTKE->BTD", each, weights, hit.astype(h.dtype))


# Numbers of experts; E is none, where padding goes.
CHOICES = {
    "spread": lambda draw: np.stack([draw.permutation(E + 1)[:K] for _ in range(B * T)]),
    "all to one": lambda draw: np.tile([3, E, E], (B * T, 1)),
    "all on one device": lambda draw: np.tile([0, 1, E], (B * T, 1)),
    "none": lambda draw: np.full((B * T, K), E),
}


@pytest.mark.parametrize("case", CHOICES)
def test_values_and_gradients_are_those_of_one_device(case):
    """Nothing is dropped, however uneven the loads: a capacity that was dropless stopped being so
    in another library, and an exchange that was right forward had wrong gradients."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        sizes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
        matrices = {name: draw.normal(size=shape) for name, shape in sizes.items()}
        h, weights, g = (draw.normal(size=(B, T, n)) for n in (D, K, D))
        experts = jnp.asarray(np.int32(CHOICES[case](draw).reshape(B, T, K)))

        def graded(f):
            def loss(matrices, h, weights):
                return jnp.sum(g * f(matrices, h, weights, experts))

            return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(matrices, h, weights)

        want = graded(dense)
        for got in (graded(lambda *x: run(PLAN, *x)), graded(lambda *x: run(Plan(), *x))):
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_experts_that_do_not_divide_are_named():
    x = jnp.ones((B, T, D))
    matrices = {"gate": jnp.ones((3, D, F)), "up": jnp.ones((3, D, F)), "down": jnp.ones((3, F, D))}
    with pytest.raises(ValueError, match="dimension 'expert' of size 3 does not divide over exp"):
        run(PLAN, matrices, x, jnp.ones((B, T, K)), jnp.zeros((B, T, K), jnp.int32))
