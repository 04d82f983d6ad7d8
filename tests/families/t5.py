"""T5 v1.0 and v1.1, tiny: encoder-decoders."""

import dataclasses

from jaxlm.models import t5
from tests.families.sizes import V

T5 = t5.Config(
    vocab=V, embed=16, encoder=2, layers=3, heads=2, head=4, ffn=24, buckets=8, farthest=8
)
CASES = {
    "t5": T5,
    "t5-v1.1": dataclasses.replace(T5, act="gelu_tanh", gated=True, tied=False, scaled=False),
}
VOID: dict[str, tuple[str, ...]] = {}
# One of the encoder's 8 buckets has no distance: that of keys ahead at distance 0.
UNREAD = {"t5": {"encoder_bias": 1}, "t5-v1.1": {"encoder_bias": 1}}

_TINY = {
    "model_type": "t5",
    "architecture": "T5ForConditionalGeneration",
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_heads": 4,
    "num_layers": 2,
    "decoder_start_token_id": 0,
}
ORACLES: dict[str, dict] = {
    "t5": _TINY,
    "t5-gated": _TINY | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5-deeper-decoder": _TINY | {"num_decoder_layers": 3, "feed_forward_proj": "gated-silu"},
    "t5-few-buckets": _TINY
    | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16},
}
