"""Attention and its gradients in float64 by NumPy: who sees whom is decided pair by pair."""

import math

import numpy as np

B, T, N, H = 2, 150, 4, 8  # T spans three blocks of the blockwise kernel


def places():
    """Row 0: documents 3, 1, 2 with padding before, between and after them. Row 1: one document."""
    segments = np.full((B, T), 7, np.int32)
    segments[0] = np.repeat([0, 3, 0, 1, 2, 0], [5, 40, 4, 61, 30, 10])
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    positions[0] = np.concatenate([np.arange(n) for n in (5, 40, 4, 61, 30, 10)])
    return segments, positions


def arrays(seed=0, kv=2, head_v=H, keys=T):
    """q, k, v, the cotangent g, sinks, and a table of 8 buckets."""
    rng = np.random.default_rng(seed)
    shapes = {
        "q": (B, T, N, H),
        "k": (B, keys, kv, H),
        "v": (B, keys, kv, head_v),
        "g": (B, T, N, head_v),
        "sinks": (N,),
        "table": (8, N),
    }
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def shared(kind, segments, positions):
    """The first 9 tokens of each document (prefix), or every 13th token (global)."""
    if kind is None:
        return None
    chosen = positions < 9 if kind == "prefix" else positions % 13 == 4
    return chosen & (segments != 0)


def bucket(ahead, causal):
    """T5's bucket among 8 up to a distance of 20, one distance at a time."""
    own = 8 if causal else 4
    first = 4 if not causal and ahead > 0 else 0
    far = max(-ahead, 0) if causal else abs(ahead)
    exact = own // 2
    if far < exact:
        return first + far
    steps = math.log(far / exact) / math.log(20 / exact) * (own - exact)
    return first + min(exact + int(steps), own - 1)


def slope(head):
    """ALiBi's slope of one of 4 heads: 1/4, 1/16, 1/64, 1/256."""
    return 0.25 ** (head + 1)


def sees(q_at, k_at, b, t, s, causal, window):
    """Whether query t of row b sees key s; at: (segments, positions, shared or None)."""
    (q_segments, q_positions, q_shared), (k_segments, k_positions, k_shared) = q_at, k_at
    if q_segments[b, t] == 0 or q_segments[b, t] != k_segments[b, s]:
        return False
    if k_shared is not None and k_shared[b, s]:
        return True
    if q_shared is not None and q_shared[b, t] and not causal:
        return True
    ahead = int(k_positions[b, s]) - int(q_positions[b, t])
    if causal and ahead > 0:
        return False
    return window is None or abs(ahead) < window


def attention(
    x, q_at, k_at, causal=True, window=None, softcap=None, scale=None, bias=None, sinks=False
):
    """{"out", "q", "k", "v", "sinks", "table"}: output, and gradients of sum(output * g).

    x as `arrays` gives it; bias None, "alibi" or "t5"; sinks whether they take part.
    """
    x = {name: np.asarray(a, np.float64) for name, a in x.items()}
    rows, length, heads, head = x["q"].shape
    keys, kv = x["k"].shape[1:3]
    scale = 1 / math.sqrt(head) if scale is None else scale
    d = {name: np.zeros_like(x[name]) for name in ("q", "k", "v", "sinks", "table")}
    d["out"] = np.zeros_like(x["g"])
    for b in range(rows):
        grid = [(t, s) for t in range(length) for s in range(keys)]
        seen = np.array([sees(q_at, k_at, b, t, s, causal, window) for t, s in grid])
        seen = seen.reshape(length, keys)
        ahead = k_at[1][b][None, :].astype(int) - q_at[1][b][:, None]
        which = np.vectorize(bucket)(ahead, causal) if bias == "t5" else None
        for n in range(heads):
            j = n // (heads // kv)
            q, k, v, g = x["q"][b, :, n], x["k"][b, :, j], x["v"][b, :, j], x["g"][b, :, n]
            z = q @ k.T * scale
            bent = z if softcap is None else softcap * np.tanh(z / softcap)
            s = bent
            if bias is not None:
                s = bent + (-slope(n) * abs(ahead) if which is None else x["table"][which, n])
            s = np.where(seen, s, -np.inf)
            sink = x["sinks"][n] if sinks else -np.inf
            some = seen.any(axis=1, keepdims=True)
            top = np.maximum(np.where(some, s.max(axis=1, keepdims=True), -1e30), sink)
            top = np.where(np.isfinite(top), top, 0)
            mass = np.exp(s - top)
            total = mass.sum(axis=1, keepdims=True) + np.exp(sink - top)
            p = np.where(some, mass / np.where(total == 0, 1, total), 0)
            d["out"][b, :, n] = p @ v
            dp = g @ v.T
            inner = (p * dp).sum(axis=1, keepdims=True)
            ds = p * (dp - inner)
            if sinks:
                d["sinks"][n] -= (np.where(some, np.exp(sink - top) / total, 0) * inner).sum()
            if which is not None:
                np.add.at(d["table"][:, n], which, ds)
            dz = scale * (ds if softcap is None else ds * (1 - (bent / softcap) ** 2))
            d["q"][b, :, n] = dz @ k
            d["k"][b, :, j] += dz.T @ q
            d["v"][b, :, j] += p.T @ g
    return d
