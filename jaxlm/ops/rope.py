"""Rotary position embedding (Su et al. 2021) and the ways to stretch it to longer contexts.

    rotary = frequencies(128, 1e4, Yarn(factor=4.0, original=4096))
    q, k = apply(q, positions, rotary), apply(k, positions, rotary)

A Scaling is part of a model's Config and fixed when the model is built. Two of them, Dynamic and
LongRope, have other angles for other lengths: they are decided once, by the config's `context`, so
that padding, packing and caching change nothing, and texts longer than that are refused (`limit`).
transformers decides them anew at every call, by its longest position: a call agrees with ours when
its length equals `context`, or when neither exceeds the original context; what it decodes across
the boundary, with keys rotated by old angles, is not reproduced.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import check, precision


class Rotary(NamedTuple):
    """freqs float32[R/2]: the angle of each pair per position. attention: the factor on
    rotated vectors, so that scores are multiplied by its square."""

    freqs: np.ndarray
    attention: float


@dataclasses.dataclass(frozen=True)
class Linear:
    """Position interpolation: every angle divided by factor. Chen et al. 2023, eq. 4."""

    factor: float
    """Factor by which the context grows."""

    def __post_init__(self) -> None:
        check.within("", self, "factor", least=1)


@dataclasses.dataclass(frozen=True)
class Ntk:
    """NTK-aware interpolation: theta multiplied by factor ** (R / (R - 2)), so that the slowest
    pair is interpolated by factor and the fastest not at all. bloc97 2023; Peng et al. 2023, eq.
    16."""

    factor: float
    """Factor by which the slowest pair is slowed."""

    def __post_init__(self) -> None:
        check.within("", self, "factor", least=1)


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Ntk with a factor that follows the length: factor * context / original - (factor - 1), and
    1 up to the original context. emozilla 2023; Peng et al. 2023, section 3.3. See the module's
    docstring for what decides the length."""

    factor: float
    """Growth of Ntk's factor with the length."""
    original: int
    """Context the model was trained at."""

    def __post_init__(self) -> None:
        check.within("", self, "factor", "original", least=1)


@dataclasses.dataclass(frozen=True)
class Llama3:
    """LLaMA 3.1: pairs that rotate at least `high` times in the original context stay, those
    that rotate at most `low` times are slowed by factor, and between the two it is blended linearly
    in the number of turns. Grattafiori et al. 2024, section 3.4.1, and its released code."""

    factor: float = 8.0
    """Factor by which the context grows."""
    low: float = 1.0
    """Turns in the original context up to which a pair is slowed in full."""
    high: float = 4.0
    """Turns in the original context from which on a pair is left alone."""
    original: int = 8192
    """Context the model was trained at."""

    def __post_init__(self) -> None:
        check.within("", self, "factor", "original", least=1)
        check.within("", self, "low", least=0)
        check.field("high", self.high, self.high > self.low, f"above low={self.low}")


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN: pairs that rotate `beta_fast` times or more in the original context stay, those that
    rotate at most `beta_slow` times are slowed by factor, between the two it is blended linearly in
    the index of the pair; and scores are sharpened. Peng et al. 2023, eqs. 17 to 22."""

    factor: float
    """Factor by which the context grows."""
    original: int
    """Context the model was trained at."""
    beta_fast: float = 32.0
    """Turns in the original context from which on a pair is left alone."""
    beta_slow: float = 1.0
    """Turns in the original context up to which a pair is slowed in full."""
    attention: float | None = None
    """Factor on queries and keys; None computes the paper's from the next two fields."""
    mscale: float | None = None
    """With mscale_all: queries and keys are multiplied by
    sharpness(factor, mscale) / sharpness(factor, mscale_all), not by sharpness(factor).
    DeepSeek-AI 2024 (V2), which sharpens the rest in its softmax scale."""
    mscale_all: float | None = None
    """See mscale."""
    truncate: bool = True
    """Whether the ends of the blend are rounded outwards to whole pairs."""

    def __post_init__(self) -> None:
        check.within("", self, "factor", "original", least=1)
        check.within("", self, "beta_slow", "attention", least=0)
        ok, fits = self.beta_fast > self.beta_slow, f"above beta_slow={self.beta_slow}"
        check.field("beta_fast", self.beta_fast, ok, fits)


@dataclasses.dataclass(frozen=True)
class LongRope:
    """LongRoPE: each pair slowed by its own factor, found by search; one set up to the original
    context, one beyond it; and scores are sharpened. Ding et al. 2024. See the module's docstring
    for what decides the set."""

    short: tuple[float, ...]
    """Factor of each pair where the context is at most the original."""
    long: tuple[float, ...]
    """Factor of each pair where it is longer."""
    original: int
    """Context the model was trained at."""
    factor: float
    """Factor by which the context grows; it decides the sharpening alone."""
    attention: float | None = None
    """Factor on queries and keys; None takes sqrt(1 + log(factor) / log(original))."""

    def __post_init__(self) -> None:
        check.within("", self, "factor", least=1)
        check.within("", self, "original", least=2)
        check.within("", self, "attention", least=0)
        for name, values in (("short", self.short), ("long", self.long)):
            check.field(name, values, all(value > 0 for value in values), "positive factors")
        if len(self.short) != len(self.long):
            raise ValueError(
                f"long: {len(self.long)} factors given, and short has {len(self.short)}; each "
                "needs one for each pair"
            )


Scaling = Linear | Ntk | Dynamic | Llama3 | Yarn | LongRope


def limit(scaling: Scaling | None, context: int) -> int | None:
    """The longest text that a model with this context reads as it should: longer ones have other
    angles under Dynamic and LongRope; None for all other scalings, which have no limit."""
    return context if isinstance(scaling, Dynamic | LongRope) else None


def frequencies(
    rotary_dim: int, theta: float, scaling: Scaling | None = None, context: int | None = None
) -> Rotary:
    """The Rotary of R = rotary_dim rotated dimensions: theta ** (-2i/R) for the i-th pair, scaled.

    context: the length the model is run at, which Dynamic and LongRope need.

    Raises: ValueError if rotary_dim is odd or not positive, theta is not positive, the scaling
    needs a context, or LongRope's factors are not R/2.
    """
    if rotary_dim % 2 or rotary_dim < 2:
        raise ValueError(f"rotary_dim: {rotary_dim} given; it must be even and at least 2")
    if theta <= 0:
        raise ValueError(f"theta must be positive, got {theta}")
    # float64 on the host, rounded once: every backend then sees the same 32-bit angles
    freqs, attention = _scaled(rotary_dim, theta, scaling, context)
    return Rotary(freqs.astype(np.float32), attention)


def _scaled(
    dim: int, theta: float, scaling: Scaling | None, context: int | None
) -> tuple[np.ndarray, float]:
    plain = _plain(dim, theta)
    match scaling:
        case None:
            return plain, 1.0
        case Linear(factor):
            return plain / factor, 1.0
        case Ntk(factor):
            return _plain(dim, stretched(dim, theta, factor)), 1.0
        case Dynamic(factor, original):
            length = max(_known(scaling, context), original)
            ratio = factor * length / original - (factor - 1)
            return _plain(dim, stretched(dim, theta, ratio)), 1.0
        case Llama3():
            return _llama3(plain, scaling), 1.0
        case Yarn():
            return _yarn(plain, theta, scaling), _yarn_attention(scaling)
        case LongRope():
            return _longrope(plain, scaling, _known(scaling, context))


def _plain(dim: int, theta: float) -> np.ndarray:
    return theta ** (-np.arange(0, dim, 2) / dim)


def stretched(dim: int, theta: float, factor: float) -> float:
    """The base of dim dimensions under Ntk(factor): theta * factor ** (dim / (dim - 2)).

    Raises: ValueError for fewer than 4 dimensions: the fastest pair is the slowest one.
    """
    if dim < 4:
        raise ValueError(f"rotary_dim: {dim} given; NTK-aware scaling needs 4 or more")
    return theta * factor ** (dim / (dim - 2))


def _llama3(plain: np.ndarray, scaling: Llama3) -> np.ndarray:
    turns = scaling.original * plain / (2 * np.pi)
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def _yarn(plain: np.ndarray, theta: float, scaling: Yarn) -> np.ndarray:
    dim = 2 * len(plain)

    def pair(turns: float) -> float:
        """The (fractional) index of the pair with this many turns in the original context."""
        return dim * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    last = last + 0.001 if first == last else last
    kept = 1 - np.clip((np.arange(dim // 2) - first) / (last - first), 0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def _yarn_attention(scaling: Yarn) -> float:
    if scaling.attention is not None:
        return scaling.attention
    if scaling.mscale and scaling.mscale_all:
        return sharpness(scaling.factor, scaling.mscale) / sharpness(
            scaling.factor, scaling.mscale_all
        )
    return sharpness(scaling.factor)


def sharpness(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln(factor) + 1: the square root of what YaRN multiplies scores by. Peng et al.
    2023, eq. 22. DeepSeek V2 and V3 put sharpness(factor, mscale_all) ** 2 on the softmax scale."""
    return 0.1 * mscale * math.log(factor) + 1.0


def _longrope(plain: np.ndarray, scaling: LongRope, context: int) -> tuple[np.ndarray, float]:
    slower = scaling.long if context > scaling.original else scaling.short
    if len(slower) != len(plain):
        raise ValueError(
            f"short and long: {len(slower)} factors given; {len(plain)} pairs of dimensions turn"
        )
    attention = scaling.attention
    if attention is None:
        attention = math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original))
    return plain / np.array(slower, np.float64), attention


def _known(scaling: Scaling, context: int | None) -> int:
    if context is None:
        raise ValueError(f"context: none given; {type(scaling).__name__} is decided by it")
    return context


def apply(
    x: jax.Array, positions: jax.Array, rotary: Rotary, interleaved: bool = False
) -> jax.Array:
    """Rotates each pair of x by positions * freqs, [B,T,N,H] in x.dtype.

    x [B,T,N,H]; positions int32[B,T]. The first R = 2 * len(freqs) dimensions of a head rotate,
    the rest passes through (partial rotary, Black et al. 2022). Pair i is (i, i + R/2), as in LLaMA
    checkpoints; interleaved, it is (2i, 2i + 1), as in Su et al. 2021, GPT-J, Cohere and DeepSeek.
    The rotation is done in float32. The dot product of two rotated vectors depends on the
    difference of their positions alone.

    Raises: ValueError if a head is smaller than R.
    """
    turned = 2 * len(rotary.freqs)
    if x.shape[-1] < turned:
        raise ValueError(
            f"x: heads of {x.shape[-1]} given; RoPE rotates {turned} dimensions of each"
        )
    angle = positions[:, :, None, None].astype(precision.wide()) * rotary.freqs  # [B,T,1,R/2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if rotary.attention != 1.0:
        cos, sin = cos * rotary.attention, sin * rotary.attention
    head = x[..., :turned].astype(precision.wide())  # [B,T,N,R]
    if interleaved:
        a, b = head[..., ::2], head[..., 1::2]  # [B,T,N,R/2]
        y = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(head.shape)
    else:
        a, b = jnp.split(head, 2, axis=-1)  # [B,T,N,R/2]
        y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)  # [B,T,N,R]
    y = y.astype(x.dtype)
    return y if x.shape[-1] == turned else jnp.concatenate([y, x[..., turned:]], axis=-1)
