"""A tiny model of a source whose entropy is known exactly: does training reach what can be reached?

Reproduces: 1.8882 bits per byte, the entropy of corpus `markov` (`corpora.markov_bits_per_byte`).
Command: jaxlm train configs/markov.py
Hardware: 2 CPU cores
Time: 1.6 minutes on a shared machine
Expected: 1.897 +- 0.005 bits per byte held out (`small_gpt`: 1.902)
"""

from jaxlm.data.pretraining import Data
from jaxlm.models import AnyConfig, gpt, llama
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Run


def config() -> Run:
    """A LLaMA-style model."""
    return _run(
        "markov", llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=2, head=16, ffn=192)
    )


def small_gpt() -> Run:
    """A GPT-style model of the same size."""
    return _run("markov-gpt", gpt.Config(vocab=259, embed=64, layers=2, heads=4, context=128))


def _run(name: str, model: AnyConfig) -> Run:
    return Run(
        name=name,
        model=model,
        data=Data(source="markov", tokenizer="bytes", seq=128, batch=16),
        optim=Optim(lr=3e-3, warmup=20),
        steps=300,
        eval_every=100,
        eval_batches=8,
    )
