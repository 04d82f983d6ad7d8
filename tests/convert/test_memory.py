"""An import needs the weights and the tensors of one row, wherever they go; measured."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxlm.core import param
from jaxlm.models import llama
from tests.convert.test_checkpoint import save

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc"),
]
# 29 million weights; no tensor has more than 4.2 million.
CFG = llama.Config(vocab=8192, embed=512, layers=5, heads=8, kv=8, head=64, ffn=2048, context=64)
LARGEST = 8192 * 512
ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import ctypes, gc, pathlib, re, sys
import jax, jax.numpy as jnp
from jaxlm.convert import read
from jaxlm.parallel.plan import Plan

folder, dtype = pathlib.Path(sys.argv[1]), jnp.dtype(sys.argv[2])

def memory_of(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s*(\\d+)", status)[1]) * 1024

checkpoint = read.inspect(folder)
# once before, so that compiling does not count; then the peak starts anew
jax.block_until_ready(read.place(checkpoint, Plan(), dtype))
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = memory_of("VmRSS")
weights = jax.block_until_ready(read.place(checkpoint, Plan(), dtype))
print(memory_of("VmHWM") - before)
"""


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_the_peak_of_an_import(tmp_path, dtype, width):
    save(tmp_path, CFG, dtype)
    weights_bytes = param.count(llama.spec(CFG)) * width
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), dtype],
        capture_output=True, text=True, cwd=ROOT, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    grown = int(done.stdout.split()[-1])
    # the weights are really there, and beside them a tensor as it was read and as it is placed
    assert weights_bytes * 0.9 < grown < weights_bytes + 2 * LARGEST * width + 8e6, (
        grown,
        weights_bytes,
    )
