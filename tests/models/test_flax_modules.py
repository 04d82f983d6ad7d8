"""Flax modules as Models, and Models as Flax modules, against Flax's own calls and optax."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import NamedSharding, PartitionSpec

import jaxlm
from jaxlm import models, objectives
from jaxlm.core import config, param
from jaxlm.decode import token_sampling
from jaxlm.models import flax_modules, llama
from jaxlm.models.flax_modules import from_flax, to_nnx
from jaxlm.models.model import logits
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import flops
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from tests import programs, run_programs
from tests.flax_transformers import Batched, LinenTransformer, NnxTransformer

pytestmark = pytest.mark.xdist_group("flax_modules")
B, T, V = programs.B, programs.T, programs.V
READS = ("mask", "positions")
AXES = (("mlp", "ffn"),)
LINEN = LinenTransformer(V)
TINY = llama.Config(vocab=V, embed=8, layers=2, heads=2, kv=2, head=4, ffn=16)


@functools.cache
def stranger(kind, plan=Plan()):
    """(module, its Model, its weights)."""
    if kind == "nnx":
        module = NnxTransformer(V, layers=1, rngs=nnx.Rngs(1))
        model = from_flax.model(module, vocab=V, context=32, reads=READS, plan=plan)
        return module, model, from_flax.weights(module)
    variables = LINEN.init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))
    model = from_flax.model(LINEN, vocab=V, documents="joined", axes=AXES, plan=plan)
    return variables, model, from_flax.weights(variables)


def deep():
    """`stranger` of two blocks, so that nnx numbers them."""
    module = NnxTransformer(V, layers=2, rngs=nnx.Rngs(1))
    model = from_flax.model(module, vocab=V, context=32, reads=READS)
    return module, model, from_flax.weights(module)


def own_logits(kind, module, tokens):
    """Logits by the module's own call, of rows that are one document each."""
    return module(tokens) if kind == "nnx" else LINEN.apply(module, tokens)


def own_loss(kind, module, batch):
    z = own_logits(kind, module, batch.tokens)
    each = optax.softmax_cross_entropy_with_integer_labels(z, batch.targets)
    return jnp.sum(each * batch.weight)


@functools.cache
def compiled(kind):
    """Compiled (params, tokens, at) -> logits of a stranger's Model, and its own call."""
    model = stranger(kind)[1]
    own = functools.partial(own_logits, kind)
    return (
        jax.jit(functools.partial(logits, model)),
        nnx.jit(own) if kind == "nnx" else jax.jit(own),
    )


def whole(tokens):
    return At(jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_logits_gradients_and_training_are_the_modules_own(kind):
    module, model, params = stranger(kind)
    batches = [programs.rows(seed) for seed in range(3)]
    forward, own = compiled(kind)
    tokens = batches[0].tokens
    want = own(module, tokens)
    np.testing.assert_allclose(forward(params, tokens, whole(tokens)), want, atol=1e-6)

    objective = objectives.build(objectives.clm.Config(), model)
    # a key's bias has no gradient but rounding, which eps keeps from being blown up
    tx = optax.adam(1e-2, eps=1e-3)

    @jax.jit
    def by_hand(params, opt, batch):
        def loss(params):
            return own_loss(kind, from_flax.restored(module, params), batch) / batch.weight.sum()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value, grads

    cfg = optimizer.Optim(
        lr=1e-2, warmup=0, schedule="constant", weight_decay=0.0, clip=None, b2=0.999, eps=1e-3
    )
    ours = optimizer.build(cfg, objective.spec, 10, False)
    grads = jax.jit(jax.grad(lambda p: objective.loss(p, {}, batches[0], None)[0]))(params)
    state = step.begin(objective, ours, Plan(), 0, jax.tree.map(jnp.array, params))
    train, opt, hand = step.make(objective, ours, Plan()), tx.init(params), params
    for number, batch in enumerate(batches):
        hand, opt, value, own = by_hand(hand, opt, batch)
        if not number:
            mean = jax.tree.map(lambda g: g / batches[0].weight.sum(), grads)
            programs.close(mean, own, 1e-4, 1e-4)
        state, metrics = train(state, batch)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    programs.close(state.params, hand, 1e-3, 1e-3)


def test_documents_of_a_row_are_apart_where_the_module_reads_a_mask():
    params, forward = stranger("nnx")[2], compiled("nnx")[0]
    batch = programs.rows(2, [(5, 3)] * B)
    at = At(batch.segments, batch.positions)
    packed = forward(params, batch.tokens, at)
    alone = forward(params, batch.tokens[:, 5:], whole(batch.tokens[:, 5:]))
    np.testing.assert_allclose(packed[:, 5:], alone, atol=1e-5)
    with pytest.raises(ValueError, match="documents: 'apart' given.*neither mask"):
        from_flax.model(LINEN, vocab=V)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_padding_may_stand_anywhere(kind):
    """A module that counts positions itself reads a row with padding in front as one without."""
    params, forward = stranger(kind)[2], compiled(kind)[0]
    tokens = jnp.asarray(programs.rows(3).tokens)[:, :6]
    want = forward(params, tokens, whole(tokens))
    gap = jnp.array([2, 3, 5, 6, 7, 9])  # padding before, between and after
    at = At(*(jnp.zeros((B, 11), jnp.int32).at[:, gap].set(x) for x in whole(tokens)[:2]))
    got = forward(params, jnp.full((B, 11), 7).at[:, gap].set(tokens), at)
    np.testing.assert_allclose(got[:, gap], want, atol=1e-5)


@pytest.mark.parametrize("kind", ["nnx", pytest.param("linen", marks=pytest.mark.slow)])
def test_greedy_decoding_is_full_recomputation(kind):
    module, model, params = stranger(kind)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5]]
    out = token_sampling.generate(
        model, params, prompts, token_sampling.Sampling(max_new=6, temperature=0)
    )
    own = compiled(kind)[1]
    for row, prompt in zip(out.tokens, prompts):
        text = list(prompt)
        for _ in range(6):  # causal: what follows the text does not matter
            padded = jnp.array([text + [0] * (12 - len(text))])
            text.append(int(own(module, padded)[0, len(text) - 1].argmax()))
        assert row.tolist() == text[len(prompt) :]


@pytest.mark.slow
def test_a_mesh_computes_the_same():
    for kind in ("nnx", "linen"):
        _, model, params = stranger(kind)
        batch = programs.rows(4)
        plan = dataclasses.replace(programs.MESH, remat="full", microbatches=2)
        results = []
        for p in (Plan(), plan):
            _, there, _ = stranger(kind, p)
            objective = objectives.build(objectives.clm.Config(), there, p)
            tx = optimizer.build(
                optimizer.Optim(lr=1e-2, warmup=0, eps=1e-3), objective.spec, 10, False
            )
            placed = jax.device_put(
                jax.tree.map(np.asarray, params), p.shard_params(objective.spec)
            )
            state = step.begin(objective, tx, p, 0, placed)
            state, metrics = step.make(objective, tx, p)(state, programs.placed(batch, p))
            results.append((metrics["loss"], state.params))
        np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
        programs.close(results[1][1], results[0][1], 1e-4, 1e-4)
        flat = param.flatten(results[1][1])
        split = {k for k, w in flat.items() if w.sharding.spec != PartitionSpec(*[None] * w.ndim)}
        assert len(split) >= 2, "axis names in the metadata decide the shardings"


def test_weights_convert_both_ways_without_a_copy():
    for kind in ("nnx", "linen"):
        module, model, params = deep() if kind == "nnx" else stranger(kind)
        again = from_flax.restored(module, params)
        back = from_flax.weights(again)
        for path, w in param.flatten(params).items():
            other = param.flatten(back)[path]
            assert w.unsafe_buffer_pointer() == other.unsafe_buffer_pointer()
            assert w.sharding == other.sharding
        assert jax.tree.structure(model.spec, is_leaf=param.is_param) == jax.tree.structure(params)
        if kind == "nnx":
            kernel = again.blocks[1].attend.query.kernel
            assert kernel.get_metadata("out_sharding") == ("embed", "heads", "head")
            assert model.spec["module"]["blocks"]["1"]["attend"]["query"]["kernel"].axes == (
                "embed", "heads", "head",
            )  # fmt: skip
        else:
            box = again["params"]["Dense_0"]["kernel"]
            assert isinstance(box, linen.LogicallyPartitioned) and box.names == ("embed", "mlp")
            assert model.spec["module"]["Dense_0"]["kernel"].axes == ("embed", "ffn")
    with pytest.raises(ValueError, match="params: weight .* is in one of module and params alone"):
        from_flax.restored(module, {"module": {}})


def test_initial_weights_are_the_modules_own_draw():
    lazy = from_flax.Lazy(NnxTransformer, {"vocab": V, "layers": 1})
    model = from_flax.model(lazy, vocab=V, reads=READS)
    key = jax.random.key(5)
    own = from_flax.weights(NnxTransformer(V, layers=1, rngs=nnx.Rngs(key)))
    programs.same(param.init(model.spec, key), own)
    linens = from_flax.model(LINEN, vocab=V, documents="joined", axes=AXES)
    variables = LINEN.init(key, jnp.zeros((1, 1), jnp.int32))
    programs.same(param.init(linens.spec, key), from_flax.weights(variables))


def test_dropout_follows_the_key():
    """A key turns dropout on and decides it; without one the module is deterministic."""
    noisy = NnxTransformer(V, layers=1, rate=0.5, rngs=nnx.Rngs(1))
    linen_noisy = LinenTransformer(V, dropout=0.5)
    cases = [
        (from_flax.model(noisy, vocab=V, reads=READS), from_flax.weights(noisy), "nnx"),
        (
            from_flax.model(
                linen_noisy, vocab=V, documents="joined", reads=("deterministic",), axes=AXES
            ),
            stranger("linen")[2],
            "linen",
        ),
    ]
    tokens = jnp.asarray(programs.rows(3).tokens)
    for model, params, kind in cases:

        @jax.jit
        def forward(key, model=model, params=params):
            return model.hidden(params, tokens, whole(tokens), key=key).x

        a, b, c = (forward(jax.random.key(seed)) for seed in (1, 1, 2))
        assert (a == b).all() and (a != c).any()
        plain = from_flax.restored(stranger(kind)[0], params)
        np.testing.assert_allclose(forward(None), compiled(kind)[1](plain, tokens), atol=1e-5)


def test_what_cannot_be_a_model_says_why(monkeypatch):
    with pytest.raises(ValueError, match="norm/mean is a BatchStat"):
        from_flax.model(Batched(nnx.Rngs(0)), vocab=V, documents="joined")
    with pytest.raises(ValueError, match="reads: 'masks' given"):
        from_flax.model(LINEN, vocab=V, reads=("masks",))
    with pytest.raises(ValueError, match="plan.attention: 'blockwise' given; a Flax module"):
        stranger("linen", Plan(attention="blockwise"))
    with pytest.raises(ValueError, match=r"axis 'mlp' has no rule"):
        Plan().shard_params(from_flax.model(LINEN, vocab=V, documents="joined").spec)
    _, model, params = stranger("linen")
    wrong = from_flax.model(LINEN, vocab=V + 1, documents="joined", axes=AXES)
    with pytest.raises(ValueError, match=rf"vocab: {V + 1} given, .* returned \(1, 2, {V}\)"):
        logits(wrong, params, jnp.ones((1, 2), int), whole(jnp.ones((1, 2), int)))
    adapted = {"module": params["module"] | {"places": {"kernel": (params, 1)}}}
    with pytest.raises(ValueError, match="adapter=None is right"):
        logits(model, adapted, jnp.ones((1, 2), int), whole(jnp.ones((1, 2), int)))
    half = nnx.eval_shape(lambda: NnxTransformer(V, rngs=nnx.Rngs(0)))
    half.norm.scale = nnx.Param(jax.ShapeDtypeStruct((8,), jnp.bfloat16))
    with pytest.raises(ValueError, match="norm/scale is bfloat16; trained weights are float32"):
        from_flax.model(half, vocab=V, reads=READS)
    monkeypatch.setenv(flax_modules.TRUSTED, "other,tests.nowhere")
    for factory, problem in (("", "would run code of module ''"), ("tests.nowhere:f", "No module")):
        with pytest.raises(ValueError, match=f"model.factory: {factory!r}.*{problem}"):
            models.build(flax_modules.Config(factory=factory))
    cfg = flax_modules.config(NnxTransformer, 259, reads=READS)
    with pytest.raises(ValueError, match="model.factory: .* a scalar head on hidden states"):
        objectives.build(objectives.reward.Config(), models.build(cfg))
    bad = dataclasses.replace(cfg, arguments=(("wide", 3),))
    with pytest.raises(ValueError, match="model.arguments: {'wide': 3} given.*'wide'"):
        models.build(bad)


def test_a_config_file_alone_runs_no_code(monkeypatch):
    """docs/safety.md: a config.json may name code; being importable is not being trusted."""
    for factory in ("os:getcwd", "antigravity:geohash", "tests.flax_transformers:LinenTransformer"):
        with pytest.raises(ValueError, match="which would run code of module .*JAXLM_FACTORIES="):
            models.build(flax_modules.Config(factory))
    assert "antigravity" not in sys.modules
    with pytest.raises(ValueError, match="a function or class of a module is needed"):
        flax_modules.config(lambda: None, 9)
    monkeypatch.setenv(flax_modules.TRUSTED, "tests.flax_transformers")
    cfg = flax_modules.Config("tests.flax_transformers:NnxTransformer", V, reads=READS)
    assert param.count(models.spec(cfg)) > 0


@pytest.mark.slow
def test_a_run_names_a_module_by_its_factory(tmp_path, monkeypatch):
    """Trained, evaluated, sampled and resumed as any family's model."""
    monkeypatch.chdir(tmp_path)
    cfg = flax_modules.config(NnxTransformer, 259, 32, (("vocab", 259), ("layers", 1)), READS)
    data = jaxlm.Data(source="markov", seq=16, batch=4, holdout=0.001)
    run = jaxlm.Run(
        name="a", model=cfg, data=data, optim=jaxlm.Optim(lr=1e-2, warmup=1), steps=4, log_every=1,
        samples=("ab",), sample_tokens=3,
    )  # fmt: skip
    assert config.from_dict(jaxlm.Run, config.to_dict(run)) == run
    with run_programs.shared():
        first = jaxlm.train(run)
        wide = dataclasses.replace(run, name="b", plan=Plan(data=2), samples=())
        assert jaxlm.train(wide).val["bits_per_byte"] == pytest.approx(first.val["bits_per_byte"])
        saved = jaxlm.load("runs/a")
        assert jaxlm.evaluate(saved)["bits_per_byte"] == pytest.approx(first.val["bits_per_byte"])
        assert len(jaxlm.generate(saved, ["ab"], jaxlm.Sampling(max_new=4, temperature=0))) == 1
    matrices, block = 259 * 8 + 32 * 8, 4 * 8 * 8 + 2 * 8 * 16  # two tables, and in the block
    biases = 4 * 8 + 16 + 8 + 2 * 8 + 2 * 8
    assert param.count(models.spec(cfg)) == matrices + block + biases
    assert flops.per_token(cfg, 16).forward == 2 * block


def test_a_model_is_an_nnx_module():
    """Same logits, the same buffers, and it trains with nnx.Optimizer as with optax by hand."""
    model = models.build(TINY)
    params = programs.drawn(model.spec, 0)
    module = to_nnx.module(model, params)
    for path, w in param.flatten(to_nnx.weights(module)).items():
        assert w is param.flatten(params)[path]
    batch = programs.rows(5, [(5, 3)] * B)
    at = At(batch.segments, batch.positions)
    forward = jax.jit(functools.partial(logits, model))
    want = forward(params, batch.tokens, at)
    call = nnx.jit(lambda m, *rows: m(*rows))
    got = call(module, batch.tokens, batch.segments, batch.positions)
    np.testing.assert_allclose(got, want, atol=1e-6)
    graph, state = nnx.split(module)
    again = nnx.merge(graph, state)
    assert again.weights["embed"]["table"].get_metadata("out_sharding") == ("vocab", "embed")
    tokens = batch.tokens
    want = forward(params, tokens, whole(tokens))
    np.testing.assert_allclose(call(again, tokens), want, atol=1e-6)

    def loss(m, batch):
        z = m(batch.tokens)
        each = optax.softmax_cross_entropy_with_integer_labels(z, batch.targets)
        return each.mean()

    opt = nnx.Optimizer(module, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def train(module, opt, batch):
        value, grads = nnx.value_and_grad(loss)(module, batch)
        opt.update(module, grads)
        return value

    def hand_loss(params, batch):
        z = logits(model, params, batch.tokens, whole(batch.tokens))
        return optax.softmax_cross_entropy_with_integer_labels(z, batch.targets).mean()

    hand, tx = params, optax.adam(1e-2)
    carried, grad = tx.init(hand), jax.jit(jax.value_and_grad(hand_loss))
    for _ in range(2):
        value, grads = grad(hand, batch)
        updates, carried = tx.update(grads, carried)
        hand = optax.apply_updates(hand, updates)
        np.testing.assert_allclose(train(module, opt, batch), value, rtol=1e-5)
    programs.close(to_nnx.weights(module), hand, 1e-3, 1e-3)
    with pytest.raises(ValueError, match="weight stack/.* is in one of params"):
        to_nnx.module(model, {"embed": params["embed"], "norm": params["norm"]})


def test_a_model_as_an_nnx_module_keeps_its_shardings():
    plan = programs.MESH
    model = models.build(TINY, plan)
    where = plan.shard_params(model.spec)
    params = jax.device_put(programs.drawn(model.spec, 0), where)
    module = to_nnx.module(model, params)
    specs = nnx.get_partition_spec(nnx.state(module, nnx.Param))
    for keys, v in nnx.to_flat_state(nnx.state(module)):
        w = v.get_value()
        path = "/".join(map(str, keys[1:]))
        assert w.sharding == param.flatten(where)[path]
        named = NamedSharding(plan.mesh, dict(nnx.to_flat_state(specs))[keys].get_value())
        assert named.is_equivalent_to(w.sharding, w.ndim), path
    tokens = programs.rows(6).tokens
    single = jax.jit(functools.partial(logits, models.build(TINY)))
    want = single(programs.drawn(model.spec, 0), tokens, whole(tokens))
    got = nnx.jit(lambda m, t: m(t))(module, tokens)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_encoder_decoder_as_an_nnx_module_reads_a_source():
    family = next(case for case, cfg in programs.FAMILIES.items() if cfg.KIND == "t5")
    model, params = programs.shape(family), programs.weights(family)
    batch = programs.fit(family, programs.rows(7))
    at = At(batch.source_segments, batch.source_positions)
    x = model.encode(params, batch.source, at)
    x = model.hidden(params, batch.tokens, whole(batch.tokens), source=(x, at)).x
    module = to_nnx.module(model, params)
    got = module(batch.tokens, source=jnp.asarray(batch.source))
    np.testing.assert_allclose(got, model.unembed(model.head(params), x), atol=1e-5)
    with pytest.raises(ValueError, match="encoder-decoder reads pairs"):
        module(batch.tokens)
