#!/usr/bin/env bash
# transformers 5.24.0: what "is_causal": null in a config.json means depends on attn_implementation.
# Its masks ask getattr(config, "is_causal", True) and find None: a Qwen2 language model with eager
# attention sees later tokens, as with false; with sdpa, the default, it does not, since the mask is
# left out there and the layer's own is_causal (true) decides. Nothing warns.
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

def moved(form, **fields):
    """How much the logits of the first four tokens change with the fifth."""
    file.write_text(json.dumps(record | fields))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation=form).eval()
    a, b = (model(torch.tensor([[5, 6, 7, 8, last]])).logits[0, :4] for last in (9, 10))
    return float((a - b).abs().max().detach())

for form in ("eager", "sdpa"):
    seen = {"absent": moved(form), "false": moved(form, is_causal=False),
            "null": moved(form, is_causal=None)}
    print("transformers", transformers.__version__, "torch", torch.__version__, form, seen)
    assert seen["absent"] == 0 < seen["false"], "this has changed"
    assert seen["null"] == (seen["false"] if form == "eager" else 0), "this has changed"
PYTHON
