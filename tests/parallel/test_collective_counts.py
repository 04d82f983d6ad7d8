"""Counts of what our own layouts send, compiled for CPU devices: the closed form, as integers."""

import jax
import jax.numpy as jnp
import pytest

from jaxlm import models
from jaxlm.models import llama
from jaxlm.ops.attention import At
from jaxlm.parallel import collectives, context_parallel, expert_parallel
from jaxlm.parallel.plan import Plan

ROWS, T, HEADS, HEAD = 2, 48, 2, 4
CFG = llama.Config(vocab=32, embed=16, layers=3, heads=4, kv=4, head=4, ffn=32)


def counts(f, plan, *args):
    """{(kind, axes): executions} of f."""
    text = jax.jit(f).lower(*args).compile().as_text()
    found = collectives.ledger(text, plan.mesh)
    return {(row.kind, row.axes): row.count for row in found}


def attended(plan):
    q = jax.ShapeDtypeStruct((ROWS, T, HEADS, HEAD), jnp.float32)
    at = jax.ShapeDtypeStruct((ROWS, T), jnp.int32)

    def f(q, k, v, segments, positions):
        rest = {"window": None, "softcap": None, "scale": None, "bias": None, "sinks": None}
        at = At(segments, positions)
        return context_parallel.attend(q, k, v, at, plan, causal=True, **rest)

    return counts(f, plan, q, q, q, at, at)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_a_ring_of_n_turns_n_minus_1_times(n):
    """Keys, values, segments and positions go round; before that the halves of five arrays are
    dealt, and after it those of the output dealt back, by two permutations each, of which one
    leaves all halves where they are on a ring of two."""
    dealt = 6 * (1 if n == 2 else 2)
    found = attended(Plan(context=n))
    assert found == {("collective-permute", ("context",)): 4 * (n - 1) + dealt}


@pytest.mark.parametrize("n", [2, 4])
def test_gathered_keys_are_one_gather_of_each_array(n):
    plan = Plan(context=n, context_keys="gathered")
    assert attended(plan) == {("all-gather", ("context",)): 4}


def test_experts_gather_tokens_and_scatter_sums():
    """Hidden states, weights and choices are gathered; one sum is scattered."""
    plan = Plan(expert=4)
    w = {"up": jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)}
    h = jax.ShapeDtypeStruct((4, 6, 8), jnp.float32)
    choice = jax.ShapeDtypeStruct((4, 6, 2), jnp.float32)
    experts = jax.ShapeDtypeStruct((4, 6, 2), jnp.int32)

    def f(w, h, weights, chosen):
        def local(w, h, weights, chosen):
            return h * jnp.sum(w["up"]) * jnp.sum(weights * chosen, -1, keepdims=True)

        names = {"up": "expert embed ffn"}
        return expert_parallel.apply(local, plan, w, names, h, weights, chosen)

    # choices that no device holds are told apart by sorting, on the device itself
    assert counts(f, plan, w, h, choice, experts) == {
        ("all-gather", ("expert",)): 3,
        ("reduce-scatter", ("expert",)): 1,
    }


def hidden(plan):
    model = models.build(CFG, plan)
    places = plan.shard_params(model.spec)
    params = jax.tree.map(
        lambda p, where: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=where),
        model.spec,
        places,
    )
    tokens = jax.ShapeDtypeStruct((4, 8), jnp.int32)

    def f(params, tokens):
        at = At(jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(8), tokens.shape))
        return model.hidden(params, tokens, at).x

    return counts(f, plan, params, tokens)


def test_tensor_sums_twice_a_layer():
    """After attention and after the feed-forward layer; the look-up in a table whose vocabulary is
    split is one sum more."""
    assert hidden(Plan(tensor=4)) == {("all-reduce", ("tensor",)): 2 * CFG.layers + 1}


def test_fsdp_gathers_every_weight_once():
    """q, k, v, o, up, gate, down and two norms of every layer, the table and the last norm."""
    assert hidden(Plan(fsdp=4)) == {("all-gather", ("fsdp",)): 9 * CFG.layers + 2}
