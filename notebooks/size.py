# %% [markdown]
# # What does a model cost before it exists?
#
# A spec is a tree of weights that are only described: shape, axis names, init. Counting, FLOPs and
# bytes are sums over it, so a model of 405 billion parameters can be looked at on a laptop.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxlm import models
from jaxlm.core import param
from jaxlm.models import llama, model
from jaxlm.ops.attention import At
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import cost_report, flops, memory

p = param.shaper(embed=4096, heads=32, kv=8, head=128)
p("embed -> heads head"), p("heads head -> embed").fan_in

# %% [markdown]
# Some published sizes (`jaxlm list` shows all), their training FLOPs per token at 4,096 tokens, and
# the cache of one such sequence in bfloat16. Of experts, the FLOPs are those a token meets; latent
# attention is why DeepSeek's cache is small.

# %%
names = ["gpt3-175b", "palm-540b", "llama3-8b", "llama3-405b", "gemma3-27b", "qwen3-30b-a3b"]
for name in [*names, "mixtral-8x7b", "deepseek-v3"]:
    cfg = models.presets()[name]
    count = param.count(models.spec(cfg))
    seq = min(4096, cfg.context)
    cost = flops.per_token(cfg, seq).training
    cache = memory.cache(cfg, Plan(), batch=1, slots=seq, dtype=jnp.bfloat16)
    size, flop = cost_report.short(count), cost_report.si(cost)
    print(f"{name:<14}{size:>8}  {flop:>8}FLOPs  {devices.binary(cache)}")

# %% [markdown]
# How a 70B model is cut: 16-way FSDP leaves each device a sixteenth of the weights; 8-way tensor
# parallelism divides them again, and the cache with them.

# %%
cfg = models.presets()["llama3-70b"]
whole = Plan(remat="full", attention="blockwise")
for fsdp, tensor in ((1, 1), (16, 1), (16, 8)):
    plan = dataclasses.replace(whole, fsdp=fsdp, tensor=tensor)
    part = memory.training(cfg, plan, batch=16, seq=4096, tx=optax.adamw(1e-4), dtype=jnp.bfloat16)
    print(f"{plan.devices:>4} devices: {devices.binary(part.weights)} weights, "
          f"{devices.binary(part.total)} in all, per device")  # fmt: skip

# %% [markdown]
# A model is functions over a nested dict. Changing a token changes no logits before it:

# %%
tiny = models.build(llama.Config(vocab=16, embed=16, layers=2, heads=2, kv=1, head=8, ffn=32))
params = param.init(tiny.spec, jax.random.key(0))
tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
at = At(jnp.ones_like(tokens), jnp.arange(6)[None])
forward = jax.jit(lambda ids: model.logits(tiny, params, ids, at))
changed = forward(tokens.at[0, 3].set(9)) != forward(tokens)
print("positions whose logits changed:", jnp.flatnonzero(changed.any((0, 2))).tolist())
