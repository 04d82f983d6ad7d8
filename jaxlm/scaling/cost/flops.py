"""Floating-point operations of a model, from its weights' spec.

A weight that contracts its input costs one multiplication and one addition per element and token;
an embedding look-up costs nothing. Norms, activations and softmax are left out, as in Kaplan et al.
2020 (table 1) and Chowdhery et al. 2022 (appendix B): they are below 1 % where matrices are large.
Of a layer's experts only those that a token is sent to count. XLA's own count agrees for the form
with a capacity; of the dropless one on CPU, a loop over groups, it counts one iteration.
"""

import dataclasses
import math
from typing import Any

from jaxlm import models
from jaxlm.core import param
from jaxlm.models import flax_modules
from jaxlm.models.layers import stack
from jaxlm.models.layers.stack import Layer

# A backward pass costs two forward passes: the gradients of inputs and of weights.
TRAINING = 3
# Places of a spec's layers; those that predict further ahead run in training alone.
STACKS = ("encoder", "stack", "ahead")


@dataclasses.dataclass(frozen=True)
class Flops:
    """Forward operations per token, in parts."""

    layers: float
    """Products with the layers' weights."""
    head: float
    """The product with the output matrix, tied or not, and with what prepares it."""
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


def per_token(
    cfg: models.AnyConfig, seq: int, *, causal: bool = True, targets: int | None = None
) -> Flops:
    """Forward FLOPs per token of a model's Config at `seq` tokens, on average over a full row.

    causal=True counts the keys each query may see: (seq + 1) / 2 on average, fewer with a window;
    of an encoder all seq, or those on both sides in the window. causal=False counts all seq keys
    for every query, which is what PaLM's MFU counts and what a kernel that forms every score does.

    Of an encoder-decoder it is per source token, in rows of `seq` source and `targets` target
    tokens (None: as many): the encoder, and the keys and values that the decoder computes from its
    output, once; the rest of the decoder and the output matrix targets / seq times. Of a model that
    predicts further than the next token it is with that, as in training. Of a Flax module, whose
    layers are not known, it is its matrices alone, without scores.

    Raises: ValueError when seq is below 1, and for targets of a model without an encoder.
    """
    if seq < 1:
        raise ValueError(f"seq: {seq} tokens given; at least 1 is needed")
    spec = models.spec(cfg)
    if targets is not None and "encoder" not in spec:
        raise ValueError(f"targets: {targets} given; this model is no encoder-decoder")
    if isinstance(cfg, flax_modules.Config):
        matrices = [p for p in param.flatten(spec).values() if p.inputs]
        return Flops(sum(2.0 * math.prod(p.shape) for p in matrices), 0.0, 0.0)
    own = seq if targets is None else targets
    stacks = param.flatten({name: spec[name] for name in STACKS if name in spec})
    kinds = of_kind(cfg)
    products = scores = 0.0
    for path, p in stacks.items():
        if p.inputs:
            times = _used(kinds, path, p) * (1 if _of_source(path) else own / seq)
            products += 2 * math.prod(p.shape) * times
    for name in STACKS:
        for kind in stack.kinds(spec.get(name, {})):
            scores += _attention(kinds[kind], seq, own, causal)
    heads = 1 + len(stack.kinds(spec.get("ahead", {})))
    return Flops(products, heads * _head(spec) * own / seq, scores)


def of_kind(cfg: models.AnyConfig) -> dict[str, Layer]:
    """A family's layers by their kind."""
    return {layer.kind: layer for layer in models.family(cfg).layers(cfg)}


def _of_source(path: str) -> bool:
    """Whether a weight is multiplied with the tokens of the source."""
    return path.startswith("encoder/") or path.endswith(("/cross/k", "/cross/v"))


def _attention(layer: Layer, seq: int, own: int, causal: bool) -> float:
    """FLOPs of one layer's scores per token of `seq`; `own` is the length of a decoder's row."""
    if layer.over == "around":
        return layer.pair * (2 * visible_keys(seq, layer.window) - 1 if causal else seq)
    past = layer.pair * (visible_keys(own, layer.window) if causal else own) * own / seq
    return past + layer.pair * own if layer.cross else past


def active(cfg: models.AnyConfig) -> float:
    """The parameters a token meets, embedding table and output matrix among them: of a layer's
    experts only those it is sent to. All of them in a model without experts."""
    kinds = of_kind(cfg)
    flat = param.flatten(models.spec(cfg))
    return sum(math.prod(p.shape) * _used(kinds, path, p) for path, p in flat.items())


def _used(kinds: dict[str, Layer], path: str, p: param.Param) -> float:
    """The share of a weight's copies that a token meets: of experts, those it is sent to."""
    if "expert" not in p.axes[: p.copies]:
        return 1
    layer = path.split("/")[2]  # stack/0/1_moe/...
    return kinds[stack.kind(layer)].active / p.shape[p.axes.index("expert")]


def visible_keys(seq: int, window: int | None) -> float:
    """Keys a query sees under a causal mask, averaged over a row: the mean of min(t, window)."""
    w = seq if window is None else min(window, seq)
    return (w * (w + 1) / 2 + (seq - w) * w) / seq


def _head(spec: Any) -> float:
    """FLOPs per token of the product with the output matrix, and of BERT's layer before it."""
    out = spec["unembed"] if "unembed" in spec else spec["embed"]["table"]
    before = [p for p in param.flatten(spec.get("mlm", {})).values() if p.inputs]
    return sum(2 * math.prod(p.shape) for p in [out, *before])
