"""Floating-point operations of a model, from its weights' spec.

A weight that contracts its input costs one multiplication and one addition per element and token;
an embedding look-up costs nothing. Norms, activations and softmax are left out, as in Kaplan et al.
2020 (table 1) and Chowdhery et al. 2022 (appendix B): they are below 1 % where matrices are large.
"""

import dataclasses
import math
from typing import Any

from jaxlm import models
from jaxlm.core import param

# A backward pass costs two forward passes: the gradients of inputs and of weights.
TRAINING = 3


@dataclasses.dataclass(frozen=True)
class Flops:
    """Forward operations per token, in parts."""

    layers: float
    """Products with the layers' weights."""
    head: float
    """The product with the output matrix, tied or not."""
    attention: float
    """Scores q.k and the weighted sum of values."""

    @property
    def forward(self) -> float:
        """All parts."""
        return self.layers + self.head + self.attention

    @property
    def training(self) -> float:
        """Forward and backward: three times the forward pass. Recomputation is not counted, so
        that utilisation computed from it is model FLOP utilisation (MFU)."""
        return TRAINING * self.forward


def per_token(cfg: models.AnyConfig, seq: int, *, causal: bool = True) -> Flops:
    """Forward FLOPs per token of a model's Config at `seq` tokens, on average over a full row.

    causal=True counts the keys each query may see: (seq + 1) / 2 on average, fewer with a window.
    causal=False counts all seq keys for every query, which is what PaLM's MFU counts and what a
    kernel that forms every score does.

    Raises: ValueError when seq is below 1.
    """
    if seq < 1:
        raise ValueError(f"seq: {seq} tokens given; at least 1 is needed")
    spec = models.spec(cfg)
    layers = sum(
        2 * math.prod(p.shape) * _used(cfg, p)
        for p in param.flatten(spec["stack"]).values()
        if p.inputs
    )
    attention = sum(
        reach.pair * (visible_keys(seq, reach.window) if causal else seq)
        for reach in models.family(cfg).reaches(cfg)
    )
    return Flops(layers, 2 * math.prod(_head(spec).shape), attention)


def _used(cfg: models.AnyConfig, p: param.Param) -> float:
    """The share of a weight's copies that a token meets: of experts, those it is sent to."""
    if "expert" not in p.axes[: p.copies]:
        return 1
    return models.family(cfg).experts_per_token(cfg) / p.shape[p.axes.index("expert")]


def visible_keys(seq: int, window: int | None) -> float:
    """Keys a query sees under a causal mask, averaged over a row: the mean of min(t, window)."""
    w = seq if window is None else min(window, seq)
    return (w * (w + 1) / 2 + (seq - w) * w) / seq


def _head(spec: Any) -> param.Param:
    return spec["unembed"] if "unembed" in spec else spec["embed"]["table"]
