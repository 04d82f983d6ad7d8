"""Tiny random transformers models and what they compute: the oracle of both families.

Needs torch and transformers; imported by make_golden.py and by the live parity test only.
"""

from typing import Any

import numpy as np
import torch
import transformers

from jaxlm import models
from jaxlm.models import gpt, llama
from tests.models import hf_weights

VOCAB, EMBED, LAYERS, HEADS, CONTEXT = 37, 16, 2, 4, 24

GPT = {"vocab": VOCAB, "embed": EMBED, "layers": LAYERS, "heads": HEADS, "context": CONTEXT}
LLAMA = {
    "vocab": VOCAB, "embed": EMBED, "layers": LAYERS, "heads": HEADS, "kv": HEADS, "head": 8,
    "ffn": 24, "context": CONTEXT, "eps": 1e-6,
}  # fmt: skip

# name: (our Config, table of weight names)
CASES: dict[str, tuple[models.AnyConfig, str]] = {
    "gpt1": (gpt.Config(**GPT, norm="post"), "gpt1"),
    "gpt2": (gpt.Config(**GPT), "gpt2"),
    "gpt2-untied": (gpt.Config(**GPT, tied=False), "gpt2"),
    "llama-mha": (llama.Config(**LLAMA), "llama"),
    "llama-gqa": (llama.Config(**LLAMA | {"kv": 2, "theta": 500000.0}), "llama"),
    "llama-tied": (llama.Config(**LLAMA | {"kv": 1, "tied": True}), "llama"),
    "qwen2-bias": (llama.Config(**LLAMA | {"kv": 2, "bias": True, "head": 4}), "llama"),
    "qwen3-qk-norm": (llama.Config(**LLAMA | {"kv": 2, "qk_norm": True}), "llama"),
    "mistral-window": (llama.Config(**LLAMA | {"kv": 2, "window": 5}), "llama"),
}


def model(name: str) -> Any:
    """A transformers model of a case, with every weight random (biases and norms too), float32."""
    cfg = CASES[name][0]
    torch.manual_seed(len(name))
    theirs = _gpt(name, cfg) if isinstance(cfg, gpt.Config) else _llama(name, cfg)
    with torch.no_grad():
        for path, w in theirs.named_parameters():
            w.copy_(
                torch.randn(w.shape) * 0.2
                + ("norm" in path or "ln_" in path) * ("bias" not in path)
            )
    return theirs.eval()


def _gpt(name: str, cfg: gpt.Config) -> Any:
    sizes = {
        "vocab_size": cfg.vocab, "n_positions": cfg.context, "n_embd": cfg.embed,
        "n_layer": cfg.layers, "n_head": cfg.heads, "layer_norm_epsilon": cfg.eps,
        "attn_implementation": "eager",
    }  # fmt: skip
    if name == "gpt1":
        return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**sizes, afn="gelu"))
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, tie_word_embeddings=cfg.tied)
    )


def _llama(name: str, cfg: llama.Config) -> Any:
    family = {"qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}
    family = family.get(name.partition("-")[0], "Llama")
    sizes = {
        "vocab_size": cfg.vocab, "hidden_size": cfg.embed, "intermediate_size": cfg.ffn,
        "num_hidden_layers": cfg.layers, "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv, "max_position_embeddings": cfg.context,
        "rms_norm_eps": cfg.eps, "tie_word_embeddings": cfg.tied, "attn_implementation": "eager",
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.theta},
    }  # fmt: skip
    if family != "Qwen2":
        sizes["head_dim"] = cfg.head  # Qwen 2's is hidden_size / heads
    if family == "Mistral":
        sizes["sliding_window"] = cfg.window
    settings = getattr(transformers, f"{family}Config")(**sizes)
    return getattr(transformers, f"{family}ForCausalLM")(settings)


def weights(name: str, theirs: Any) -> dict[str, Any]:
    """Our tree of their weights."""
    cfg, table = CASES[name]
    state = {path: w.detach().numpy() for path, w in theirs.state_dict().items()}
    return hf_weights.convert(table, cfg, state)


def tokens(name: str, rows: int, length: int) -> np.ndarray:
    """Random ids int[rows, length]."""
    return np.random.default_rng(len(name)).integers(0, VOCAB, (rows, length))


def outputs(theirs: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits [B, T, V], mean nll of the next tokens, its gradient by the embedding table [V, D]).

    The table's gradient includes the head's where they are tied.
    """
    table = theirs.get_input_embeddings().weight
    theirs.zero_grad()
    out = theirs(torch.tensor(ids))
    logp = torch.log_softmax(out.logits[:, :-1], -1)
    nll = -logp.gather(-1, torch.tensor(ids)[:, 1:, None]).mean()
    nll.backward()
    return out.logits.detach().numpy(), nll.detach().numpy(), table.grad.numpy().copy()
