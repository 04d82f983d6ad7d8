"""Multi-head latent attention: keys and values of all heads from one small vector a token.
DeepSeek-AI 2024 (DeepSeek-V2), section 2.1 and appendix C.

A token's keys and values are computed from its latent c [R]; along with it there is one rotary key
[H_r], which all heads share, since no constant matrix computes a rotated key from c. The same
function has two forms:

    expanded   k = [c W_k, rope], v = c W_v, per head       training, prefill
    absorbed   q W_k^T and the rotary query meet [c, rope]; what they take from it, times W_v

The cache holds [c, rope] alone, R + H_r elements a token, and the absorbed form reads it as
stored: multi-query attention in which the cache is both the key and the value.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models.layers import mha, quantised_cache, stack
from jaxlm.ops import attention as ops_attention
from jaxlm.ops import linear, norm, rope
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


def spec(
    *,
    embed: int,
    heads: int,
    q_rank: int | None,
    rank: int,
    nope: int,
    rotary: int,
    value: int,
    out: param.Init,
) -> param.Tree:
    """The weights of one layer.

    q_rank: size of the queries' own latent, None for queries computed directly from the residual
    stream. nope, rotary: the unrotated and the rotated dimensions of a head's query and key.
    value: a head's value. out starts the matrix into the residual stream.
    """
    wide = {"embed": embed, "heads": heads, "rank": rank, "q_rank": q_rank or 1}
    q, k, v, turned = (
        param.shaper(**wide, head=size) for size in (nope + rotary, nope, value, rotary)
    )
    tree = {
        "latent": q("embed -> rank"),
        "latent_norm": q("rank", init=param.ones),
        "rope": turned("embed -> head"),
        # a matrix for each head, as the absorbed form reads them: [R, N, H] would be transposed,
        # that is copied, at every token
        "k": k("heads | rank -> head"),
        "v": v("heads | rank -> head"),
        "o": v("heads head -> embed", init=out),
    }
    if q_rank is None:
        return tree | {"q": q("embed -> heads head")}
    return tree | {
        "q_latent": q("embed -> q_rank"),
        "q_latent_norm": q("q_rank", init=param.ones),
        "q": q("q_rank -> heads head"),
    }


def apply(
    w: param.Tree,
    h: jax.Array,
    at: At,
    memory: mha.Memory,
    plan: Plan,
    *,
    rotary: rope.Rotary,
    interleaved: bool,
    scale: float,
    eps: float,
) -> tuple[jax.Array, mha.Out]:
    """The layer's output [B, T, D] for h [B, T, D], and the cache entries, {} when training.

    scale multiplies q.k; eps is that of the latents' norms.
    """
    q = h
    if "q_latent" in w:
        q = norm.rms_norm(linear.biased("BTD,DR->BTR", h, w, "q_latent"), w["q_latent_norm"], eps)
    q = linear.biased("BTD,DNH->BTNH", q, w, "q")  # [B, T, N, H_n + H_r]
    nope = w["k"].shape[-1]
    q, q_turned = q[..., :nope], q[..., nope:]
    q_turned = rope.apply(q_turned, at.positions, rotary, interleaved)  # [B, T, N, H_r]
    latent = norm.rms_norm(linear.biased("BTD,DR->BTR", h, w, "latent"), w["latent_norm"], eps)
    turned = linear.biased("BTD,DH->BTH", h, w, "rope")[:, :, None]  # [B, T, 1, H_r]
    turned = rope.apply(turned, at.positions, rotary, interleaved)

    entries = {}
    if memory is not None:
        joined = jnp.concatenate([latent, turned[:, :, 0]], -1)  # [B, T, R + H_r]
        entries = quantised_cache.append(memory.entries, {"latent": joined})
        joined = quantised_cache.read(entries, "latent", joined)
        latent, turned = joined[..., : latent.shape[-1]], joined[:, :, None, latent.shape[-1] :]
    if memory is None or not memory.at.segments.shape[1]:
        y = _expanded(w, q, q_turned, latent, turned, at, plan, scale)
    else:
        y = _absorbed(w, q, q_turned, joined, at, memory, scale)
    return linear.biased("BTNH,NHD->BTD", y, w, "o"), entries


def _expanded(
    w: param.Tree,
    q: jax.Array,
    q_turned: jax.Array,
    latent: jax.Array,
    turned: jax.Array,
    at: At,
    plan: Plan,
    scale: float,
) -> jax.Array:
    """Attention with every head's keys and values computed from the latents; [B, T, N, H_v]."""
    heads_inside = {name: jnp.swapaxes(w[name], 0, 1) for name in ("k", "v")}  # [R, N, H]
    # [B, T, N, H_n], [B, T, N, H_v]
    k, v = (linear.biased("BTR,RNH->BTNH", latent, heads_inside, name) for name in ("k", "v"))
    turned = jnp.broadcast_to(turned, (*k.shape[:3], turned.shape[-1]))  # [B, T, N, H_r]
    q, k = jnp.concatenate([q, q_turned], -1), jnp.concatenate([k, turned], -1)
    return mha.attend(q, k, v, at, None, plan, scale=scale)[0]


def _absorbed(
    w: param.Tree,
    q: jax.Array,
    q_turned: jax.Array,
    new: jax.Array,
    at: At,
    memory: mha.Slots,
    scale: float,
) -> jax.Array:
    """The same without a key or a value of any head: queries go down to the latents, and what they
    take there comes up as values [B, T, N, H_v]. new [B, T, R + H_r]: the entries of q's tokens."""
    q = jnp.einsum("BTNH,NRH->BTNR", q, w["k"].astype(q.dtype))  # [B, T, N, R]
    q = jnp.concatenate([q, q_turned], -1)  # [B, T, N, R + H_r]
    # [B, 1, S, R + H_r]
    cache = jax.tree.map(lambda x: x[:, None], quantised_cache.held(memory.entries, "latent"))
    new = new[:, :, None]  # [B, T, 1, R + H_r]
    # The rotary part is weighted along with the values and left out after: to leave it out before
    # would copy the cache.
    y = ops_attention.attend_cached(
        q, new, new, at, cache, cache, memory.at, first=memory.first, scale=scale
    )
    return jnp.einsum("BTNR,NRH->BTNH", y[..., : w["v"].shape[1]], w["v"].astype(y.dtype))


def cache(batch: int, slots: int, rank: int, rotary: int) -> dict[str, param.Param]:
    """The cache spec of one layer: latents and rotary keys side by side, [B, S, R + H_r]."""
    p = param.shaper(batch=batch, seq=slots, rank=rank + rotary)
    return {"latent": p("batch seq rank", init=param.zeros)}


def layer(
    kind: str, heads: int, rank: int, nope: int, rotary: int, value: int, active: int = 1
) -> stack.Layer:
    """The Layer, its attention in the expanded form: a key's and a value's elements."""
    entries = functools.partial(cache, rank=rank, rotary=rotary)
    return stack.Layer(kind, 2 * heads * (nope + rotary + value), entries, active=active)
