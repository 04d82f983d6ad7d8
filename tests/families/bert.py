"""BERT, tiny: an encoder."""

from jaxlm.models import bert
from tests.families.sizes import T, V

BERT = bert.Config(vocab=V, embed=16, layers=3, heads=2, ffn=24, context=T, types=1)
CASES = {"bert": BERT}

# A key bias adds the same to every score of a query, where positions do not turn it: its gradient
# is 0 but for rounding.
VOID: dict[str, tuple[str, ...]] = {"bert": ("k_bias",)}

_TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
}
_BERT = {"model_type": "bert", "architecture": "BertForMaskedLM", **_TINY}
_ROBERTA = {"model_type": "roberta", "architecture": "RobertaForMaskedLM", **_TINY}
_LONG = {"model_type": "longformer", "architecture": "LongformerForMaskedLM", **_TINY}
ORACLES: dict[str, dict] = {
    "bert": _BERT,
    "bert-tanh": _BERT | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "bert-one-type": _BERT | {"type_vocab_size": 1, "hidden_act": "relu"},
    "roberta": _ROBERTA | {"pad_token_id": 1, "type_vocab_size": 1},
    "roberta-pad": _ROBERTA | {"pad_token_id": 3, "hidden_act": "relu"},
    "longformer": _LONG | {"pad_token_id": 1, "attention_window": [8, 8, 8]},
    "longformer-widths": _LONG | {
        "pad_token_id": 1, "attention_window": [4, 8, 4], "hidden_act": "gelu_new",
    },
}  # fmt: skip
