#!/usr/bin/env bash
# flax 0.12.8, JAX 0.10.2: a layer of flax.nnx whose initialiser carries axis names
# (`nnx.with_partitioning`) cannot be created outside a mesh: creation itself raises ValueError. The
# same annotation in flax.linen is metadata until someone reads it. With eager sharding off, nnx
# creates the layer, and its metadata gives the partition specs.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet flax==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu "$place/venv/bin/python" - <<'PYTHON'
import flax, jax, jax.numpy as jnp
from flax import linen, nnx

names = ("embed", "ffn")

def layer():
    init = nnx.with_partitioning(nnx.initializers.ones, names)
    return nnx.Linear(2, 2, kernel_init=init, rngs=nnx.Rngs(0))

try:
    layer()
    said = None
except ValueError as error:
    said = str(error).splitlines()[0]
with nnx.use_eager_sharding(False):
    made = layer()
spec = nnx.get_partition_spec(nnx.state(made))["kernel"].get_value()
theirs = linen.Dense(2, kernel_init=linen.with_partitioning(linen.initializers.ones, names))
boxed = theirs.init(jax.random.key(0), jnp.ones((1, 2)))["params"]["kernel"]
print("flax", flax.__version__, "jax", jax.__version__)
print("nnx outside a mesh:", said)
print("nnx without eager sharding:", spec, "linen:", boxed.names)
assert said is not None and "mesh" in said, "this has changed"
assert tuple(spec) == names == tuple(boxed.names), "this has changed"
PYTHON
