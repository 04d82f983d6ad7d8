"""The ledger of a compiled program's collectives: counts are those of the closed form."""

import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jaxlm.parallel import collectives, hlo
from jaxlm.parallel.collectives import Collective

GOLDEN = pathlib.Path(__file__).parent / "golden"
LAYERS, D, F, ROWS, T = 3, 16, 32, 8, 8


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile().as_text()


def abstract(mesh, shape, *spec):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=place)


def mesh(**sizes):
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


def counts(text, on):
    return {(row.kind, row.axes): (row.count, row.sent) for row in collectives.ledger(text, on)}


def test_a_scan_over_layers_gathers_each_of_them():
    """cost_analysis counts the body of a scan once, so that 80 layers cost as much as one."""
    on = mesh(fsdp=4)
    x, w = abstract(on, (ROWS, D), "fsdp"), abstract(on, (LAYERS, D, D), None, "fsdp")

    def f(w, x):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(on, PartitionSpec()))
            return x @ w, None

        return jax.lax.scan(layer, x, w)[0]

    found = counts(compiled(f, w, x), on)
    assert found == {("all-gather", ("fsdp",)): (LAYERS, LAYERS * D * D * 4 * 3 // 4)}


def test_every_kind_and_its_axes():
    on = mesh(fsdp=2, context=4)
    local = PartitionSpec(("fsdp", "context"))

    def f(x):
        size = jax.lax.psum(x, "fsdp")
        part = jax.lax.psum_scatter(x, "context", tiled=True)
        ring = jax.lax.ppermute(x, "context", [(i, (i + 1) % 4) for i in range(4)])
        swapped = jax.lax.all_to_all(x, "context", 0, 0, tiled=True)
        return size, part, ring, swapped

    run = jax.shard_map(f, mesh=on, in_specs=local, out_specs=(local,) * 4, check_vma=False)
    found = counts(compiled(run, abstract(on, (64, D), ("fsdp", "context"))), on)
    size = 8 * D * 4  # of one device
    assert found == {
        ("all-reduce", ("fsdp",)): (1, size),
        ("reduce-scatter", ("context",)): (1, size * 3 // 4),
        ("collective-permute", ("context",)): (1, size),
        ("all-to-all", ("context",)): (1, size * 3 // 4),
    }


@pytest.mark.parametrize("turns", [2, 3, 6])
def test_a_ring_turns_one_time_less_than_it_has_devices(turns):
    on = mesh(context=turns)
    local = PartitionSpec("context")
    permutation = [(i, (i + 1) % turns) for i in range(turns)]

    def ring(x):
        def turn(_, carry):
            k, total = carry
            k = jax.lax.ppermute(k, "context", permutation)
            return k, total + k

        return jax.lax.fori_loop(0, turns - 1, turn, (x, x))[1]

    run = jax.shard_map(ring, mesh=on, in_specs=local, out_specs=local, check_vma=False)
    found = counts(compiled(run, abstract(on, (turns * 2, D), "context")), on)
    assert found[("collective-permute", ("context",))][0] == turns - 1


def test_a_tpu_step():
    """Fully sharded step of a LLaMA of 4 layers compiled for v5e:2x2: an excerpt of libtpu
    0.0.42.1's text. Its products are windowed, its gathers run through chains of fusions that show
    the same operation in each, and the gradients of the embedding and output matrix are all-reduces
    of which each device keeps a slice."""
    on = AbstractMesh((4,), ("fsdp",))
    text = (GOLDEN / "v5e_2x2_fsdp_4.hlo").read_text()
    rows = collectives.ledger(text, on)
    assert rows == [
        Collective("collective-permute", ("fsdp",), 4, 212, 40894464),
        Collective("all-gather", ("fsdp",), 4, 55, 18906624),
        Collective("reduce-scatter", ("fsdp",), 4, 2, 6291456),
        Collective("all-reduce", ("fsdp",), 4, 6, 27678),
    ]
    times = hlo.executions(hlo.parse(text))
    assert set(times.values()) == {1, 4}


FORMS = {
    "{{0,1},{2,3}}": [[0, 1], [2, 3]],
    "[2,2]<=[4]": [[0, 1], [2, 3]],
    "[2,2]<=[2,2]T(1,0)": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2] {'a'}": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2] {'a','b'}": [[0, 1, 2, 3]],
    "mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}": [[0, 2], [1, 3]],
    "mesh['a'=1,'b'=4], device_ids=([4]) {'b'}": [[0, 1, 2, 3]],
    "mesh['a'=1,'b'=4] {'b':(1)2}": [[0, 2], [1, 3]],
    "mesh['a'=1,'b'=4] {'b':(2)2}": [[0, 1], [2, 3]],
    "mesh['b'=4], device_ids=([2,2]T(1,0)) {'b':(2)2}": [[0, 2], [1, 3]],
    "mesh['a'=1,'b'=4] {'a','b':(2)2,'b':(1)2}": [[0, 2, 1, 3]],
    "{}": [[0, 1, 2, 3]],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_replica_groups(form):
    line = f"  ROOT %r = f32[8]{{0}} all-reduce(%x), replica_groups={form}, to_apply=%add"
    text = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{line}\n}}\n"
    ((kind, groups, payload, times),) = collectives.operations(text, 4)
    assert (kind, payload, times) == ("all-reduce", 32, 1)
    assert groups.tolist() == FORMS[form]


def test_an_unknown_form_is_an_error():
    line = "  ROOT %r = f32[8]{0} all-reduce(%x), replica_groups=everyone, to_apply=%add"
    with pytest.raises(ValueError, match="unknown form"):
        list(collectives.operations(f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{line}\n}}\n", 4))


def test_a_collective_in_a_loop_of_unknown_length_is_an_error():
    """Counted once, it would make a program look cheap."""
    on = mesh(data=2)

    def f(x):
        def body(x):
            return jax.lax.psum(x, "data") * 0.1

        return jax.lax.while_loop(lambda x: x.sum() > 1, body, x)

    local = PartitionSpec("data")
    run = jax.shard_map(f, mesh=on, in_specs=local, out_specs=local, check_vma=False)
    with pytest.raises(ValueError, match="length"):
        collectives.ledger(compiled(run, abstract(on, (4,), "data")), on)


@pytest.mark.parametrize(
    "kind, size",
    [
        ("bf16[2,3]{1,0:T(8,128)(2,1)}", 12),
        ("(f32[4], (s32[2], u8[3]))", 27),
        ("s4[3]", 2),
        ("token[]", 0),
    ],
)
def test_bytes_of_types(kind, size):
    assert hlo.nbytes(kind) == size


def test_what_slices_send_one_another():
    """A program of two slices of four chips, as libtpu 0.0.42.1 writes one: between slices there
    are no collectives but transfers of the host's, of a device's part or, of a gather, its own."""
    send = (
        "\n  %s{i} = (f32[1000]{{0}}, u32[], token[]) send(%x, %t), channel_id={i}, "
        'is_host_transfer=true, frontend_attributes={{_xla_megascale_target="{{1,2}}x{{0:3}}",'
        '_xla_megascale_transfer_type="{kind}"}}'
    )
    kinds = ["ALL_REDUCE", "ALL_REDUCE", "ALL_GATHER", "ONE_TO_ONE"]
    lines = [send.format(i=i, kind=kind) for i, kind in enumerate(kinds)]
    text = "HloModule m\n\nENTRY %main (x: f32[1000]) -> f32[1000] {" + "".join(lines) + "\n}\n"
    devices = np.array([SimpleNamespace(slice_index=i // 4) for i in range(8)]).reshape(4, 2)
    mesh = SimpleNamespace(
        devices=devices, size=8, shape={"data": 4, "fsdp": 2}, axis_names=("data", "fsdp")
    )
    assert collectives.ledger(text, mesh) == [
        Collective("all-reduce", ("data",), 2, 2, 2 * 4000, between=True),
        Collective("all-gather", ("data",), 2, 1, 4000, between=True),
        Collective("collective-permute", ("data",), 2, 1, 4000, between=True),
    ]
