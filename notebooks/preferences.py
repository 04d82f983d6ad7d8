# %% [markdown]
# # Learn preferences in a world whose optimum is known
#
# In `tastes`, a prompt begins with one of four letters. That letter is liked in a response, and the
# other three are not; the better of two responses wins as often as Bradley and Terry's model says.
# So the reward that made the labels is known, and with it the best accuracy that any reward model
# can have on noisy labels.

# %%
import itertools

import matplotlib.pyplot as plt
import numpy as np

import jaxlm
from jaxlm.data.records.preferences import Preferences
from jaxlm.data.synthetic import bradley_terry
from jaxlm.eval import reward_model
from jaxlm.objectives.preference import reward

for record in itertools.islice(bradley_terry.pairs(), 3):
    print(record)
limit = bradley_terry.limit()
print(f"at most {limit.accuracy:.3f} of the labels can be predicted, at {limit.nll:.3f} nats")

# %% [markdown]
# A reward model is a language model with a scalar head on the last token. Training needs the kind
# of data and the objective; the rest is as in pretraining.

# %%
run = jaxlm.Run(
    name="reward",
    model=jaxlm.models.llama.Config(vocab=259, embed=32, layers=2, heads=4, kv=4, head=8, ffn=96),
    data=Preferences(source="tastes", seq=15, holdout=0.2, batch=64),
    objective=reward.Config(centre=1e-3),
    optim=jaxlm.Optim(lr=5e-3, warmup=30, schedule="linear", final=0.0),
    steps=250,
)
result = jaxlm.train(run)
print({name: round(result.val[name], 3) for name in ("accuracy", "nll", "calibration")})

# %% [markdown]
# Does it score texts that it never compared as the true reward does? Preferences say nothing of a
# constant per prompt, so each prompt's mean is taken off. Large rewards are learnt least: whether a
# response wins with probability 0.99 or 0.999 takes many comparisons to tell.

# %%
judge = jaxlm.train.trained_weights.judge("runs/reward")
prompts = [f"{letter}wxy:" for letter in bradley_terry.LETTERS]
responses = ["aabb", "abcd", "bb", "ccca", "dddd", "abab", "c", "dcba", "aaaaaa", "bbbd"]
pairs = [(p, r) for p in prompts for r in responses]
true = np.array([bradley_terry.reward(p, r) for p, r in pairs]).reshape(len(prompts), -1)
scored = reward_model.score(judge, pairs).reshape(len(prompts), -1)
true, scored = (x - x.mean(1, keepdims=True) for x in (true, scored))
correlation = float(np.corrcoef(true.ravel(), scored.ravel())[0, 1])
print(f"correlation of learnt and true reward: {correlation:.3f}")
figure, axes = plt.subplots(figsize=(4, 4))
axes.plot(true.ravel(), scored.ravel(), "o")
axes.axline((0, 0), slope=1, color="grey")
axes.set(xlabel="true reward", ylabel="learnt reward")
figure.savefig("reward.png")
