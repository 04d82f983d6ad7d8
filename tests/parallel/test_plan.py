"""The plan: its checks, and arrays placed by it."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.parallel import plan as plans
from jaxlm.parallel import transfer
from jaxlm.parallel.plan import Plan

MESH = Plan(data=2, fsdp=2, tensor=2)
P = param.shaper(vocab=6, embed=8, heads=4, head=3)


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor", "microbatches", "unroll", "loss_chunk"])
def test_a_number_below_one_is_named(name):
    with pytest.raises(ValueError, match=rf"plan.{name}: 0 given; it must be at least 1"):
        Plan(**{name: 0})


def test_too_few_devices_are_counted():
    with pytest.raises(ValueError) as error:
        _ = Plan(data=3, fsdp=5).mesh
    assert "plan: data=3 x fsdp=5 needs 15 devices; 8 cpu" in str(error.value)


def test_a_weight_that_does_not_divide_is_named():
    spec = {"stack": {"q": param.shaper(embed=8, heads=3, head=4)("embed -> heads head")}}
    with pytest.raises(ValueError, match="weight stack/q: dimension 'heads' of size 3 does not"):
        MESH.shard_params(spec)


def test_weights_are_cut_as_their_names_say():
    spec = {"q": P("embed -> heads head"), "norm": P("embed", init=param.ones)}
    w = jax.device_put(param.init(spec, jax.random.key(0)), MESH.shard_params(spec))
    assert {s.data.shape for s in w["q"].addressable_shards} == {(4, 2, 3)}
    assert {s.data.shape for s in w["norm"].addressable_shards} == {(4,)}
    gathered = jax.jit(lambda x: MESH.gather(x, "embed heads head"))(w["q"])
    assert {s.data.shape for s in gathered.addressable_shards} == {(8, 2, 3)}
    np.testing.assert_array_equal(gathered, w["q"])


def test_a_batch_is_cut_by_rows_and_keeps_their_order():
    tokens = np.arange(8 * 5, dtype=np.int32).reshape(8, 5)
    batch = Batch(tokens, tokens + 1, np.float32(tokens), tokens * 0, tokens)
    got = transfer.batch(MESH, batch)
    for x, want in zip(got, batch, strict=True):
        assert {s.data.shape for s in x.addressable_shards} == {(2, 5)}
        np.testing.assert_array_equal(x, want)
    with pytest.raises(
        ValueError, match="data.batch: dimension 'global_batch' of size 6 does not divide"
    ):
        transfer.batch(MESH, Batch(*(x[:6] for x in batch)))


def test_one_device_constrains_nothing():
    x = jnp.ones((3, 5, 7))
    assert Plan().constrain(x, "batch seq embed") is x and Plan().gather(x, "embed") is x


def test_activations_follow_their_rows():
    f = jax.jit(lambda x: MESH.constrain(x, "batch seq embed"))
    assert {s.data.shape for s in f(jnp.ones((4, 5, 8))).addressable_shards} == {(1, 5, 8)}
    with pytest.raises(
        ValueError, match="activation 'batch seq embed': dimension 'batch' of size 3"
    ):
        f(jnp.ones((3, 5, 8)))


def test_compute_dtype():
    assert Plan().dtype == jnp.float32  # on CPU
    for name in ("float32", "bfloat16", "float16"):
        assert dataclasses.replace(MESH, compute=name).dtype == jnp.dtype(name)


def test_a_pipeline_counts_its_turns():
    plan = Plan(data=2, pipe=4, fsdp=2, microbatches=3)
    assert (plan.parts, plan.turns, plan.row_parts, plan.block_parts) == (8, 11, 16, 4)
    assert plan.bubble == 3 / 11 and plan.multiple == 3 * 4 * 8
    twice = Plan(pipe=4, pipe_parts=4, pipe_rounds=2)
    assert twice.turns == 11 and twice.bubble == 3 / 11 and Plan().bubble == 0
    assert Plan(pipe=4, pipe_parts=6).multiple == 12
    with pytest.raises(
        ValueError, match="plan.pipe_parts: 2 given; it must be at least plan.pipe=4"
    ):
        Plan(pipe=4, pipe_parts=2, pipe_rounds=2)
    for name in ("pipe_parts", "pipe_rounds"):
        with pytest.raises(ValueError, match=f"plan.{name}: 2 given; .* with plan.pipe=1"):
            Plan(**{name: 2})


def test_slices_are_the_first_axes():
    """Rows of the mesh that are of another slice: the CPU's devices 0 to 3 and 4 to 7."""

    def slices(plan):
        return np.vectorize(lambda device: device.id // 4)(plan.mesh.devices).squeeze()

    assert slices(Plan(data=2, fsdp=4, slices=2)).tolist() == [4 * [0], 4 * [1]]
    assert slices(Plan(pipe=2, tensor=4, slices=2)).tolist() == [4 * [0], 4 * [1]]
    both = Plan(data=4, fsdp=2, slices=2).mesh.devices.squeeze()
    assert [[d.id for d in row] for row in both] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert Plan(data=6, pipe=2, slices=4).across == (1, 2, 2, 1, 1, 1, 1)
    assert Plan(replica=2, data=6, slices=4).across == (2, 2, 1, 1, 1, 1, 1)
    with pytest.raises(
        ValueError,
        match="plan.slices: 4 given; it must be a divisor of plan.replica=1 x plan.data=2",
    ):
        Plan(data=2, fsdp=4, slices=4)


def test_devices_of_other_slices_than_the_plans_are_refused():
    """Made up: a CPU's devices are of no slice."""
    made = [SimpleNamespace(slice_index=i % 4, id=i, platform="cpu") for i in range(8)]
    with pytest.raises(ValueError, match=r"plan.slices: 2 given; .* of slices of \[2, 2, 2, 2\]"):
        plans._placed(Plan(data=2, fsdp=4, slices=2), made)


def test_alone_is_one_device_of_every_plan():
    """A run with zero or sequence could not be loaded on one device: its axes were set to 1, and
    what requires them was not; those of context and experts stayed."""
    for plan in (MESH, Plan(data=2, zero=2), Plan(tensor=2, sequence=True), Plan(pipe=2, slices=2)):
        given = dataclasses.replace(plan, remat="dots", reduce="float32")
        assert given.alone == Plan(remat="dots", reduce="float32")
    assert Plan(context=2, context_keys="gathered", expert=2).alone.devices == 1


def test_chunks_of_the_loss_are_of_each_device():
    """Chunks of all devices' tokens together were the smaller the more devices there were: on 64
    chips a step gathered the output matrix and summed its gradient 256 times, five times the bytes
    of all layers."""
    assert Plan(loss_chunk=512).loss_tokens == 512
    assert Plan(data=2, fsdp=4, context=2, tensor=2, loss_chunk=512).loss_tokens == 16 * 512
