# %% [markdown]
# # Add a model family, or bring one from Flax
#
# A family is a Config (its mathematics), a spec (its weights) and a block. The rest (embedding,
# scan over layers, cache, head) is shared. Here: attention and feed-forward read the same input in
# parallel, without norms inside, and their outputs are scaled by a learned vector that begins at 0.

# %%
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

import jaxlm
from jaxlm.core import batch, param
from jaxlm.decode import token_sampling
from jaxlm.models.flax_modules import from_flax
from jaxlm.models.layers import decoder, ffn, mha, stack
from jaxlm.models.model import logits
from jaxlm.objectives import clm
from jaxlm.ops import norm, rope
from jaxlm.ops.attention import At
from jaxlm.train import step


@dataclasses.dataclass(frozen=True)
class Config:
    """The mathematics of the new family."""

    KIND = "parallel"

    vocab: int = 16
    embed: int = 32
    layers: int = 2
    heads: int = 4
    head: int = 8
    ffn: int = 64


def spec(cfg):
    """One string per weight: its shape, its axis names and its fan-in."""
    p = param.shaper(
        vocab=cfg.vocab, embed=cfg.embed, heads=cfg.heads, kv=cfg.heads, head=cfg.head, ffn=cfg.ffn
    )

    def weights(kind):
        return {
            "attn": mha.spec(p, out=param.fan_in()),
            "ffn": ffn.spec(p, gated=True, bias=False, out=param.fan_in()),
            "gain": p("embed", init=param.zeros),
        }

    return {
        "embed": {"table": p("vocab embed", init=param.normal(1.0))},
        "stack": stack.spec(layers(cfg), weights),
        "norm": p("embed", init=param.ones),
        "unembed": p("embed -> vocab"),
    }


def layers(cfg):
    """What the block, the cache and the cost functions need to know of every layer."""
    return cfg.layers * [mha.layer("global", cfg.heads, cfg.heads, cfg.head)]


def build(cfg, plan=jaxlm.Plan()):
    """The Model: pure functions over the weights of `spec`."""
    rotary = rope.frequencies(cfg.head, 10000.0, None, 64)

    def embed(w, tokens, at, key):
        return jnp.take(plan.gather(w["table"], "vocab embed"), tokens, axis=0)

    def block(layer, w, x, at, memory, key):
        q, k, v = mha.project(w["attn"], x, at, rotary=rotary)
        y, out = mha.attend(q, k, v, at, memory, plan)
        h = mha.output(w["attn"], y) + ffn.apply(w["ffn"], x, jax.nn.silu)
        return x + w["gain"].astype(x.dtype) * h, out

    return decoder.build(
        cfg, spec(cfg), plan, layers=layers(cfg), embed=embed, block=block, context=None,
        norm=lambda w, x: norm.rms_norm(x, w, 1e-6),
    )  # fmt: skip


# %% [markdown]
# Laws hold for any model. One of them: changing a token changes no logits before it. In the library
# a family is a file of `jaxlm/models/` and a line in `FAMILIES`, after which every law of
# `tests/test_laws.py` runs over it.

# %%
family = build(Config())
fresh = param.init(family.spec, jax.random.key(0))
params = jax.tree.map(lambda w: w + 0.1, fresh)
tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
at = At(jnp.ones_like(tokens), jnp.arange(6)[None])
forward = jax.jit(lambda ids: logits(family, params, ids, at))
changed = jnp.flatnonzero((forward(tokens.at[0, 3].set(9)) != forward(tokens)).any((0, 2))).tolist()
print("positions whose logits changed:", changed)

# %% [markdown]
# A task: continue numbers modulo 16 that rise by 1, 2 or 3. Only the first rise cannot be known,
# which costs log 3 / 12 = 0.092 nats a token. The loop is a few lines for any Model:
# objective, optimiser, compiled step.


# %%
@jax.jit
def rows(key):
    """A batch of 32 sequences of 12 tokens."""
    first = jax.random.randint(key, (32, 1), 0, 16)
    rise = jax.random.randint(jax.random.fold_in(key, 1), (32, 1), 1, 4)
    text = (first + rise * jnp.arange(13)) % 16
    ones, places = jnp.ones((32, 12), jnp.int32), jnp.tile(jnp.arange(12), (32, 1))
    return batch.Batch(text[:, :-1], text[:, 1:], ones.astype(float), ones, places)


def train(model, steps=200):
    """(weights, loss of the last step)."""
    objective = jaxlm.objectives.build(clm.Config(), model)
    settings = jaxlm.Optim(lr=1e-2, warmup=10)
    tx = jaxlm.train.optim.optimizer.build(settings, objective.spec, steps, fp16=False)
    state = step.init(objective, tx, jaxlm.Plan(), seed=0)
    update, keys = (
        step.make(objective, tx, jaxlm.Plan()),
        jax.random.split(jax.random.key(1), steps),
    )
    for key in keys:
        state, metrics = update(state, rows(key))
    return state.params, float(metrics["loss"])


def continued(model, params):
    """The greedy continuation of 1, 4, 7."""
    greedy = token_sampling.Sampling(max_new=6, temperature=0)
    return token_sampling.generate(model, params, [[1, 4, 7]], greedy).tokens[0].tolist()


params, own_loss = train(family)
own_text = continued(family, params)
print(f"loss {own_loss:.3f}, after 1, 4, 7: {own_text}")


# %% [markdown]
# ## A module that is not ours
#
# This one is written with Flax's own layers and knows nothing of jaxlm. Three lines make it a
# model, train it and sample from it. It has no KV cache, so each new token recomputes the text.


# %%
class Transformer(nnx.Module):
    """One block of attention, as in Flax's documentation."""

    def __init__(self, rngs):
        self.tokens = nnx.Embed(16, 32, rngs=rngs)
        self.places = nnx.Embed(32, 32, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(32, 128, rngs=rngs), nnx.Linear(128, 32, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(32, rngs=rngs) for _ in range(3)])
        self.out = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, tokens, mask):
        x = self.tokens(tokens) + self.places(jnp.arange(tokens.shape[1]))
        x = x + self.attend(self.norms[0](x), mask=mask)
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.out(self.norms[2](x))


# %%
stranger = from_flax.model(Transformer(nnx.Rngs(0)), vocab=16, context=32, reads=("mask",))
params, flax_loss = train(stranger)
flax_text = continued(stranger, params)
print(f"loss {flax_loss:.3f}, after 1, 4, 7: {flax_text}")
