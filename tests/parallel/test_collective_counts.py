"""Counts of what our own layouts send, compiled for CPU devices: the closed form, as integers.

Elements count where XLA sends several arrays by one operation.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from jaxlm import models
from jaxlm.core import param, target
from jaxlm.core.batch import Batch
from jaxlm.models import llama, mistral
from jaxlm.objectives import clm
from jaxlm.ops.attention import At
from jaxlm.parallel import (
    collectives,
    context_parallel,
    expert_parallel,
    pipeline_parallel,
    rules,
)
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer

ROWS, T, HEADS, HEAD = 2, 48, 2, 4
CFG = llama.Config(vocab=32, embed=16, layers=3, heads=4, kv=4, head=4, ffn=32)


def counts(f, plan, *args):
    """{(kind, axes): executions} of f."""
    text = jax.jit(f).lower(*args).compile().as_text()
    found = collectives.ledger(text, plan.mesh)
    return {(row.kind, row.axes): row.count for row in found}


def backward(f, plan, moved, fixed, places, out):
    """`counts` of f(*moved, *fixed) and its backward pass to `moved`. places: the axis names by
    which the arguments and the result, like `out`, lie on the mesh."""

    def placed(x, names):
        place = rules.sharding(names, x.shape, plan.mesh, "x")
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), x)

    def run(moved, fixed, cotangent):
        y, pull = jax.vjp(lambda *moved: f(*moved, *fixed), *moved)
        return y, pull(cotangent)

    given = [placed(x, names) for x, names in zip((*moved, *fixed, out), places, strict=True)]
    n = len(moved)
    return counts(run, plan, tuple(given[:n]), tuple(given[n:-1]), given[-1])


def attended(plan, both=False):
    q = jax.ShapeDtypeStruct((ROWS, T, HEADS, HEAD), jnp.float32)
    at = jax.ShapeDtypeStruct((ROWS, T), jnp.int32)

    def f(q, k, v, segments, positions):
        rest = {"window": None, "softcap": None, "scale": None, "bias": None, "sinks": None}
        at = At(segments, positions)
        return context_parallel.attend(q, k, v, at, plan, causal=True, **rest)

    if both:
        rows = ("rows", "seq", "heads", "head")
        places = 3 * [rows] + 2 * [rows[:2]] + [rows]
        return backward(f, plan, (q, q, q), (at, at), places, q)
    return counts(f, plan, q, q, q, at, at)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_a_ring_of_n_turns_n_minus_1_times(n):
    """Keys, values, segments and positions go round; before that the halves of five arrays are
    dealt, and after it those of the output dealt back, by two permutations each, of which one
    leaves all halves where they are on a ring of two."""
    dealt = 6 * (1 if n == 2 else 2)
    found = attended(Plan(context=n))
    assert found == {("collective-permute", ("context",)): 4 * (n - 1) + dealt}


@pytest.mark.parametrize("n", [2, 3])
def test_a_ring_carries_gradients_home_in_n_turns(n):
    """The backward pass turns the four arrays again, and the gradients of keys and values with
    them, once more to reach their own device; it deals the gradient it is given, and three back.
    On a ring of two the arrays of the one turn are those of the forward pass, with JAX 0.10."""
    forward = 4 * (n - 1) + 6 * (1 if n == 2 else 2)
    again = {4 * (n - 1)} | ({0} if n == 2 else set())
    found = attended(Plan(context=n), both=True)
    rest = forward + 2 * n + 4 * (1 if n == 2 else 2)
    assert found.keys() == {("collective-permute", ("context",))}
    assert found["collective-permute", ("context",)] - rest in again


@pytest.mark.parametrize("n", [2, 4])
def test_gathered_keys_are_one_gather_of_each_array(n):
    """And the gradients of keys and values one sum and split each."""
    plan = Plan(context=n, context_keys="gathered")
    assert attended(plan) == {("all-gather", ("context",)): 4}
    sums = {("reduce-scatter", ("context",)): 2}
    assert attended(plan, both=True) == {("all-gather", ("context",)): 4, **sums}


def test_experts_gather_tokens_and_scatter_sums():
    """Hidden states, weights and choices are gathered; one sum is scattered. Backward its gradient
    is gathered, and those of hidden states and weights are scattered."""
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

    def known(up, *rest):
        return f({"up": up}, *rest)

    rows = ("rows", "whole", "whole")
    places = [("expert", "whole", "whole"), *4 * [rows]]
    assert backward(known, plan, (w["up"], h, choice), (experts,), places, h) == {
        ("all-gather", ("expert",)): 3 + 1,
        ("reduce-scatter", ("expert",)): 1 + 2,
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


def sent(plan, cfg=CFG):
    """{kind: elements} of a whole training step, forward, backward and update, and its batch's
    tokens: of an operation in a loop as often as the loop runs."""
    objective = clm.build(clm.Config(), models.build(cfg, plan), plan)
    tx = optimizer.build(optimizer.Optim(warmup=0), objective.spec, 100, False)
    shape = (16, 16)
    ids, weight = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(ids, ids, weight, ids, ids)
    batch = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        batch,
        plan.shard_batch(batch),
    )
    lowered = step.make(objective, tx, plan).lower(step.abstract(objective, tx, plan), batch)
    total = {}
    text = lowered.compile().as_text()
    for kind, groups, payload, times in collectives.operations(text, plan.devices):
        if groups.shape[1] > 1:
            total[kind] = total.get(kind, 0) + payload * times // 4
    return total


L, D, V, TOKENS = CFG.layers, CFG.embed, CFG.vocab, 16 * 16
N = param.count(llama.spec(CFG))
LEAVES, SPLIT = 12, 9  # q, k, v, o, up, gate, down, table, output; and three norms
# Sums over the batch: the loss, its weight and two metrics; and of each leaf that is split, its
# gradient's and its update's squares.
METRICS, NORMS = 4, 2


def test_data_sums_every_gradient_once():
    assert sent(Plan(data=4)) == {"all-reduce": N + METRICS}


def test_fsdp_gathers_twice_and_sums_once():
    """The table is not read in the backward pass, and the loss's only chunk keeps the output
    matrix. A CPU sums whole gradients, of which each device keeps its part."""
    assert sent(Plan(fsdp=4)) == {
        "all-gather": 2 * N - 2 * V * D,
        "all-reduce": N + METRICS + NORMS * LEAVES,
    }


def test_tensor_sums_the_residual_twice_a_layer_and_its_gradient_for_every_matrix():
    """Backward a sum for each of q, k, v, gate and up: a CPU does not add them up before. Outside
    of the layers the look-up and its like, the gradient of the last hidden state; and the cross
    entropy's largest logit, sum and target."""
    loss = 3 * TOKENS
    assert sent(Plan(tensor=4)) == {
        "all-reduce": (7 * L + 2) * TOKENS * D + loss + NORMS * SPLIT,
    }


def test_a_split_residual_is_gathered_before_products():
    """In front of both sublayers, once more for their weights' gradients, and the gradient of their
    outputs; scales of norms see a part of the tokens each. The table is gathered, and its gradient
    summed, in place of what is looked up."""
    loss = 3 * TOKENS
    assert sent(Plan(tensor=4, sequence=True)) == {
        "all-gather": (6 * L + 1) * TOKENS * D + V * D,
        "all-reduce": (7 * L + 1) * TOKENS * D + loss + NORMS * SPLIT + (2 * L + 1) * D + V * D,
    }


# A device's part of the keys of a layer, or of its values, queries or outputs, on four devices; and
# of the segments of the tokens, or of their positions.
OWN, OWN_IDS = TOKENS * CFG.kv * CFG.head // 4, TOKENS // 4


def sent_as_on_a_tpu(plan, cfg=CFG):
    """`sent`, of products in the form that a TPU gets: a CPU's flat ones lose the sequence's parts,
    and it sums activations in place of weights' gradients."""
    with target.compiling_for("tpu"):
        return sent(dataclasses.replace(plan, compute="float32"), cfg)


def test_a_ring_sends_keys_and_gradients_and_weights_as_fsdp_does():
    """Of each layer: queries, keys and values are dealt, and outputs dealt back, all in two
    permutations of halves; keys, values, segments and positions turn; backward the gradient of
    outputs is dealt, and those of the three dealt back, keys and values turn once more with their
    gradients, which come home. Segments and positions are dealt once for all layers."""
    layer = 4 * OWN + 3 * (2 * OWN + 2 * OWN_IDS)
    layer += 4 * OWN + 3 * (4 * OWN + 2 * OWN_IDS) + 2 * OWN
    assert sent_as_on_a_tpu(Plan(context=4)) == {
        "all-gather": 2 * N - 2 * V * D,
        "all-reduce": N + METRICS + NORMS * LEAVES,
        "collective-permute": L * layer + 2 * OWN_IDS,
    }


def test_gathered_keys_are_gathered_once_a_layer_and_their_gradients_split():
    """Segments and positions once for all layers."""
    keys = 4 * OWN
    assert sent_as_on_a_tpu(Plan(context=4, context_keys="gathered")) == {
        "all-gather": 2 * N - 2 * V * D + L * 2 * keys + 2 * TOKENS,
        "all-reduce": N + METRICS + NORMS * LEAVES,
        "reduce-scatter": L * 2 * keys,
    }


def test_experts_gather_and_scatter_hidden_states_twice_a_layer():
    """Forward hidden states with their choices and weights are gathered, and outputs summed;
    backward the outputs' gradient, and those of hidden states and weights. The experts' matrices
    stay where they are, all others are gathered as by fsdp. Scores of the experts are gathered too,
    for the choice among them, which XLA does not split."""
    cfg = mistral.Config(
        vocab=32, embed=16, layers=3, heads=4, kv=4, head=4, ffn=32, experts=4, active=2
    )
    spec = param.flatten(mistral.spec(cfg))
    outside = sum(math.prod(p.shape) for p in spec.values() if "expert" not in p.axes[: p.copies])
    choices = TOKENS * cfg.active
    # of every layer the load and the shares of each expert, two losses of the router; tokens once
    statistics = L * (2 * cfg.experts + 2) + 1
    assert sent_as_on_a_tpu(Plan(expert=4), cfg) == {
        "all-gather": 2 * outside
        - 2 * V * D
        + L * (2 * TOKENS * D + 2 * choices + TOKENS * cfg.experts),
        "reduce-scatter": L * (2 * TOKENS * D + choices),
        "all-reduce": outside + METRICS + statistics + NORMS * (LEAVES + 1),
    }


def test_a_pipeline_sends_what_its_turns_hand_on():
    """Forward and back, once a turn. The rows, split over the stages outside of them, are gathered
    for the first, the gradient of what leaves the last for all; XLA takes half of them by way of
    another layout. The outputs of the last stage, and the gradient of the rows, are sums over the
    stages: outputs were gathered from every stage, four times their elements, and three thrown
    away. No layer's weights move."""
    cfg = dataclasses.replace(CFG, layers=4)
    plan = Plan(pipe=4)
    outside = 2 * V * D + D
    assert sent_as_on_a_tpu(plan, cfg) == {
        "collective-permute": 2 * plan.turns * TOKENS * D // plan.parts,
        "all-gather": 2 * outside - 2 * V * D + (TOKENS * (2 * D + 2)) * 3 // 2,
        "all-reduce": outside + 2 * TOKENS * D + METRICS + NORMS * LEAVES,
    }


def test_a_pipeline_hands_on_once_a_turn_and_back():
    """The state forward, its gradient backward; what waits at the first stage is everywhere. The
    gradient was sent in two parts, of which one was zero but for one stage."""
    plan = Plan(pipe=4)

    def layers(weights, x, rows):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), ()), x, weights)

    def run(weights, x):
        place = jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec("pipe"))
        weights = jax.lax.with_sharding_constraint(weights, place)
        return jnp.sum(pipeline_parallel.apply(layers, plan, weights, x, {})[0])

    weights, x = jnp.ones((4, 4, 4)), jnp.ones((16, 3, 4))
    found = {}
    for f in (run, jax.value_and_grad(run)):
        found[f] = counts(f, plan, weights, x).get(("collective-permute", ("pipe",)), 0)
    assert [*found.values()] == [plan.turns, 2 * plan.turns]
