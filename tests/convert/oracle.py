"""Tiny random models of transformers, and what they compute. Needs torch and transformers."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from tests.convert import cases

# Eager attention computes as written; but Falcon's adds ALiBi twice, its other form once.
ATTENTION = {"falcon": "sdpa"}


def build(case: str) -> Any:
    """The transformers model of a case, every weight drawn by its name on disk, float32."""
    record = dict(cases.ORACLES[case])
    kind, architecture = record.pop("model_type"), record.pop("architecture")
    config = transformers.AutoConfig.for_model(kind, **record)
    config._attn_implementation = ATTENTION.get(kind, "eager")
    return getattr(transformers, architecture)(config).eval()


def save(case: str, folder: pathlib.Path) -> Any:
    """The model of a case, saved as a checkpoint whose tensors are drawn by their names there."""
    from safetensors import torch as safetensors

    build(case).save_pretrained(folder)
    file = folder / "model.safetensors"
    stored = safetensors.load_file(file)
    drawn = {
        name: torch.from_numpy(cases.draw(case, name, tuple(t.shape)))
        if t.is_floating_point()
        else t
        for name, t in stored.items()
    }
    safetensors.save_file(drawn, file, metadata={"format": "pt"})
    return load(folder)


def load(folder: pathlib.Path) -> Any:
    """The model of a checkpoint, float32, by the class its config.json names."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    attention = ATTENTION.get(config.model_type, "eager")
    model, loading = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    odd = {k: v for k, v in loading.items() if v and k != "error_msgs"}
    assert not odd, odd
    return model.eval()


def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """float32[B, T, V]; of an encoder-decoder, its decoder's when it reads the same ids."""
    given = {"input_ids": torch.tensor(ids, dtype=torch.long), "return_dict": True}
    if type(model).__name__.endswith("ForConditionalGeneration") and hasattr(model, "decoder"):
        given["decoder_input_ids"] = given["input_ids"]
    elif is_causal(model):
        given["use_cache"] = False
    with torch.no_grad():
        return model(**given).logits.numpy()


def is_causal(model: Any) -> bool:
    """Whether the model is a decoder alone."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def nll(model: Any, ids: np.ndarray) -> torch.Tensor:
    """The mean negative log-likelihood of the next tokens."""
    given = torch.tensor(ids, dtype=torch.long)
    z = torch.log_softmax(model(given, use_cache=False).logits[:, :-1].float(), -1)
    return -z.gather(-1, given[:, 1:, None]).mean()


def update(
    model: Any, ids: np.ndarray, lr: float, decay: float, eps: float
) -> tuple[float, np.ndarray, float]:
    """(loss, its gradient in the embedding table, loss after one update by AdamW)."""
    named = list(model.named_parameters())
    flat = [p for n, p in named if p.ndim < 2 or re.search("bias|wpe|position", n)]
    deep = [p for n, p in named if not (p.ndim < 2 or re.search("bias|wpe|position", n))]
    groups = [{"params": deep, "weight_decay": decay}, {"params": flat, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=eps)
    first = nll(model, ids)
    first.backward()
    gradient = model.get_input_embeddings().weight.grad.numpy().copy()
    optimiser.step()
    with torch.no_grad():
        return float(first.detach()), gradient, float(nll(model, ids))


def greedy(
    model: Any, prompts: Sequence[Sequence[int]], new: int, **settings: Any
) -> list[list[int]]:
    """The likeliest continuation of each prompt by `generate`, alone, with no end but what the
    settings give."""
    model.generation_config.eos_token_id = None
    continuations = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )
        continuations.append(out[0, len(prompt) :].tolist())
    return continuations
