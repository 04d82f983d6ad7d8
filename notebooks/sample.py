# %% [markdown]
# # Sample from a model and score text with it
#
# First a model to work with: one minute's training on the source `markov`, whose texts are chains
# of characters in which the next depends on those before.

# %%
import numpy as np

import jaxlm
from jaxlm.data import tokenizers
from jaxlm.decode import token_sampling

model = jaxlm.models.llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=2, head=16, ffn=192)
data = jaxlm.Data(source="markov", seq=64, batch=16, holdout=0.02)
optim = jaxlm.Optim(lr=3e-3, warmup=10)
jaxlm.train(
    jaxlm.Run(name="sampled", model=model, data=data, optim=optim, steps=80, eval_batches=8)
)
saved = jaxlm.load("runs/sampled")

# %% [markdown]
# `generate` continues all prompts in one batch. Temperature 0 always takes the likeliest token; at
# 1 and above texts vary, and a seed decides which. Row r has seed + r.

# %%
for temperature in (0.0, 0.8, 1.5):
    sampling = jaxlm.Sampling(max_new=24, temperature=temperature, seed=1)
    print(temperature, jaxlm.generate(saved, ["ab", "ab"], sampling))

# %% [markdown]
# Scores of the held-out text: nats per token and bits per byte. The source itself has 1.888.

# %%
score = jaxlm.evaluate(saved)
print({name: round(score[name], 3) for name in ("nll", "bits_per_byte")})

# %% [markdown]
# One level down, sampling returns two log-probabilities along with each token: under the model, and
# under the distribution that was sampled from, here its two likeliest tokens renormalised. The
# second is the larger one, since no probability is lost to tokens that cannot be drawn; importance
# ratios need the same one on both sides.

# %%
tokenizer = tokenizers.load("bytes")
settings = token_sampling.Sampling(max_new=64, top_k=2, seed=3)
out = token_sampling.generate(saved.model, saved.params, [list(b"ab")], settings)
print("mean log-probability under the model:", np.mean(out.log_probs[0]).round(3))
print("under the two likeliest tokens:", np.mean(out.support_log_probs[0]).round(3))
print("text:", tokenizer.decode(out.tokens[0].tolist()))
