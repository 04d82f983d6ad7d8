"""The golden tensors: matrices in few bits as the libraries of their formats make and read them.

    python -m tests.convert.quantised.oracles

writes golden.npz, and needs torch, transformers, bitsandbytes, compressed-tensors, autoawq and
auto-gptq (`pip install --no-deps` of the last two is enough; they are no longer maintained).
Of every case there are the parts that the files hold, and "dense", which the library computes.
GPTQ's second format has no library here: it is the first one's, with zeros that are stored as they
are (`second` in test_layouts.py).
"""

import importlib.util
import pathlib
import sys
import types

import numpy as np

FILE = pathlib.Path(__file__).parent / "golden.npz"
STATE = "quant_state.bitsandbytes__"
# Settings of compressed-tensors by case; those that begin with "pack" are of pack-quantized.
GROUPED = {"strategy": "group", "group_size": 16}
COMPRESSED = {
    "pack4": {"num_bits": 4, "symmetric": True, **GROUPED},
    "pack4_zeros": {"num_bits": 4, "symmetric": False, **GROUPED},
    "pack8": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
    "pack8_zeros": {"num_bits": 8, "symmetric": False, "strategy": "channel"},
    "int8": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
    "int8_tensor": {"num_bits": 8, "symmetric": False, "strategy": "tensor"},
    "float8": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
    "float8_block": {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "block",
        "block_structure": [8, 16],
    },
}  # fmt: skip


def bitsandbytes(torch):
    """{case: parts} of NF4, FP4 and 8 bits. Rows are no shorter than a block: others version 0.50.2
    decodes wrongly on a CPU (12 x 64 in blocks of 128: an error of 0.32, where 0.10 is right)."""
    from bitsandbytes import functional

    w, cases = torch.randn(6, 128), {}
    for kind in ("nf4", "fp4"):
        for double, block in ((False, 64), (True, 64), (True, 128)):
            codes, state = functional.quantize_4bit(
                w, blocksize=block, quant_type=kind, compress_statistics=double
            )
            parts = state.as_dict(packed=True)
            parts["state"] = parts.pop(STATE + kind)
            dense = functional.dequantize_4bit(codes, state)
            cases[f"{kind}_{block}" + "_double" * double] = parts | {"codes": codes, "dense": dense}
    codes, scales, _ = functional.int8_vectorwise_quant(w.half())
    dense = functional.int8_vectorwise_dequant(codes, scales)
    return cases | {"eight": {"codes": codes, "scales": scales, "dense": dense}}


def compressed_tensors(torch):
    """{case: parts} of every format of compressed-tensors that is read."""
    from compressed_tensors.compressors.naive_quantized import base as naive
    from compressed_tensors.compressors.pack_quantized import base as packed
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    w, cases = torch.randn(12, 64), {}
    for case, fields in COMPRESSED.items():
        arguments = QuantizationArgs(**fields)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        rows = {"group": w.reshape(12, -1, 16), "channel": w[:, None], "tensor": w.reshape(1, -1)}
        given = {"weight": w}
        if fields["strategy"] == "block":
            given["weight_scale"] = (torch.rand(2, 4) + 0.5) / 100
        else:
            part = rows[fields["strategy"]]
            scale, zero = calculate_qparams(part.amin(-1), part.amax(-1), arguments)
            given |= {"weight_scale": scale, "weight_zero_point": zero}
        code = packed.PackedQuantizationCompressor
        if not case.startswith("pack"):
            code = naive.NaiveQuantizationCompressor
        kept = code.compress(given, scheme)
        dense = code.decompress(dict(kept), scheme)["weight"]
        cases[case] = kept | {"dense": dense.float()}
    return cases


def words(torch, *shape):
    """Random int32."""
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int64).to(torch.int32)


def auto_gptq(torch):
    """{case: parts} of GPTQ's first format, by the product of AutoGPTQ's module with the identity.
    The package's front door imports what transformers no longer has; its module of CPU products
    needs none of that."""
    found = importlib.util.find_spec("auto_gptq")
    assert found is not None and found.submodule_search_locations is not None
    (folder,) = found.submodule_search_locations
    for name in ("", ".nn_modules", ".nn_modules.qlinear", ".utils", ".utils.import_utils"):
        module = types.ModuleType(f"auto_gptq{name}")
        module.__path__ = [folder + name.replace(".", "/")]
        sys.modules[module.__name__] = module
    sys.modules["auto_gptq.utils.import_utils"].compare_pytorch_version = lambda *a, **k: True
    name = "auto_gptq.nn_modules.qlinear.qlinear_cuda"
    spec = importlib.util.spec_from_file_location(
        name, folder + "/nn_modules/qlinear/qlinear_cuda.py"
    )
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    cases = {}
    for bits in (2, 4, 8):
        for order in (False, True):
            made = module.QuantLinear(bits, 32, 64, 32, False)
            made.qweight = words(torch, *made.qweight.shape)
            # the largest stored zero is read in two ways
            zeros = torch.randint(0, 2**bits - 1, (2, 32)).numpy().astype(np.uint32)
            each = 32 // bits
            shifts = bits * np.arange(each, dtype=np.uint32)
            zeros = (zeros.reshape(2, -1, each) << shifts).sum(-1).astype(np.uint32)
            made.qzeros = torch.from_numpy(zeros.view(np.int32))
            scales = (torch.rand(2, 32) / 50).half()
            made.scales = scales.float()
            if order:
                made.g_idx = torch.randperm(64).to(torch.int32) // 32
            cases[f"gptq{bits}" + "_order" * order] = {
                "codes": made.qweight, "zeros": made.qzeros, "scales": scales,
                "groups": made.g_idx.to(torch.int32), "dense": made(torch.eye(64)).T,
            }  # fmt: skip
    return cases


def autoawq(torch):
    """The parts of one matrix of AWQ."""
    from awq.utils.packing_utils import dequantize_gemm

    codes, zeros = words(torch, 64, 3), words(torch, 2, 3)
    scales = torch.rand(2, 24).half() / 50
    dense = dequantize_gemm(codes, zeros, scales.float(), 4, 32).T.float()
    return {"awq": {"codes": codes, "zeros": zeros, "scales": scales, "dense": dense}}


def mxfp4(torch):
    """The parts of the experts of one matrix of GPT-OSS."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (2, 6, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 130, (2, 6, 2), dtype=torch.uint8)
    dense = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return {"mxfp4": {"codes": blocks, "scales": scales, "dense": dense}}


def main() -> None:
    """Write the file."""
    import torch

    torch.manual_seed(0)
    arrays = {}
    for make in (bitsandbytes, compressed_tensors, autoawq, mxfp4, auto_gptq):
        for case, parts in make(torch).items():
            for name, x in parts.items():
                x = x.detach()
                x = x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x
                arrays[f"{case}/{name}"] = x.numpy()
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
