"""DeepSeek's layers in float64, one query, one head and one token at a time, from the papers."""

import math

import jax
import numpy as np


def rms(x, scale, eps=1e-6):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale


def turned(x, positions, freqs, interleaved):
    """Pairs of x [B, T, N, H] as complex numbers, turned by exp(i position frequency); their
    elements in any order: only products of two such vectors are used."""
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else np.split(x, 2, -1)
    z = (a + 1j * b) * np.exp(1j * positions[:, :, None, None] * freqs)
    return np.concatenate([z.real, z.imag], -1)


def attention(w, h, segments, positions, freqs, *, interleaved, scale, stretch=1.0):
    """DeepSeek-V2, equations 37 to 47. stretch: what YaRN multiplies turned vectors by."""
    nope = w["k"].shape[2]
    q = rms(h @ w["q_latent"], w["q_latent_norm"]) if "q_latent" in w else h
    q = np.tensordot(q, w["q"], 1)
    latent = rms(h @ w["latent"], w["latent_norm"])
    k, v = (np.stack([latent @ one for one in w[name]], 2) for name in ("k", "v"))
    q_turned = turned(q[..., nope:], positions, freqs, interleaved)
    k_turned = turned((h @ w["rope"])[:, :, None], positions, freqs, interleaved)[:, :, 0]
    q_turned, k_turned = stretch * q_turned, stretch * k_turned
    out = np.zeros(v.shape)
    for b, t, n in np.ndindex(out.shape[:3]):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t] != 0]
        score = [
            scale * (q[b, t, n, :nope] @ k[b, s, n] + q_turned[b, t, n] @ k_turned[b, s])
            for s in seen
        ]
        mass = np.exp(score)
        out[b, t, n] = sum(m * v[b, s, n] for m, s in zip(mass, seen)) / max(sum(mass), 1e-9)
    return np.tensordot(out, w["o"], 2)


def swiglu(h, gate, up, down):
    a = h @ gate
    return (a / (1 + np.exp(-a)) * (h @ up)) @ down


def experts(w, h, cfg):
    """A token's h [D] through the routed and the shared experts: V3, equations 12 to 16; V2, 20 to
    22 and section 2.2.2."""
    score = h @ w["router"]
    score = np.exp(score) if cfg.score == "softmax" else 1 / (1 + np.exp(-score))
    score = score / score.sum() if cfg.score == "softmax" else score
    ranked = score + w.get("select_bias", 0)
    groups = ranked.reshape(cfg.groups, -1)
    best = np.sort(groups, 1)[:, -cfg.group_best :].sum(1).argsort()[-cfg.groups_chosen :]
    open_to = [e for e in range(cfg.experts) if e // groups.shape[1] in best]
    chosen = sorted(open_to, key=lambda e: -ranked[e])[: cfg.active]
    gates = {e: score[e] for e in chosen}
    if cfg.renormalise:
        gates = {e: g / sum(gates.values()) for e, g in gates.items()}
    routed = sum(g * swiglu(h, w["gate"][e], w["up"][e], w["down"][e]) for e, g in gates.items())
    return cfg.routed_scale * routed + swiglu(h, *(w["shared"][n] for n in ("gate", "up", "down")))


def layer(w, x, cfg, freqs):
    """One block on whole documents x [B, T, D]."""
    whole = np.ones(x.shape[:2], int), np.tile(np.arange(x.shape[1]), (x.shape[0], 1))
    scale, stretch = (cfg.nope + cfg.rotary) ** -0.5, 1.0
    if cfg.scaling is not None:  # YaRN: of the released code
        one, all_ = (
            0.1 * m * math.log(cfg.scaling.factor) + 1
            for m in (cfg.scaling.mscale, cfg.scaling.mscale_all)
        )
        scale, stretch = scale * all_**2, one / all_
    x = x + attention(
        w["attn"], rms(x, w["attn_norm"]), *whole, freqs, interleaved=cfg.interleaved,
        scale=scale, stretch=stretch,
    )  # fmt: skip
    h = rms(x, w["ffn_norm"])
    if "ffn" in w:
        return x + swiglu(h, *(w["ffn"][n] for n in ("gate", "up", "down")))
    return x + np.stack([[experts(w["moe"], token, cfg) for token in row] for row in h])


def model(w, tokens, cfg, freqs):
    """[x [T, D] after the last norm, then for each token further ahead: V3, equations 21 to 23] of
    one document int[T]; depth k has the T - k tokens that have a k-th after them."""
    w = jax.tree.map(np.float64, w)
    table, x = w["embed"]["table"], w["embed"]["table"][tokens][None]
    for name in sorted(w["stack"]):
        (one,) = w["stack"][name].values()
        for i in range(len(one["attn_norm"])):
            x = layer(jax.tree.map(lambda a, i=i: a[i], one), x, cfg, freqs)
    hidden = [rms(x, w["norm"])]
    for k in range(1, cfg.ahead + 1):
        if len(tokens) == k:
            break
        (one,) = w["ahead"]["0"].values()
        one = jax.tree.map(lambda a, k=k: a[k - 1], one)
        e = rms(table[tokens[k:]][None], one["token_norm"])
        h = rms(hidden[-1][:, :-1], one["hidden_norm"])
        x = np.concatenate([e, h], -1) @ one["join"].reshape(-1, cfg.embed)
        hidden.append(rms(layer(one["layer"], x, cfg, freqs), one["norm"]))
    return [x[0] for x in hidden]
