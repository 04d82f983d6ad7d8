#!/usr/bin/env bash
# jax 0.10.2, libtpu 0.0.42.1: bringing a weight together that is split over all chips of a v5p slice
# compiles to an all-gather on 32 chips and, on 64, to an all-reduce of the whole, zero-padded array:
# twice the bytes. A mesh of two axes, 16 by 4, of which one is dropped after the other, gathers on 64
# chips too. jax 0.12.0.1 with libtpu 0.0.50.1 does the same. No TPU is needed to see it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet "jax[tpu]==0.10.2" libtpu==0.0.42.1
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1
"$place/venv/bin/python" - <<'PYTHON'
import re, time
import jax, jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

SHAPE = (4096, 14336)

def collectives(name, sizes):
    """Collectives of the program that gathers a weight split over all axes, and its seconds."""
    slice = topologies.get_topology_desc(name, platform="tpu", chip_config_name="megacore")
    axes = "ab"[: len(sizes)]
    layout = mesh_utils.create_device_mesh(sizes, slice.devices, allow_split_physical_axes=True)
    mesh = Mesh(layout, tuple(axes), (AxisType.Auto,) * len(axes))
    place = [NamedSharding(mesh, P(tuple(axes[:i]))) for i in range(len(axes), -1, -1)]

    def gather(w):
        for there in place[1:]:
            w = jax.lax.with_sharding_constraint(w, there)
        return w

    w = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16, sharding=place[0])
    begun = time.time()
    text = jax.jit(gather, out_shardings=place[-1]).lower(w).compile().as_text()
    kinds = sorted(set(re.findall(r" (all-gather|all-reduce)(?:-start)?\(", text)))
    print(f"{name} as {sizes}: {kinds}, {time.time() - begun:.0f} s")
    return kinds

seen = [collectives("v5p:4x4x2", (32,)), collectives("v5p:4x4x4", (64,)), collectives("v5p:4x4x4", (16, 4))]
assert seen == [["all-gather"], ["all-reduce"], ["all-gather"]], "this has changed"
PYTHON
