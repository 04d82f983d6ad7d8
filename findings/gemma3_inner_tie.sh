#!/usr/bin/env bash
# transformers 5.24.0: of Gemma 3 with images, tie_word_embeddings stands in the outer config and in
# text_config. The inner one does nothing: with {"text_config": {"tie_word_embeddings": false}} the
# output matrix is the embedding table all the same; the outer one unties it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PYTHON'
import torch, transformers

text = dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8)
vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
              image_size=28, patch_size=14, vision_use_head=False)

def tied(inner, **outer):
    config = transformers.Gemma3Config(text_config=text | inner, vision_config=vision,
                                       mm_tokens_per_image=4, **outer)
    model = transformers.Gemma3ForConditionalGeneration(config)
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight

seen = {"neither": tied({}), "inner false": tied({"tie_word_embeddings": False}),
        "outer false": tied({}, tie_word_embeddings=False)}
print("transformers", transformers.__version__, "torch", torch.__version__, "tied:", seen)
assert seen == {"neither": True, "inner false": True, "outer false": False}, "this has changed"
PYTHON
