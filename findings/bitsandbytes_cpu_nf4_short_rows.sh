#!/usr/bin/env bash
# bitsandbytes 0.50.2 on CPU (with AVX-512): a matrix whose rows are shorter than the block of one
# scale is quantised to NF4 rightly and decoded wrongly, with no error. The codes and scales that it
# stores, decoded by their definition, have the relative error of four bits (0.1); its own
# dequantize_4bit gives 0.32. Rows of at least a block agree with the definition bit for bit.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet bitsandbytes==0.50.2 torch==2.13.0 numpy==2.4.6
"$place/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch
from bitsandbytes import functional


def errors(shape, block):
    """Relative errors of (dequantize_4bit, the stored codes and scales by their definition)."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(
        weights, blocksize=block, quant_type="nf4", compress_statistics=False
    )
    library = functional.dequantize_4bit(packed, state).numpy().ravel()
    pairs = packed.numpy().ravel()
    codes = np.stack([pairs >> 4, pairs & 15], 1).ravel()
    defined = state.code.numpy()[codes] * np.repeat(state.absmax.numpy(), block)[: codes.size]
    right = weights.numpy().ravel()
    return [float(np.linalg.norm(x - right) / np.linalg.norm(right)) for x in (library, defined)]


whole, short = errors((12, 128), 128), errors((12, 64), 128)
print("rows of 128, blocks of 128: library %.3f, definition %.3f" % tuple(whole))
print("rows of  64, blocks of 128: library %.3f, definition %.3f" % tuple(short))
assert whole[0] == whole[1] < 0.11, whole
assert short[0] > 0.25 and short[1] < 0.11, short
PYTHON
