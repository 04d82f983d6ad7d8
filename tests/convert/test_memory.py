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
import pathlib, re, sys
import jax, jax.numpy as jnp
from jaxlm.convert import read
from jaxlm.parallel.plan import Plan

folder, dtype = pathlib.Path(sys.argv[1]), jnp.dtype(sys.argv[2])

def peak():
    # of this program alone; getrusage also counts what the process was before it
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) * 1024

found = read.inspect(folder)
# what importing and compiling take is there before
jax.jit(lambda x: x + 1, donate_argnums=0)(jnp.zeros(8)).block_until_ready()
before = peak()
weights = jax.block_until_ready(read.place(found, Plan(), dtype))
print(peak() - before)
"""


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_the_peak_of_an_import(tmp_path, dtype, width):
    save(tmp_path, CFG, dtype)
    whole = param.count(llama.spec(CFG)) * width
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), dtype],
        capture_output=True, text=True, cwd=ROOT, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    grown = int(done.stdout.split()[-1])
    # the weights are really there, and beside them: a tensor as it was read, as it is placed, and
    # what compiling the few small programs takes
    assert whole * 0.9 < grown < whole + 2 * LARGEST * width + 25e6, (grown, whole)
