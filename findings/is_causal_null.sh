#!/usr/bin/env bash
# transformers 5.24.0: a config.json with "is_causal": null is read as false, not as the default
# (true): the masks ask getattr(config, "is_causal", True), which finds None. A Qwen2 language model
# loaded from it sees later tokens, without a warning.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - "$place" <<'PYTHON'
import json, pathlib, sys
import torch, transformers

folder = pathlib.Path(sys.argv[1]) / "model"
torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2)
transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).save_pretrained(folder)
file = folder / "config.json"
record = json.loads(file.read_text())

def moved(**fields):
    """How much the logits of the first four tokens change with the fifth."""
    file.write_text(json.dumps(record | fields))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    a, b = (model(torch.tensor([[5, 6, 7, 8, last]])).logits[0, :4] for last in (9, 10))
    return float((a - b).abs().max())

seen = {"absent": moved(), "true": moved(is_causal=True), "null": moved(is_causal=None)}
print("transformers", transformers.__version__, "torch", torch.__version__, seen)
assert seen["absent"] == seen["true"] == 0 < seen["null"], "this has changed"
PYTHON
