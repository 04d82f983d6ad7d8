"""Attention kernels against an oracle in float64; docs/attention.md is the table of all cells."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import attention, position_bias
from jaxlm.ops.attention import At
from jaxlm.ops.kernels import cudnn
from tests.ops import attention_oracle as oracle
from tests.ops import attention_table as table

# Cells that between them switch on everything: one program per kernel.
FAST = (
    "sliding window, wide",
    "window to both sides",
    "T5's bias, both ways",
    "prefix-LM with a window",
    "Longformer (shared tokens, window to both sides)",
    "the same, ALiBi too",
    "bfloat16",
    "cached decoding, all at once",
)
TOGETHER = "window, soft-cap, scale, sinks and MLA at once"


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
def test_values_and_gradients(kernel):
    table.check(kernel, [cell for cell in FAST if table.knows(kernel, cell)])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", table.KERNELS)
def test_every_cell_of_the_table(kernel):
    cells = [cell for cell in table.CELLS if table.knows(kernel, cell)]
    for some in (cells[:8], cells[8:16], cells[16:]):
        table.check(kernel, some)


def test_what_the_table_calls_refused_is_refused_by_name():
    words = {
        "soft-cap": "softcap",
        "values of another head size (MLA)": "head size",
        "ALiBi": "bias",
        "T5's bias, causal": "bias",
        "T5's bias, both ways": "bias",
        "sinks": "sinks",
        "prefix-LM (shared tokens)": "shared tokens",
        "prefix-LM with a window": "shared tokens",
        "Longformer (shared tokens, window to both sides)": "shared tokens",
        TOGETHER: "softcap",
        "the same, ALiBi too": "softcap|bias",
        "float32": "float32",
    }
    for kernel in table.EVERY:
        for cell in table.CELLS:
            if not table.knows(kernel, cell) and not table.CELLS[cell][0].get("cached"):
                message = table.refusal(kernel, cell)
                assert message is not None, (kernel, cell)
                assert re.search(f"kernel '{kernel}' .*({words[cell]})", message), (cell, message)


def test_the_page_is_the_declared_table():
    """Where hardware has been run is read from the page: the rest of it is derived."""
    page = table.PAGE.read_text("utf-8")
    ran = {
        kernel
        for kernel, column in (("splash", 4), ("cudnn", 6))
        if page.split("| causal |")[1].split("|")[column - 1].strip() == "yes"
    }
    assert page == table.render(ran)


def weights(segments, positions, shared, **options):
    """Who weighs whom, float [T,S] of one row: attention over values that are unit vectors."""
    length = len(segments)
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, length, 1, 4)).astype(np.float32)
    at = At(*(jnp.asarray([a]) for a in (segments, positions, shared)))
    return attention.attend(
        q, k, np.eye(length, dtype=np.float32)[None, :, None], at, at, **options
    )[0, :, 0]


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
def test_values_alone_are_those_of_the_formula(kernel):
    """Without a gradient a kernel may be another program than with one."""
    q, k, v = np.random.default_rng(1).normal(size=(3, 2, 6, 2, 4)).astype(np.float32)
    at = At(*np.tile(np.array([[[1] * 6], [range(6)]], np.int32), (1, 2, 1)), None)
    scores = np.einsum("btnh,bsnh->bnts", np.float64(q), k) / 2
    mass = np.exp(np.where(np.tri(6, dtype=bool), scores, -np.inf))
    want = np.einsum("bnts,bsnh->btnh", mass / mass.sum(-1, keepdims=True), v)
    got = jax.jit(lambda *x: attention.attend(*x, at, at, kernel=kernel))(q, k, v)
    np.testing.assert_allclose(got, want, atol=1e-5)


def grid(text):
    return np.array([[c == "x" for c in line] for line in text.split()])


def test_the_prefix_sees_all_of_itself_and_later_tokens_see_the_past():
    """A document with a prefix of 3, one with a prefix of 1 and a padded row end."""
    segments, positions = [1, 1, 1, 1, 1, 2, 2, 0], [0, 1, 2, 3, 4, 0, 1, 0]
    prefix = [True, True, True, False, False, True, False, True]
    seen = grid(
        """
        xxx.....
        xxx.....
        xxx.....
        xxxx....
        xxxxx...
        .....x..
        .....xx.
        ........
        """
    )
    np.testing.assert_array_equal(weights(segments, positions, prefix) > 0, seen)
    seen[4, 3] = False  # with a window of one's own key, the prefix is still seen
    np.testing.assert_array_equal(weights(segments, positions, prefix, window=1) > 0, seen)


def test_longformers_global_tokens_see_all_and_are_seen_by_all():
    """Token 2 of the first document is global; the others see one key to each side."""
    segments, positions = [1, 1, 1, 1, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5, 0, 1]
    chosen = [False, False, True, False, False, False, False, False]
    seen = grid(
        """
        xxx.....
        xxx.....
        xxxxxx..
        ..xxx...
        ..xxxx..
        ..x.xx..
        ......xx
        ......xx
        """
    )
    got = weights(segments, positions, chosen, causal=False, window=2)
    np.testing.assert_array_equal(got > 0, seen)


def run(x, at, learnt, **options):
    """Output and gradients of sum(output * g) to the learnt arrays, by name."""

    @jax.jit
    def both(learnt):
        def attend(learnt):
            a = {**x, **learnt}
            sinks = learnt.get("sinks")
            return attention.attend(a["q"], a["k"], a["v"], at, at, sinks=sinks, **options)

        out, pull = jax.vjp(attend, learnt)
        return {"out": out, **pull(jnp.asarray(x["g"]))[0]}

    got = both({name: x[name] for name in learnt})
    return {name: np.asarray(a, np.float64) for name, a in got.items()}


def test_documents_and_padding_in_any_order():
    """Three documents interleaved token by token with padding: no row order is assumed."""
    rng = np.random.default_rng(1)
    segments = rng.integers(0, 4, size=(oracle.B, oracle.T)).astype(np.int32)
    positions = np.zeros_like(segments)
    for row, at in zip(segments, positions, strict=True):
        for one in range(4):
            at[row == one] = np.arange((row == one).sum())
    chosen = oracle.shared("global", segments, positions)
    x, options = oracle.arrays(), {"causal": False, "window": 6}
    got = run(x, At(segments, positions, chosen), ("q", "k", "v", "sinks"), **options)
    at = (segments, positions, chosen)
    true = oracle.attention(x, at, at, sinks=True, **options)
    for name, a in got.items():
        np.testing.assert_allclose(a, true[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
def test_a_query_that_sees_nothing_is_exactly_zero(kernel):
    """Padding gives 0 and takes no gradient, even where its cotangent and its scores are huge; nor
    does it give one to a sink, however small that is."""
    segments, positions = oracle.places()
    x, pad = oracle.arrays(), segments == 0
    for name in "qkvg":
        x[name][pad] = 1e18
    x["sinks"][:2] = -1e4
    got = run(x, At(segments, positions), ("q", "k", "v", "sinks"), kernel=kernel)
    for name in ("out", "q", "k", "v"):
        assert np.isfinite(got[name]).all()
        assert (got[name][pad] == 0).all()
        assert (got[name][~pad] != 0).any()
    assert np.isfinite(got["sinks"]).all()
    assert (got["sinks"][:2] == 0).all()
    assert (got["sinks"][2:] != 0).all()


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
def test_no_gradient_crosses_documents(kernel):
    segments, positions = oracle.places()
    x = oracle.arrays()
    x["g"][segments != 2] = 0
    got = run(x, At(segments, positions), ("q", "k", "v"), kernel=kernel)
    for name in "qkv":
        assert (got[name][segments != 2] == 0).all()
        assert (got[name][segments == 2] != 0).any()


@pytest.mark.slow
def test_blockwise_gives_a_bias_its_gradient_under_scan_and_remat():
    """A table that every layer reads, and one each: the gradient is summed over the layers."""
    segments, positions = oracle.places()
    x, at = oracle.arrays(), At(segments, positions)
    tables = np.random.default_rng(2).normal(size=(3, *x["table"].shape)).astype(np.float32)

    def loss(learnt, kernel):
        def layer(q, own):
            added = position_bias.bucketed(learnt["shared"] + own, 20, True)
            y = attention.attend(q, x["k"], x["v"], at, at, bias=added, kernel=kernel)
            return q + y, None

        last = jax.lax.scan(jax.checkpoint(layer), jnp.asarray(x["q"]), learnt["own"])[0]
        return jnp.sum(last * x["g"])

    learnt = {"shared": x["table"], "own": tables}
    got, true = (jax.jit(jax.grad(loss), static_argnums=1)(learnt, k) for k in ("blockwise", "xla"))
    for name, a in got.items():
        np.testing.assert_allclose(a, true[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "options, widths",
    [
        ({"causal": False}, {256}),
        ({}, {64, 128, 192, 256}),
        ({"window": 64}, {64, 128}),
        ({"window": 66}, {64, 128, 192}),
        ({"causal": False, "window": 2}, {128, 192}),
    ],
)
def test_blockwise_leaves_out_keys_that_no_query_of_the_block_sees(options, widths):
    """Rows of 256 in blocks of 64: block i reads i + 1 blocks of keys, fewer with a window."""
    shape = jax.ShapeDtypeStruct((1, 256, 1, 8), jnp.float32)
    place = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    at = At(place, place)
    trace = jax.make_jaxpr(lambda *a: attention.attend(*a, kernel="blockwise", **options))
    text = str(trace(shape, shape, shape, at, at))
    products = {int(n) for n in re.findall(r"f32\[1,1,1,64,(\d+)\] = dot_general", text)}
    assert products - {8} == widths


def test_a_kernel_of_other_hardware_is_refused_before_compute():
    q, k, v = (oracle.arrays()[name] for name in "qkv")
    at = At(*oracle.places())
    for kernel, need in (("cudnn", "gpu"), ("splash", "tpu")):
        words = f"'{kernel}' runs on {need} only, and this process computes on cpu"
        with pytest.raises(ValueError, match=words):
            attention.check_platform(kernel)
        with pytest.raises(ValueError, match=words):
            attention.attend(q, k, v, at, at, kernel=kernel)
        assert not attention.runs_here(kernel)
    attention.check_platform("blockwise")
    assert attention.runs_here("xla")


def test_errors_name_what_is_wrong():
    q, k, v = (oracle.arrays()[name] for name in "qkv")
    at = At(*oracle.places())
    with pytest.raises(ValueError, match="'cudnn' or 'splash', got 'flash'"):
        attention.attend(q, k, v, at, at, kernel="flash")
    few = At(*(a[:, :10] for a in at[:2]))
    with pytest.raises(ValueError, match="T=10 queries and S=150 keys"):
        attention.attend(q[:, :10], k, v, few, at, kernel="blockwise")
    with pytest.raises(ValueError, match="heads must be a multiple of kv, got 3 and 2"):
        attention.attend(q[:, :, :3], k, v, at, at)
    with pytest.raises(ValueError, match="window must be at least 1 key, got 0"):
        attention.attend(q, k, v, at, at, window=0)
    with pytest.raises(ValueError, match="softcap must be positive"):
        attention.attend(q, k, v, at, at, softcap=0.0)
    with pytest.raises(ValueError, match=r"has shape \(1, 150, 2, 8\) but expected \(2, None"):
        attention.attend(q, k[:1], v[:1], at, at)
    rule = attention.masks.rule(q, k, v, True, None, None, None)
    half = [jnp.asarray(a[:, :9], jnp.bfloat16) for a in (q, k, v)]
    odd = At(*(a[:, :9] for a in at[:2]))
    with pytest.raises(ValueError, match="even length for its gradient, got T=9"):
        cudnn.attend(*half, odd, odd, rule, None, None)
    with pytest.raises(ValueError, match="a multiple of 8, at most 256, got 7"):
        cudnn.attend(*(a[..., :7] for a in half), odd, odd, rule, None, None)


@pytest.mark.slow
def test_cudnns_call_passes_jaxs_own_checks(monkeypatch):
    """Shapes, dtypes and the mask are what JAX's cuDNN path takes, as far as no GPU is needed."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91100)
    for cell in table.CELLS:
        if table.knows("cudnn", cell):
            x, q_at, k_at, options = table.inputs("cudnn", cell)
            causal = options.pop("causal", True)
            args = (causal, options.get("window"), None, options.get("scale"))
            rule = attention.masks.rule(x["q"], x["k"], x["v"], *args)

            def loss(q, k, v, rule=rule, at=(At(*q_at), At(*k_at))):
                return jnp.sum(cudnn.attend(q, k, v, *at, rule, None, None))

            got = jax.eval_shape(jax.grad(loss, (0, 1, 2)), x["q"], x["k"], x["v"])
            assert [a.shape for a in got] == [x[name].shape for name in "qkv"]
