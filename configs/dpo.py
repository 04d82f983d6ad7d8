"""DPO on preferences whose truth is known: the implicit reward against what can be known.

Reproduces: nothing published; the reward behind the held-out labels of `tastes` itself agrees with
0.850 of them, at 0.324 nats each (over all pairs, `bradley_terry.limit()`: 0.838 and 0.349).
Command: jaxlm train configs/dpo.py:start && jaxlm train configs/dpo.py
Hardware: 2 CPU cores
Time: about 2 minutes of CPU, both together; 11 minutes on a very busy machine
Expected: start 1.515 nats a token (1.512 is their entropy); then accuracy 0.854 +- 0.007, loss
0.334 +- 0.010 held out; a sample is mostly of the prompt's first letter
"""

from jaxlm.data.records.chats import Chats
from jaxlm.data.records.preferences import Preferences
from jaxlm.models import llama
from jaxlm.objectives import sft
from jaxlm.objectives.preference import dpo
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Checkpoint, Run

MODEL = llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=4, head=16, ffn=128)
SEQ = 16  # begin, at most six of the prompt, eight of the response, its end


def start() -> Run:
    """What DPO begins from and is held to: random responses, of one to eight letters."""
    return Run(
        name="dpo-start",
        model=MODEL,
        data=Chats(source="tastes-answers", seq=128, batch=16),
        objective=sft.Config(),
        optim=Optim(lr=3e-3, warmup=20, schedule="linear", final=0.0),
        steps=200,
        eval_every=200,
        checkpoint=Checkpoint(every=200),
    )


def config() -> Run:
    """DPO from there. With beta * log(policy / reference) for a reward, its loss is the nats a
    pair of a reward model, and has the same limit."""
    return Run(
        name="dpo",
        model=MODEL,
        start="runs/dpo-start",
        data=Preferences(source="tastes", seq=SEQ, holdout=0.2, batch=64),
        objective=dpo.Config(beta=1.0, reference="stored"),
        optim=Optim(lr=2e-3, warmup=20, schedule="linear", final=0.0),
        steps=300,
        eval_every=100,
        samples=("bywz:",),
        sample_tokens=10,
        checkpoint=Checkpoint(every=200),
    )
