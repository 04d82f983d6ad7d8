"""The optimisers against NumPy in float64 and against optax, and the guards around them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.core import param
from jaxlm.train.optim import optimizer

STEPS = 20
P = param.shaper(vocab=7, embed=6, heads=2, head=5, ffn=4, expert=2)
SPEC = {
    "table": P("vocab embed", init=param.normal(1.0)),
    "stack": param.stacked(
        3,
        {
            "q": P("embed -> heads head"),
            "o": P("heads head -> embed"),
            "up": P("expert | embed -> ffn"),
            "bias": P("heads head", init=param.zeros),
        },
    ),
    "norm": P("embed", init=param.ones),
    "unembed": P("embed -> vocab"),
}
PLAIN = optimizer.Optim(lr=0.01, schedule="constant", warmup=0, weight_decay=0.0, clip=None)


def tree(seed, scale=1.0, spec=SPEC):
    """Random float32 arrays of the spec's shapes."""
    r = np.random.default_rng(seed)
    return param.map(lambda p: (scale * r.standard_normal(p.shape)).astype(np.float32), spec)


@functools.cache
def stepper(cfg, fp16=False):
    """(init, compiled (grads, opt, params) -> (params, opt)) of a config over SPEC."""
    tx = optimizer.build(cfg, SPEC, STEPS, fp16)

    def step(grads, opt, params):
        moves, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, moves), opt

    return tx.init, jax.jit(step)


def run(cfg, grads, fp16=False, start=None):
    """[(params, opt) after each gradient], from the seed-0 weights."""
    init, step = stepper(cfg, fp16)
    params = tree(0)
    opt = init(params) if start is None else start
    out = []
    for g in grads:
        params, opt = step(g, opt, params)
        out.append((params, opt))
    return out


def close(a, b, rtol, atol=1e-6):
    """Every leaf of two trees agrees."""
    x, y = param.flatten(a), param.flatten(b)
    assert x.keys() == y.keys()
    for path in x:
        np.testing.assert_allclose(x[path], y[path], rtol=rtol, atol=atol, err_msg=path)


def same(a, b):
    """Every leaf of two trees has the same bits."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def norm(g):
    return np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(g)))


def test_adamw_is_its_formula():
    # clipped in some steps and not in others, which Adam's own scaling would otherwise hide
    cfg = optimizer.Optim(
        lr=0.02, schedule="linear", warmup=2, final=0.5, b1=0.8, b2=0.9, clip=12.0
    )
    grads = [tree(i + 1, scale) for i, scale in enumerate((1.0, 3.0, 0.2, 1.0, 0.5))]
    assert norm(grads[1]) > 12 > norm(grads[2])
    got = run(cfg, grads)
    p = param.flatten(jax.tree.map(np.float64, tree(0)))
    mask = param.flatten(param.decayed(SPEC))
    m, v = {k: np.zeros_like(x) for k, x in p.items()}, {k: np.zeros_like(x) for k, x in p.items()}
    for t, (g, (params, opt)) in enumerate(zip(grads, got, strict=True), start=1):
        lr = 0.02 * (t / 2 if t <= 2 else 1 - 0.5 * (t - 1 - 2) / (STEPS - 2))
        size = norm(g)
        for k, x in param.flatten(g).items():
            x = np.float64(x) * min(1.0, 12.0 / size)
            m[k], v[k] = 0.8 * m[k] + 0.2 * x, 0.9 * v[k] + 0.1 * x**2
            d = (m[k] / (1 - 0.8**t)) / (np.sqrt(v[k] / (1 - 0.9**t)) + 1e-8)
            p[k] = p[k] - lr * (d + 0.1 * mask[k] * p[k])
        close(param.flatten(params), p, 2e-6)
        told = optimizer.report(opt)
        assert float(told["grad_norm"]) == pytest.approx(size, rel=1e-6)
        assert float(told["lr"]) == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize(
    "name, lr, reference",
    [
        ("adamw", 0.01, lambda lr: optax.adamw(lr, b2=0.95, weight_decay=0.3, mask=DECAYED)),
        ("lion", 0.01, lambda lr: optax.lion(lr, weight_decay=0.3, mask=DECAYED)),
        ("adafactor", 0.01, lambda lr: optax.adafactor(lr)),
    ],
)
def test_is_optax(name, lr, reference):
    decay = 0.0 if name == "adafactor" else 0.3  # optax does not multiply adafactor's by lr
    cfg = dataclasses.replace(PLAIN, name=name, lr=lr, weight_decay=decay)
    grads = [tree(i + 1) for i in range(3)]
    tx, want = reference(lr), tree(0)
    state = tx.init(want)
    for g, (got, _) in zip(grads, run(cfg, grads), strict=True):
        moves, state = jax.jit(tx.update)(g, state, want)
        want = optax.apply_updates(want, moves)
        close(got, want, 1e-6)


DECAYED = param.decayed(SPEC)


def test_adafactor_keeps_rows_and_columns_of_large_matrices():
    p = param.shaper(embed=128, ffn=136)
    spec = param.stacked(2, {"up": p("embed -> ffn"), "scale": p("embed", init=param.ones)})
    tx = optimizer.build(dataclasses.replace(PLAIN, name="adafactor"), spec, STEPS, False)
    state = jax.eval_shape(tx.init, param.abstract(spec))
    assert {x.shape for x in jax.tree.leaves(state.inner)} == {
        (), (1,), (2, 128), (2, 136),
    }  # fmt: skip


def newton_schulz(x):
    """Jordan et al. 2024's quintic, five times, in float64."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_orthogonalises_each_layers_matrix():
    cfg = dataclasses.replace(PLAIN, name="muon", lr=1.0)
    grads = [tree(1), tree(2)]
    before, ((first, _), (second, _)) = tree(0), run(cfg, grads)
    # (path, one matrix of the stack: [inputs, outputs])
    parts = [
        ("q", lambda x: x[2].reshape(6, 10)),
        ("o", lambda x: x[1].reshape(10, 6)),
        ("up", lambda x: x[2, 1]),
    ]
    for name, cut in parts:
        weights = [np.float64(cut(np.asarray(p["stack"][name]))) for p in (before, first, second)]
        g = [np.float64(cut(x["stack"][name])) for x in grads]
        momentum, b = np.zeros_like(g[0]), 0.95
        for t, x in enumerate(g, start=1):
            momentum = b * momentum + (1 - b) * x
            nesterov = b * momentum / (1 - b ** (t + 1)) + (1 - b) * x / (1 - b**t)
            want = newton_schulz(nesterov) * 0.2 * np.sqrt(max(x.shape))
            np.testing.assert_allclose(weights[t - 1] - weights[t], want, atol=2e-5, err_msg=name)
            # and independently of the iteration: U S V' has become U V', singular values near 1
            u, _, vt = np.linalg.svd(nesterov, full_matrices=False)
            s = u.T @ (weights[t - 1] - weights[t]) @ vt.T / (0.2 * np.sqrt(max(x.shape)))
            np.testing.assert_allclose(s, np.diag(np.diag(s)), atol=1e-4)
            assert (np.diag(s) > 0.5).all() and (np.diag(s) < 1.5).all(), name


def test_muon_leaves_the_rest_to_adamw():
    cfg = dataclasses.replace(PLAIN, name="muon", weight_decay=0.3)
    adam = dataclasses.replace(cfg, name="adamw")
    grads = [tree(1), tree(2)]
    got, want = run(cfg, grads)[-1][0], run(adam, grads)[-1][0]
    for path in ("table", "norm", "unembed"):
        np.testing.assert_allclose(got[path], want[path], rtol=1e-6, err_msg=path)
    np.testing.assert_allclose(got["stack"]["bias"], want["stack"]["bias"], rtol=1e-6)
    assert not np.allclose(got["stack"]["q"], want["stack"]["q"], atol=1e-3)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_only_matrices_and_tables_decay(name):
    cfg = dataclasses.replace(PLAIN, name=name, lr=0.5, weight_decay=0.1)
    zero = jax.tree.map(np.zeros_like, tree(0))
    got, before = run(cfg, [zero])[0][0], tree(0)
    decays = {"table", "unembed", "stack/q", "stack/o", "stack/up"}
    for path, x in param.flatten(got).items():
        want = param.flatten(before)[path] * (1 - 0.5 * 0.1 * (path in decays))
        np.testing.assert_allclose(x, want, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(name, bad):
    cfg = dataclasses.replace(PLAIN, name=name, weight_decay=0.1, warmup=5, clip=1.0, ema=0.9)
    broken = tree(9)
    broken["stack"]["o"][1, 0, 0, 0] = bad
    init, step = stepper(cfg)
    params = tree(0)
    params["norm"][:2] = [-0.0, 0.0]
    params, opt = step(tree(1), init(params), params)
    params["norm"] = params["norm"].at[:2].set(jnp.array([-0.0, 0.0]))
    after, state = step(broken, opt, params)
    same(after, params)
    same((state.inner, state.count, state.average), (opt.inner, opt.count, opt.average))
    assert (int(opt.skipped), int(state.skipped), int(state.count)) == (0, 1, 1)
    # and the step after it is the one that would have come without it
    same(step(tree(2), state, params)[0], step(tree(2), opt, params)[0])


def test_a_spike_is_skipped_once_the_mean_is_known():
    cfg = dataclasses.replace(PLAIN, skip=3.0)
    init, step = stepper(cfg)
    params, g = tree(0), tree(1)
    opt = init(params)
    for i in range(25):
        # the spike at step 5 passes: nothing is known yet
        params, opt = step(
            jax.tree.map(lambda x, i=i: x * (4.0 if i == 5 else 1.0), g), opt, params
        )
    assert int(opt.skipped) == 0
    mean = norm(g) * (24 + 4.0) / 25
    assert float(optimizer.report(opt)["grad_norm_mean"]) == pytest.approx(mean, rel=1e-5)
    for factor, skipped in ((2.9 * 28 / 25, 0), (3.3 * 28 / 25, 1), (1e9, 1)):
        after, state = step(jax.tree.map(lambda x, f=factor: np.float32(f) * x, g), opt, params)
        assert int(state.skipped) == skipped, factor
        # however high, a spike moves the mean by at most 1/26 of (3 - 1) means
        assert float(state.mean.value) <= mean * (1 + 2 / 26) * 1.00001
        if skipped:
            same((after, state.inner, state.count), (params, opt.inner, opt.count))


def test_a_lasting_change_of_level_is_not_skipped_for_good():
    cfg = dataclasses.replace(PLAIN, skip=3.0)
    init, step = stepper(cfg)
    params, g = tree(0), tree(1)
    opt = init(params)
    for i in range(100):
        params, opt = step(jax.tree.map(lambda x, i=i: x * (1 + 5 * (i >= 25)), g), opt, params)
    assert 5 < int(opt.skipped) < 20 and int(opt.count) + int(opt.skipped) == 100


def test_average_of_the_weights_is_its_closed_form():
    cfg = dataclasses.replace(PLAIN, ema=0.7)
    init, _ = stepper(cfg)
    start = tree(0)
    same(optimizer.ema(init(start), start), start)
    seen = run(cfg, [tree(i) for i in range(1, 6)])
    for t, (params, opt) in enumerate(seen, start=1):
        weights = [0.7 ** (t - i) for i in range(1, t + 1)]

        def mean(*leaves, weights=weights):
            return sum(w * np.float64(x) for w, x in zip(weights, leaves)) / sum(weights)

        want = jax.tree.map(mean, *(p for p, _ in seen[:t]))
        close(optimizer.ema(opt, params), want, 1e-5)
    params, opt = run(PLAIN, [tree(1)])[0]
    assert optimizer.ema(opt, params) is params


def test_loss_scale_halves_on_overflow_and_doubles_after_2000_good_steps():
    init, step = stepper(PLAIN, fp16=True)
    params, g = tree(0), tree(1)
    start = init(params)
    assert float(optimizer.loss_scale(start)) == 1024
    bad = jax.tree.map(lambda x: np.full_like(x, np.inf), g)
    _, once = step(bad, start, params)
    _, twice = step(bad, once, params)
    assert [float(optimizer.loss_scale(s)) for s in (once, twice)] == [512, 256]
    assert float(optimizer.report(twice)["loss_scale"]) == 256 and int(twice.skipped) == 2

    @jax.jit
    def many(opt):
        good = jnp.arange(4100) != 50  # one overflow starts the count again
        return jax.lax.scan(
            lambda s, ok: (s := optimizer._rescaled(s, ok), s.value), opt.scale, good
        )

    values = np.asarray(many(twice)[1])
    assert values[49] == 256 and values[50] == 128
    assert values[50 + 1999] == 128 and values[50 + 2000] == 256 and values[50 + 4000] == 512


def test_loss_scale_stays_within_its_bounds():
    ok = optimizer.Scale(jnp.float32(2.0**24), jnp.int32(1999))
    assert float(optimizer._rescaled(ok, jnp.bool_(True)).value) == 2.0**24
    low = optimizer.Scale(jnp.float32(2.0**-14), jnp.int32(0))
    assert float(optimizer._rescaled(low, jnp.bool_(False)).value) == 2.0**-14


def test_other_precisions_have_no_loss_scale():
    params, opt = run(PLAIN, [tree(1)])[0]
    assert float(optimizer.loss_scale(opt)) == 1.0
    assert set(optimizer.report(opt)) == {"grad_norm", "lr", "skipped"}
    assert all(x.dtype == jnp.float32 and x.shape == () for x in optimizer.report(opt).values())


WRONG = [
    ({"name": "adam"}, "optim.name: 'adam' given; it must be one of ['adamw', 'adafactor'"),
    ({"schedule": "cos"}, "optim.schedule: 'cos' given; it must be one of ['cosine', 'linear'"),
    ({"lr": 0.0}, "optim.lr: 0.0 given; it must be above 0"),
    ({"lr": float("inf")}, "optim.lr: inf given; it must be above 0"),
    ({"warmup": 20}, "optim.warmup: 20 given; it must be in [0, 20), within steps=20"),
    ({"warmup": -1}, "optim.warmup: -1 given; it must be in [0, 20)"),
    ({"final": 1.5}, "optim.final: 1.5 given; it must be in [0, 1]"),
    (
        {"schedule": "constant", "final": 0.1},
        "optim.final: 0.1 given; it must be None with constant",
    ),
    ({"decay": 0.2}, "optim.decay: 0.2 given; it must be None with cosine, which has none"),
    ({"schedule": "wsd", "decay": 0.0}, "optim.decay: 0.0 given; it must be in (0, 1]"),
    ({"schedule": "wsd", "decay": 0.9}, "optim.decay: 0.9 given; it must be at most 0.8 after"),
    ({"b1": 1.0}, "optim.b1: 1.0 given; it must be in [0, 1)"),
    ({"b2": -0.1}, "optim.b2: -0.1 given; it must be in [0, 1)"),
    ({"name": "adafactor", "b2": 0.9}, "optim.b2: 0.9 given; it must be None with adafactor"),
    ({"name": "lion", "eps": 1e-8}, "optim.eps: 1e-08 given; it must be None with lion"),
    ({"eps": 0.0}, "optim.eps: 0.0 given; it must be above 0"),
    ({"weight_decay": -0.1}, "optim.weight_decay: -0.1 given; it must be at least 0"),
    ({"clip": 0.0}, "optim.clip: 0.0 given; it must be above 0"),
    ({"skip": 1.0}, "optim.skip: 1.0 given; it must be above 1"),
    ({"ema": 1.0}, "optim.ema: 1.0 given; it must be in (0, 1)"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=lambda x: "-".join(x) if x is dict else "")
def test_a_wrong_value_is_named(change, message):
    cfg = dataclasses.replace(optimizer.Optim(warmup=4), **change)
    with pytest.raises(ValueError) as error:
        optimizer.build(cfg, SPEC, STEPS, False)
    assert message in str(error.value)
