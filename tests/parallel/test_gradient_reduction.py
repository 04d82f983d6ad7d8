"""The dtype in which gradients are summed over devices (`plan.reduce`), as programs for a TPU have
it: read in the partitioned HLO, and by values."""

import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm import models
from jaxlm.core import precision, target
from jaxlm.core.batch import Batch
from jaxlm.models import gpt
from jaxlm.objectives import clm
from jaxlm.ops import linear
from jaxlm.parallel import collectives, hlo, rules
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer

CFG = gpt.Config(vocab=32, embed=16, layers=2, heads=4, ffn=32, context=16)
MATRICES = 6  # q, k, v, o, up, down: of a scan, so once for all layers


@pytest.fixture
def no_cache():
    """Programs are compiled, not read back: only the compiler shows what the partitioner left."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def partitioned(plan):
    """[(kind, element types)] of the collectives of the gradient of a batch, as the partitioner
    leaves them: a CPU computes a bfloat16 sum in float32 later."""
    with target.compiling_for("tpu"):
        objective = clm.build(clm.Config(), models.build(CFG, plan), plan)
        tx = optimizer.build(optimizer.Optim(warmup=0), objective.spec, 100, False)
        ids, weight = (jax.ShapeDtypeStruct((16, 16), d) for d in (jnp.int32, jnp.float32))
        batch = Batch(ids, ids, weight, ids, ids)
        batch = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            batch,
            plan.shard_batch(batch),
        )

        def gradient(state, batch):
            return step.accumulate(objective, plan, jnp.ones(()), state, batch, state.key)

        lowered = jax.jit(gradient).lower(step.abstract(objective, tx, plan), batch)
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"}
        lowered.compile(compiler_options={**dump, "xla_backend_optimization_level": 0})
        text = next(pathlib.Path(folder).glob("*after_spmd-partitioning*")).read_text()
    return [
        (op.opcode, re.match(r"\(?(\w+)", op.type)[1])
        for operations in hlo.parse(text).computations.values()
        for op in operations
        if op.opcode in collectives.SENT
        # of one device alone, a mesh axis that is not there
        if op.opcode == "collective-permute" or collectives._groups(op.text, 8).shape[1] > 1
    ]


def test_float32_sums_gradients_in_float32_and_gathers_as_before(no_cache):
    """Gradients of matrices, and of biases, were summed in bfloat16 with no other choice."""
    found = {r: partitioned(Plan(data=2, fsdp=4, compute="bfloat16", reduce=r)) for r in DTYPES}
    narrow = [("all-reduce", "bf16"), ("reduce-scatter", "bf16")]
    count = {r: sum(rows.count(kind) for kind in narrow) for r, rows in found.items()}
    assert count["float32"] == 0
    # over data, and over fsdp; biases too
    assert count["compute"] >= 2 * MATRICES
    # of the scan's six biases two are gathered before they are cast
    narrow, wide = (("all-gather", t) for t in ("bf16", "f32"))
    assert found["float32"].count(narrow) == found["compute"].count(narrow) - 2 >= 2 * MATRICES
    assert found["float32"].count(wide) == found["compute"].count(wide) + 2


@pytest.mark.slow
def test_float32_of_weights_that_are_gathered_axis_by_axis(no_cache, monkeypatch):
    """Of an axis after the other the gradient is summed by constraints of its own."""
    monkeypatch.setattr(rules, "WIDE", 4)
    found = partitioned(
        Plan(data=2, fsdp=2, context=2, compute="bfloat16", reduce="float32", remat="full")
    )
    assert {kind for kind, dtype in found if dtype == "bf16"} == {"collective-permute"}
    assert found.count(("all-reduce", "f32")) >= 3 * MATRICES


DTYPES = ("compute", "float32")
# x and w to y; x and y's gradient to w's; the shapes of x and w
PRODUCTS = {
    "in front": ("BTD,DNH->BTNH", "BTD,BTNH->DNH", (8, 6, 16), (16, 3, 4)),
    "at the end": ("...D,VD->...V", "BTD,BTV->VD", (8, 6, 16), (12, 16)),
    "two summed": ("BTNH,NHD->BTD", "BTNH,BTD->NHD", (8, 6, 3, 4), (3, 4, 16)),
    "experts": (None, "BECD,BECF->EDF", (8, 3, 5, 8), (3, 8, 4)),
    "bias": ("bias", None, (8, 6, 3, 4), (3, 4)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_float32_is_nearer_to_a_float64_gradient(name):
    """Of the same bfloat16 operands on 8 devices: the gradient of w is a sum of products of x and
    y's gradient, which float64 computes; bfloat16 keeps 8 bits of it. y and x's gradient are the
    same bits."""
    spec, gradient, *shapes = PRODUCTS[name]
    plan = Plan(data=8)
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    x = jax.device_put(x.astype(jnp.bfloat16), NamedSharding(plan.mesh, PartitionSpec("data")))
    out, got = {}, {}
    for reduce in DTYPES:

        def f(x, w):
            if spec == "bias":
                return x + linear.spread(w, x)
            return linear.batched(x, w) if spec is None else linear.einsum(spec, x, w)

        def run(x, w, g, f=f, reduce=reduce):
            with target.compiling_for("tpu"), precision.summing_gradients(reduce):
                y, pull = jax.vjp(f, x, w)
                return y, *pull(g.astype(y.dtype))

        shape = jax.eval_shape(f, x, w).shape
        g = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.bfloat16)
        y, dx, got[reduce] = jax.jit(run)(x, w, g)
        out[reduce] = (y, dx)
    for a, b in zip(*out.values(), strict=True):
        np.testing.assert_array_equal(np.float32(a), np.float32(b))
    wide = [np.asarray(a, np.float64) for a in (x, g)]
    want = wide[1].sum((0, 1)) if spec == "bias" else np.einsum(gradient, *wide)
    error = {r: np.abs(np.float64(v) - want).max() / np.abs(want).max() for r, v in got.items()}
    assert all(v.dtype == jnp.float32 for v in got.values())
    assert error["float32"] < 1e-6
    assert error["compute"] > 1e-4


def test_float64_has_no_narrower_sum():
    with pytest.raises(ValueError, match=r"plan.reduce: 'float32' given; .*plan.compute='float64'"):
        Plan(compute="float64", reduce="float32")
