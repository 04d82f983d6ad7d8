# %% [markdown]
# # Train a language model on text whose entropy is known
#
# `markov` is a made-up source of text: how many bits a byte carries at least is a known number,
# 1.888. A model that has learnt the source comes near it, and none gets below. A run is one value
# that decides everything: equal runs train equal weights.

# %%
import matplotlib.pyplot as plt

import jaxlm
from jaxlm.train.run import metrics

model = jaxlm.models.llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=2, head=16, ffn=192)
data = jaxlm.Data(source="markov", seq=64, batch=16, holdout=0.02)
optim = jaxlm.Optim(lr=3e-3, warmup=10)
run = jaxlm.Run(
    name="first", model=model, data=data, optim=optim, steps=80, log_every=1, eval_every=20,
    eval_batches=8,
)  # fmt: skip
result = jaxlm.train(run)
print(f"held out: {result.val['bits_per_byte']:.3f} bits per byte; the source has 1.888")

# %% [markdown]
# The run directory holds the configuration, the environment, checkpoints and one record per logged
# step. Analysis reads those records.

# %%
records = list(metrics.records(jaxlm.load("runs/first").folder / "metrics.jsonl"))
train = [(r["step"], r["loss"]) for r in records if r["split"] == "train"]
held_out = [(r["step"], r["nll"]) for r in records if r["split"] == "val"]
figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(*zip(*train, strict=True), label="training batch")
axes.plot(*zip(*held_out, strict=True), "o", label="held out")
axes.set(xlabel="step", ylabel="nats per token")
axes.legend()
figure.savefig("loss.png")

# %% [markdown]
# Training again finds the run finished and returns its result. A change of any field is another
# experiment, so it needs another name; how a run executes (its plan) may change freely.

# %%
again = jaxlm.train(run)
print("the same result:", again.val == result.val)
