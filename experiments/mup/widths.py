"""The models of both experiments: one shape at every width, and the widths of their base."""

from jaxlm.data import pretraining
from jaxlm.models import llama
from jaxlm.parallel.plan import Plan
from jaxlm.train.optim import optimizer
from jaxlm.train.optim.mup import Widths
from jaxlm.train.run import run as runs

BASE, HEAD = 16, 16


def model(width: int, layers: int) -> llama.Config:
    """A LLaMA on bytes: heads of 16, a feed-forward layer of twice the width."""
    heads = width // HEAD
    return llama.Config(
        vocab=259, embed=width, layers=layers, heads=heads, kv=heads, head=HEAD, ffn=2 * width
    )


def base() -> Widths:
    """The widths of the base model."""
    return (
        ("embed", BASE),
        ("heads", BASE // HEAD),
        ("kv", BASE // HEAD),
        ("ffn", 2 * BASE),
    )


def run(
    name: str,
    width: int,
    layers: int,
    mup: bool,
    data: pretraining.Data,
    optimiser: optimizer.Optim,
    **rest,
) -> runs.Run:
    """A Run of that width on `data`, under muP or the standard parametrisation."""
    return runs.Run(
        name=name,
        model=model(width, layers),
        mup=base() if mup else None,
        data=data,
        optim=optimiser,
        plan=Plan(unroll=layers),
        **rest,
    )
