"""Adapters around objectives: what they add, what they leave, and where they lie."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.models import llama, mistral
from jaxlm.models.model import logits
from jaxlm.objectives import clm, lora
from jaxlm.objectives.objective import Frozen, Objective
from jaxlm.objectives.preference import dpo, reward
from jaxlm.ops import linear
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from tests import programs
from tests.families.sizes import T, V
from tests.objectives.cases import dpo as dpo_cases

# 64 numbers and more to a matrix and device, so that blocks divide over a mesh
MODEL = llama.Config(vocab=V, embed=32, layers=2, heads=4, kv=4, head=8, ffn=64, context=T)
EVERYTHING = ("stack/*", "unembed")


def drawn(spec, seed):
    """Weights away from their start, where `b` is 0."""
    params = programs.drawn(spec, seed)
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * r.standard_normal(x.shape, np.float32), params)


@functools.cache
def base():
    return drawn(models.spec(MODEL), 3)


def adapted(plan=Plan(), **fields):
    model = models.build(MODEL, plan)
    cfg = lora.Lora(**({"rank": 2, "alpha": 3.0, "targets": EVERYTHING} | fields))
    return model, lora.adapt(clm.build(clm.Config(), model, plan), model, cfg)


def stored(objective, weights):
    part = objective.frozen[lora.BASE]
    return {lora.BASE: weights if part.stored is None else jax.jit(part.stored.make)(weights)}


@functools.partial(jax.jit, static_argnums=0)
def graded(loss, params, frozen, batch):
    return jax.value_and_grad(lambda p: loss(p, frozen, batch, None)[0])(params)


@pytest.mark.parametrize("quantise", ["nf4", "nf4_double"])
def test_every_stored_array_has_its_place_on_a_mesh(quantise):
    """Of the base's weights those in 4 bits have a place for each part, the others one."""
    weights = models.spec(MODEL)
    kept = lora.stored(weights, lora.Lora(targets=EVERYTHING, quantise=quantise))
    arrays = jax.eval_shape(kept.make, param.abstract(weights))
    shapes = jax.tree.map(lambda p: p.shape, kept.spec, is_leaf=param.is_param)
    assert shapes == jax.tree.map(lambda x: x.shape, arrays)
    assert arrays["embed"]["table"].shape == weights["embed"]["table"].shape


@pytest.mark.parametrize("quantise", [None, pytest.param("nf4_double", marks=pytest.mark.slow)])
def test_nothing_at_first_then_the_merged_weights_and_their_gradient(quantise):
    """At the start the loss is that of the base, bit for bit (to the last place where the base is
    decoded within the product), and only `b` has a gradient, as `b` is 0. Later it is that of the
    merged weights, and the gradients what the chain rule makes of theirs."""
    model, objective = adapted(quantise=quantise)
    plain, batch = clm.build(clm.Config(), model), programs.rows(0, programs.UNEVEN)
    frozen = stored(objective, base())
    below = linear.merged(frozen[lora.BASE])
    start = jax.jit(lambda: param.init(objective.spec, jax.random.key(0)))()
    value, grads = graded(objective.loss, start, frozen, batch)
    places = 0 if quantise is None else 1
    np.testing.assert_array_max_ulp(value, graded(plain.loss, below, {}, batch)[0], places)
    for path, g in param.flatten(grads).items():
        assert np.any(np.asarray(g)) == path.endswith("/b"), path
    for path, x in param.flatten(start).items():
        if path.endswith("/a"):  # uniform within 1 / sqrt(inputs)
            bound = math.prod(param.flatten(objective.spec)[path].shape[1:-1]) ** -0.5
            bound = 32**-0.5 if "unembed" in path else bound
            assert 0.8 * bound < np.abs(x).max() <= bound, path

    params = drawn(objective.spec, 1)
    whole = objective.weights(params, frozen)
    merged = jax.jit(linear.merged)(whole)
    value, grads = graded(objective.loss, params, frozen, batch)
    want_value, outer = graded(plain.loss, merged, {}, batch)
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    outer = param.flatten(outer)
    want = {}
    for path, g in outer.items():
        if f"adapter/{path}/a" in param.flatten(params):
            pair = [np.asarray(param.flatten(params)[f"adapter/{path}/{x}"]) for x in "ab"]
            n = 1 if path == "unembed" else g.shape[0]
            a, b = pair[0].reshape(n, -1, 2), pair[1].reshape(n, 2, -1)
            g = 1.5 * np.asarray(g).reshape(n, a.shape[1], b.shape[2])
            want[f"adapter/{path}/a"] = (g @ b.swapaxes(1, 2)).reshape(pair[0].shape)
            want[f"adapter/{path}/b"] = (a.swapaxes(1, 2) @ g).reshape(pair[1].shape)
    programs.close(param.flatten(grads), want, rtol=1e-4, scale=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantise", [None, "nf4"])
def test_logits_are_those_of_the_merged_weights(quantise):
    model, objective = adapted(quantise=quantise)
    batch, frozen = programs.rows(0, programs.UNEVEN), stored(objective, base())
    whole = objective.weights(drawn(objective.spec, 1), frozen)
    at = At(batch.segments, batch.positions)
    read = jax.jit(lambda w: logits(model, w, batch.tokens, at))
    together = np.asarray(read(jax.jit(linear.merged)(whole)))
    np.testing.assert_allclose(read(whole), together, atol=3e-6 * np.abs(together).max())
    assert np.abs(together - read(linear.merged(frozen[lora.BASE]))).max() > 0.1


@pytest.mark.slow
def test_a_cut_a_mesh_and_recomputing_do_not_change_the_gradient():
    """Of adapters on a base in 4 bits, whose blocks lie over all devices."""

    def run(plan):
        _, objective = adapted(plan, quantise="nf4")
        frozen = stored(objective, base())
        where = plan.shard_params(objective.spec)
        below = {n: plan.shard_params(p.places) for n, p in objective.frozen.items()}
        shapes = {n: p.abstract() for n, p in objective.frozen.items()}
        same = jax.tree.map(lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype), frozen, shapes)
        assert all(jax.tree.leaves(same))
        given = (jax.device_put(drawn(objective.spec, 1), where), jax.device_put(frozen, below))

        @jax.jit
        def gradient(params, frozen, batch):
            state = step.State(jnp.int32(0), params, None, frozen, jnp.zeros(2, jnp.uint32))
            key = jax.random.key(1)
            return step.accumulate(objective, plan, jnp.float32(1), state, batch, key)

        return gradient(*given, programs.placed(programs.rows(0, programs.UNEVEN), plan))

    several = Plan(data=2, fsdp=2, tensor=2, microbatches=2, remat="full", loss_chunk=16)
    one, other = run(Plan()), run(several)
    np.testing.assert_allclose(other[0], one[0], rtol=2e-5)
    programs.close(other[3], one[3], rtol=1e-4, scale=2e-5)


@pytest.mark.slow
def test_decoding_with_adapters_is_decoding_with_the_merged_weights():
    model, objective = adapted()
    whole = objective.weights(drawn(objective.spec, 1), {lora.BASE: base()})
    prompts, settings = [[3, 5, 7], [2]], token_sampling.Sampling(max_new=4, temperature=0.0)
    want = token_sampling.generate(model, linear.merged(whole), prompts, settings)
    got = token_sampling.generate(model, whole, prompts, settings)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=2e-6)


@pytest.mark.slow
def test_decoding_reads_adapters_as_they_are():
    """The loop itself, without what prepares weights for it: prefill and cache through adapters."""
    model, objective = adapted(quantise="nf4")
    frozen = stored(objective, base())
    whole = objective.weights(drawn(objective.spec, 1), frozen)
    prompts, settings = [[3, 5, 7], [2]], token_sampling.Sampling(max_new=4, temperature=0.0)
    want = token_sampling.generate(model, linear.merged(whole), prompts, settings)
    tokens = jnp.asarray([[3, 5, 7], [2, 0, 0]], jnp.int32)
    at = At(jnp.int32(tokens > 0), jnp.broadcast_to(jnp.arange(3), (2, 3)))
    rows = token_sampling.rows_of([settings] * 2, 2)
    raw = jax.jit(lambda w: sampling_loop.generate(model, w, tokens, at, rows, 4))(whole)
    np.testing.assert_array_equal(raw.tokens, want.tokens)
    np.testing.assert_allclose(raw.log_probs, want.log_probs, atol=2e-6)


def linear_problem(wanted):
    """(an objective whose loss is |w - wanted|^2, a model of that one matrix)."""
    p = param.shaper(embed=wanted.shape[0], ffn=wanted.shape[1])

    def loss(params, frozen, batch, key):
        y = linear.einsum("TD,DF->TF", batch, params["stack"]["w"])
        return jnp.sum((y - batch @ wanted) ** 2), jnp.float32(1), {}

    spec = {"stack": {"w": p("embed -> ffn", init=param.zeros)}}
    model = models.build(MODEL)._replace(spec=spec)
    return Objective(spec, loss), model


@pytest.mark.parametrize(
    "scaling, ranks",
    [("rank", (1, 4)), pytest.param("root", (1, 2, 4, 8), marks=pytest.mark.slow)],
)
def test_rank_r_ends_at_the_tail_of_the_singular_values(scaling, ranks):
    """The best matrix of rank r leaves the squares of the other singular values (Eckart and Young
    1936); nothing for full rank."""
    r = np.random.default_rng(0)
    u, v = (np.linalg.qr(r.standard_normal((8, 8)))[0] for _ in range(2))
    values = np.array([2.0, 1.5, 1.2, 1.0, 0.5, 0.3, 0.1, 0.05])
    wanted = np.float32(u * values @ v.T)
    objective, model = linear_problem(wanted)
    for rank in ranks:
        cfg = lora.Lora(rank=rank, alpha=2.0 * rank, targets=("stack/w",), scaling=scaling)
        adapted = lora.adapt(objective, model, cfg)
        frozen = {lora.BASE: param.init(model.spec, jax.random.key(0))}
        tx = optax.adam(optax.cosine_decay_schedule(0.03, 1500))

        @jax.jit
        def train(params, adapted=adapted, frozen=frozen, tx=tx):
            def update(carry, _):
                params, opt = carry
                value, g = jax.value_and_grad(
                    lambda p: adapted.loss(p, frozen, jnp.eye(8), None)[0]
                )(params)
                change, opt = tx.update(g, opt)
                return (optax.apply_updates(params, change), opt), value

            return jax.lax.scan(update, (params, tx.init(params)), None, length=1500)[1]

        losses = train(param.init(adapted.spec, jax.random.key(1)))
        tail = float(np.sum(values[rank:] ** 2))
        assert tail - 1e-4 <= losses[-1] <= tail + 1e-3, rank


def test_the_reference_is_the_base_and_heads_are_trained_whole():
    """DPO's reference is what the adapters stand on, held once: its loss is log 2 at the start. A
    reward model's head is among the trained weights."""
    model = models.build(MODEL)
    cfg = lora.Lora(rank=2, quantise="nf4")
    inner = dpo.build(dpo.Config(), model, Plan())
    assert inner.frozen["reference"].run is None
    adapted = lora.adapt(inner, model, cfg)
    assert adapted.frozen.keys() == {lora.BASE} and adapted.spec.keys() == {lora.ADAPTER}
    params = param.init(adapted.spec, jax.random.key(0))
    frozen = stored(adapted, base())
    total, weight, _ = jax.jit(lambda p, f, b: adapted.loss(p, f, b, None))(
        params, frozen, dpo_cases.batch(0)
    )
    np.testing.assert_allclose(total / weight, np.log(2), atol=1e-5)
    scored = lora.adapt(reward.build(reward.Config(), model, Plan()), model, cfg)
    assert scored.spec.keys() == {lora.ADAPTER, "score"}
    given = {"adapter": {}, "score": 1.0}
    assert scored.weights(given, {lora.BASE: {"embed": 2.0}}) == {"embed": 2.0, "score": 1.0}


def test_frozen_weights_of_other_runs_stay_along_with_the_base():
    model = models.build(MODEL)
    parts = {"reference": Frozen(model.spec), "teacher": Frozen(model.spec, "runs/teacher")}
    seen = {}

    def loss(params, frozen, batch, key):
        seen.update(frozen)
        return jnp.zeros(()), jnp.ones(()), {}

    adapted = lora.adapt(Objective(model.spec, loss, frozen=parts), model, lora.Lora())
    assert adapted.frozen.keys() == {lora.BASE, "teacher"}
    adapted.loss({lora.ADAPTER: {}}, {lora.BASE: base(), "teacher": "theirs"}, None, None)
    assert seen["teacher"] == "theirs"
    assert seen["reference"]["stack"] is base()["stack"]


def test_dropout_is_drawn_anew_in_every_layer_and_fair():
    """Half of what `a` multiplies is dropped, the rest doubled: right in the mean, other in each
    layer and step, and off without a key."""
    model, objective = adapted(dropout=0.5, targets=("stack/*/q",))
    params, frozen = drawn(objective.spec, 1), {lora.BASE: base()}
    batch = programs.rows(0)
    run = jax.jit(lambda key: objective.loss(params, frozen, batch, key)[0])
    sure = jax.jit(lambda: objective.loss(params, frozen, batch, None)[0])()
    values = [float(run(jax.random.key(i))) for i in (0, 0, 1)]
    assert values[0] == values[1] != values[2] and float(sure) not in values

    cfg = lora.Lora(rank=2, alpha=3.0, targets=("stack/*/q",), dropout=0.5)
    tree = lora.joined(cfg, base(), params[lora.ADAPTER], jax.random.key(0))
    leaf = tree["stack"]["0"]["0_global"]["attn"]["q"]
    assert leaf.key.shape == (2, 2) and not np.array_equal(*np.asarray(leaf.key))
    x = jnp.ones((1, 1, 32))

    def drop(key):
        one = linear.Lora(leaf.w[0], leaf.a[0], leaf.b[0], key, leaf.scale, leaf.drop)
        return linear.einsum("BTD,DNH->BTNH", x, one)

    keys = jax.random.key_data(jax.random.split(jax.random.key(1), 4000))
    many = jax.jit(jax.vmap(drop))(keys)
    error = np.asarray(many.std(0)) / 4000**0.5
    assert np.all(np.abs(np.asarray(many.mean(0) - drop(None))) < 5 * error)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"targets": ("stack/*/qq",)},
            r"'stack/\*/qq' matches no weight; the nearest are \['stack",
        ),
        ({"targets": ("stack/*/attn_norm",)}, "matches no matrix"),
        ({"targets": ()}, r"adapter.targets: \(\) given"),
        ({"rank": 0}, "adapter.rank: 0 given; it must be at least 1"),
        ({"alpha": 0.0}, "adapter.alpha: 0.0 given"),
        ({"dropout": 1.0}, r"adapter.dropout: 1.0 given; it must be in \[0, 1\)"),
        ({"targets": ("unembed",), "dropout": 0.1}, "adapter.dropout: .* not a weight of the"),
    ],
)
def test_what_cannot_be_is_refused_in_words(fields, message):
    with pytest.raises(ValueError, match=message):
        lora.spec(models.spec(MODEL), lora.Lora(**fields))


def test_experts_and_rules_that_move_weights_are_refused():
    cfg = mistral.Config(
        vocab=V, embed=16, layers=2, heads=2, kv=2, head=8, ffn=16, experts=4, active=2
    )
    with pytest.raises(ValueError, match=r"adapter.targets: .*/gate is a matrix for each of .*exp"):
        lora.spec(models.spec(cfg), lora.Lora(targets=("stack/*/gate",)))
    objective, model = linear_problem(np.eye(2))
    moving = objective._replace(adjust=lambda params, sums: params)
    with pytest.raises(ValueError, match="adapter: this objective moves weights"):
        lora.adapt(moving, model, lora.Lora(targets=("stack/w",)))
    taken = objective._replace(frozen={"base": Frozen(model.spec)})
    with pytest.raises(ValueError, match="weights called 'base'"):
        lora.adapt(taken, model, lora.Lora(targets=("stack/w",)))
