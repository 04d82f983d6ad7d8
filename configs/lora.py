"""DPO by adapters on frozen weights in 4 bits: 17,408 trained numbers beside 115,392 frozen ones.

Reproduces: the Bayes limit (`bradley_terry.limit()`): accuracy 0.8380, 0.3491 nats a pair
Command: jaxlm train configs/dpo.py:start && jaxlm train configs/lora.py
Hardware: 2 CPU cores
Time: about 1 minute from runs/dpo-start (77 CPU-seconds)
Expected: accuracy 0.83 +- 0.02, 0.37 +- 0.02 nats a pair held out (653 pairs, one seed)
"""

from jaxlm.data.records.preferences import Preferences
from jaxlm.models import llama
from jaxlm.objectives import lora
from jaxlm.objectives.preference import dpo
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Checkpoint, Run


def config() -> Run:
    """The run. Its reference is what the adapters stand on: there is no second copy."""
    return Run(
        name="lora",
        model=llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=4, head=16, ffn=128),
        start="runs/dpo-start",
        adapter=lora.Lora(rank=8, alpha=16.0, targets=("stack/*",), quantise="nf4"),
        data=Preferences(source="tastes", seq=16, batch=64),
        objective=dpo.Config(beta=0.5),
        optim=Optim(lr=1e-2, warmup=20, schedule="linear", final=0.0),
        steps=300,
        eval_every=100,
        samples=("abcd:",),
        sample_tokens=10,
        checkpoint=Checkpoint(every=200),
    )
