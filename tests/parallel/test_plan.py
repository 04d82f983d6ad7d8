"""The plan: its checks, and arrays placed by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.core.batch import Batch
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
    with pytest.raises(ValueError, match="data.batch: dimension 'batch' of size 6 does not divide"):
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


def test_chunks_of_the_loss_are_of_each_device():
    """Chunks of all devices' tokens together were the smaller the more devices there were: on 64
    chips a step gathered the output matrix and summed its gradient 256 times, five times the bytes
    of all layers."""
    assert Plan(loss_chunk=512).loss_tokens == 512
    assert Plan(data=2, fsdp=4, context=2, tensor=2, loss_chunk=512).loss_tokens == 16 * 512
