#!/usr/bin/env bash
# transformers 5.24.0: Bloom with "slow_but_exact": true and "pretraining_tp" above 1 is not exact. It
# sums the projections of attention and of the feed-forward part slice by slice, and leaves their
# biases out: logits are another model's. With pretraining_tp 1, or slow_but_exact false, they agree.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PYTHON'
import torch, transformers

sizes = dict(vocab_size=64, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.2)
torch.manual_seed(0)
weights = transformers.BloomForCausalLM(transformers.BloomConfig(**sizes)).state_dict()
weights = {n: torch.randn_like(w) * 0.2 if n.endswith("bias") else w for n, w in weights.items()}

def logits(bias=True, **fields):
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**sizes, **fields)).eval()
    silent = ("self_attention.dense.bias", "mlp.dense_4h_to_h.bias")
    model.load_state_dict(
        {n: w if bias or not n.endswith(silent) else 0 * w for n, w in weights.items()}
    )
    with torch.no_grad():
        return model(torch.arange(5, 13)[None]).logits

plain = logits()
seen = {
    "tp 1": logits(slow_but_exact=True, pretraining_tp=1),
    "tp 2": logits(pretraining_tp=2),
    "exact, tp 2": logits(slow_but_exact=True, pretraining_tp=2),
}
off = {name: float((z - plain).abs().max()) for name, z in seen.items()}
off["exact, tp 2, against no biases"] = float(
    (seen["exact, tp 2"] - logits(bias=False)).abs().max()
)
print("transformers", transformers.__version__, "torch", torch.__version__, "logits off by", off)
assert off["tp 1"] == off["tp 2"] == 0 and off["exact, tp 2"] > 0.1, "this has changed"
assert off["exact, tp 2, against no biases"] < 1e-4, "this has changed"
PYTHON
