#!/usr/bin/env bash
# jax 0.10.2: over an axis that is split over devices, jnp.roll is one collective-permute, and so is
# the roll back; but the gradient that autodiff makes of a roll is two. A roll by one stage is how a
# pipeline in one program hands its parts on, so its backward pass sends twice. A custom_vjp whose
# backward function is the roll back sends once, with the same gradient.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet jax==0.10.2
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 \
    "$place/venv/bin/python" - <<'PYTHON'
import re

import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((4,), ("stage",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("stage"))
x = jax.device_put(jax.random.normal(jax.random.key(0), (4, 8, 128)), split)


def back(x):
    return jnp.roll(x, -1, 0)


@jax.custom_vjp
def roll(x):
    return jnp.roll(x, 1, 0)


roll.defvjp(lambda x: (roll(x), None), lambda _, g: (back(g),))


def compiled(f):
    program = jax.jit(f, out_shardings=split).lower(x).compile()
    return len(re.findall(r" collective-permute(?:-start)?\(", program.as_text())), program(x)


def gradient(f):
    return compiled(lambda g: jax.vjp(f, x)[1](g)[0])


there, again = compiled(lambda x: jnp.roll(x, 1, 0))[0], compiled(back)[0]
plain, plain_value = gradient(lambda x: jnp.roll(x, 1, 0))
own, own_value = gradient(roll)
print("jax", jax.__version__)
print("collective-permutes of a roll:", there, "of the roll back:", again)
print("of the gradient by autodiff:", plain, "by the roll back as its own rule:", own)
assert (plain_value == own_value).all()
assert (there, again, plain, own) == (1, 1, 2, 1), "this has changed"
PYTHON
