#!/usr/bin/env bash
# compressed-tensors 0.20.1 with transformers 5.24.0: a checkpoint in pack-quantized form (int4 in
# groups) that the two libraries write is read back where it is symmetric, and refused where it has
# zero points. They are stored packed, eight rows in an int32, and the model that is made to read
# them keeps their unpacked shape: "size mismatch".
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet \
    torch==2.13.0 transformers==5.24.0 compressed-tensors==0.20.1 accelerate==1.15.0
"$place/venv/bin/python" - <<'PYTHON' 2>/dev/null
import tempfile

import torch
import transformers
from compressed_tensors import quantization
from compressed_tensors.compressors import ModelCompressor

GROUP = 32
CONFIG = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2,
)


def reloaded(symmetric):
    """What becomes of a tiny model that is rounded, compressed, saved and loaded."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(CONFIG)
    weights = quantization.QuantizationArgs(
        num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=GROUP
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    config = quantization.QuantizationConfig(
        config_groups={"group_0": scheme}, format="pack-quantized", ignore=["lm_head"],
        quantization_status="compressed",
    )
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.data.view(len(module.weight), -1, GROUP)
            low, high = groups.amin(-1), groups.amax(-1)
            scale = groups.abs().amax(-1) / 7.5 if symmetric else (high - low) / 15
            module.weight_scale.data.copy_(scale)
            if not symmetric:
                zero = (-8 - low / scale).round().clamp(-8, 7)
                module.weight_zero_point.data.copy_(zero.to(module.weight_zero_point.dtype))
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        compressor.update_config(folder)
        try:
            transformers.AutoModelForCausalLM.from_pretrained(folder)
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
    return "loaded"


symmetric, affine = reloaded(True), reloaded(False)
print("symmetric:", symmetric)
print("with zero points:", affine)
assert symmetric == "loaded", symmetric
assert "ignore_mismatched_sizes" in affine, affine
PYTHON
