#!/usr/bin/env bash
# transformers 5.24.0: T5's is_gated_act and dense_act_fn are derived from feed_forward_proj, and
# then overruled by fields of the same names in config.json: "relu" with is_gated_act true is a
# model of gated layers. A reader that goes by feed_forward_proj alone builds another one.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PYTHON'
import torch, transformers

sizes = dict(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)

def layers(**fields):
    config = transformers.T5Config(**sizes, **fields)
    names = transformers.T5ForConditionalGeneration(config).state_dict()
    return sorted({name.split(".")[-2] for name in names if "DenseReluDense" in name})

seen = {"relu": layers(feed_forward_proj="relu"),
        "relu, is_gated_act": layers(feed_forward_proj="relu", is_gated_act=True)}
print("transformers", transformers.__version__, "torch", torch.__version__, seen)
assert seen == {"relu": ["wi", "wo"], "relu, is_gated_act": ["wi_0", "wi_1", "wo"]}, "this has changed"
PYTHON
