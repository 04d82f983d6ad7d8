"""Losses of preferences: float32, elementwise over pairs of responses, on their log-probabilities.

h, here and in papers, is how much further the policy has moved towards the chosen response than
towards the rejected one, since the reference:

    h = (log_prob - reference of the chosen) - (log_prob - reference of the rejected)

Log-probabilities are summed over a response's tokens, its end among them; where a loss divides them
by the number of tokens, it says so. beta scales how far the policy may move: it is the strength of
the KL term of the reinforcement learning problem that DPO solves. The keyword arguments of a
function are the settings it reads.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

log_sigmoid = jax.nn.log_sigmoid

# Divergences of policy and reference; reinforcement learning and plain DPO have the reverse KL.
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

# The largest exponent taken: the square of exp(40) = 2e17 is still a float32.
LARGEST = 40.0


class Response(NamedTuple):
    """Responses, float32[...] each: log_prob under the policy and under the reference, summed over
    tokens; tokens: how many; nll: nats per token, for losses that add them."""

    log_prob: jax.Array
    reference: jax.Array
    tokens: jax.Array
    nll: jax.Array


def ratio(response: Response) -> jax.Array:
    """log(policy / reference), float32[...]. The implicit reward is beta times this."""
    return response.log_prob - response.reference


def slope(log_ratio: jax.Array, divergence: Divergence, alpha: float) -> jax.Array:
    """f'(policy / reference) of an f-divergence, float32[...], up to a constant. Wang et al. 2023
    (f-DPO), table 1; TRL's signs and constants. alpha is read by "alpha" alone, which at 1 is the
    reverse KL."""
    if divergence == "forward_kl":
        return -jnp.expm1(jnp.minimum(-log_ratio, LARGEST))
    if divergence == "js":
        return math.log(2) + log_sigmoid(log_ratio)
    if divergence == "alpha" and alpha != 1:
        return jnp.expm1(jnp.minimum((alpha - 1) * log_ratio, LARGEST)) / (alpha - 1)
    return log_ratio


def margin(chosen: Response, rejected: Response, divergence: Divergence, alpha: float) -> jax.Array:
    """h, float32[...], with a divergence's slopes in the place of log-ratios."""
    slopes = (slope(ratio(r), divergence, alpha) for r in (chosen, rejected))
    return next(slopes) - next(slopes)


def mean_margin(
    chosen: Response, rejected: Response, divergence: Divergence, alpha: float
) -> jax.Array:
    """h of averages: each response's part is divided by its number of tokens."""
    slopes = (slope(ratio(r), divergence, alpha) / r.tokens for r in (chosen, rejected))
    return next(slopes) - next(slopes)


# --- One pair alone --------------------------------------------------------------------------


def dpo(
    chosen: Response, rejected: Response, *, beta: float, divergence: Divergence, alpha: float
) -> jax.Array:
    """-log sigmoid(beta h). Rafailov et al. 2023, eq. 7. log 2 at the reference. TRL: sigmoid."""
    return -log_sigmoid(beta * margin(chosen, rejected, divergence, alpha))


def dpo_mean(
    chosen: Response, rejected: Response, *, beta: float, divergence: Divergence, alpha: float
) -> jax.Array:
    """DPO of averages over tokens. Lambert et al. 2024 (Tulu 3), section 5. TRL: sigmoid_norm."""
    return -log_sigmoid(beta * mean_margin(chosen, rejected, divergence, alpha))


def cdpo(
    chosen: Response,
    rejected: Response,
    *,
    beta: float,
    smoothing: float,
    divergence: Divergence,
    alpha: float,
) -> jax.Array:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h): labels are wrong with probability
    e = smoothing. Mitchell 2023, "A note on DPO with noisy preferences"."""
    z = beta * margin(chosen, rejected, divergence, alpha)
    return -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)


def robust(
    chosen: Response,
    rejected: Response,
    *,
    beta: float,
    smoothing: float,
    divergence: Divergence,
    alpha: float,
) -> jax.Array:
    """(-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2e): its mean over labels that
    are wrong with probability e is DPO's over right ones. Chowdhury et al. 2024, eq. 12."""
    z = beta * margin(chosen, rejected, divergence, alpha)
    return (-(1 - smoothing) * log_sigmoid(z) + smoothing * log_sigmoid(-z)) / (1 - 2 * smoothing)


def hinge(
    chosen: Response, rejected: Response, *, beta: float, divergence: Divergence, alpha: float
) -> jax.Array:
    """max(0, 1 - beta h). Zhao et al. 2023 (SLiC-HF), with log-ratios as in Liu et al. 2024
    (RSO)."""
    return jax.nn.relu(1 - beta * margin(chosen, rejected, divergence, alpha))


def ipo_sum(
    chosen: Response, rejected: Response, *, beta: float, divergence: Divergence, alpha: float
) -> jax.Array:
    """(h - 1 / (2 beta))^2, h of sums. Azar et al. 2023, eq. 17, with beta for tau, as in DPO's own
    repository."""
    return (margin(chosen, rejected, divergence, alpha) - 1 / (2 * beta)) ** 2


def ipo_mean(
    chosen: Response, rejected: Response, *, beta: float, divergence: Divergence, alpha: float
) -> jax.Array:
    """(h - 1 / (2 beta))^2, h of averages over tokens, as TRL has it, whose authors confirmed it
    with the paper's."""
    return (mean_margin(chosen, rejected, divergence, alpha) - 1 / (2 * beta)) ** 2


def exo(
    chosen: Response,
    rejected: Response,
    *,
    beta: float,
    smoothing: float,
    divergence: Divergence,
    alpha: float,
) -> jax.Array:
    """KL(q || p) of q = softmax(beta log-ratios) over the two, p = (1 - smoothing, smoothing). Ji
    et al. 2024 (EXO), eq. 16. TRL: exo_pair."""
    z = beta * margin(chosen, rejected, divergence, alpha)
    first = jax.nn.sigmoid(z) * (log_sigmoid(z) - math.log1p(-smoothing))
    return first + jax.nn.sigmoid(-z) * (log_sigmoid(-z) - math.log(smoothing))


def discopop(
    chosen: Response,
    rejected: Response,
    *,
    beta: float,
    tau: float,
    divergence: Divergence,
    alpha: float,
) -> jax.Array:
    """(1 - m) * DPO + m * exp(-beta h), m = sigmoid(beta h / tau). Lu et al. 2024 (DiscoPOP),
    eq. 5."""
    z = beta * margin(chosen, rejected, divergence, alpha)
    mix = jax.nn.sigmoid(z / tau)
    return -log_sigmoid(z) * (1 - mix) + jnp.exp(jnp.minimum(-z, LARGEST)) * mix


def rpo(
    chosen: Response,
    rejected: Response,
    *,
    beta: float,
    nll: float,
    divergence: Divergence,
    alpha: float,
) -> jax.Array:
    """DPO + nll * the chosen response's nats per token. Pang et al. 2024, eq. 1."""
    return dpo(chosen, rejected, beta=beta, divergence=divergence, alpha=alpha) + nll * chosen.nll


def nca(chosen: Response, rejected: Response, *, beta: float) -> jax.Array:
    """-log sigmoid(r+) - (log sigmoid(-r+) + log sigmoid(-r-)) / 2, r the implicit rewards of both.
    Chen et al. 2024 (NCA), of pairs. TRL: nca_pair."""
    better, worse = beta * ratio(chosen), beta * ratio(rejected)
    return -log_sigmoid(better) - (log_sigmoid(-better) + log_sigmoid(-worse)) / 2


def bco(chosen: Response, rejected: Response, *, beta: float) -> jax.Array:
    """-log sigmoid(r+) - log sigmoid(-r-). Jung et al. 2024 (BCO), without the shift of rewards
    that their paper tracks over training. TRL: bco_pair."""
    return -log_sigmoid(beta * ratio(chosen)) - log_sigmoid(-beta * ratio(rejected))


def sppo(chosen: Response, rejected: Response, *, beta: float) -> jax.Array:
    """(log-ratio+ - 1 / (2 beta))^2 + (log-ratio- + 1 / (2 beta))^2. Wu et al. 2024 (SPPO), eq. 4.7
    with certain preferences. TRL: sppo_hard."""
    return (ratio(chosen) - 0.5 / beta) ** 2 + (ratio(rejected) + 0.5 / beta) ** 2


def apo_zero(chosen: Response, rejected: Response, *, beta: float) -> jax.Array:
    """1 - sigmoid(r+) + sigmoid(r-): both towards where they should be. D'Oosterlinck et al. 2024
    (APO), eq. 7: for chosen responses that are better than the policy's own."""
    return jax.nn.sigmoid(-beta * ratio(chosen)) + jax.nn.sigmoid(beta * ratio(rejected))


def apo_down(chosen: Response, rejected: Response, *, beta: float) -> jax.Array:
    """sigmoid(r+) + 1 - sigmoid(r+ - r-): both down, the rejected further. D'Oosterlinck et al.
    2024 (APO), eq. 8: for chosen responses that are worse than the policy's own."""
    better, worse = beta * ratio(chosen), beta * ratio(rejected)
    return jax.nn.sigmoid(better) + jax.nn.sigmoid(worse - better)


def cpo(chosen: Response, rejected: Response, *, beta: float, nll: float) -> jax.Array:
    """DPO with a uniform reference, of sums, + nll * the chosen response's nats per token. Xu et
    al. 2024 (CPO), eq. 5. No reference is read."""
    return -log_sigmoid(beta * (chosen.log_prob - rejected.log_prob)) + nll * chosen.nll


def simpo(chosen: Response, rejected: Response, *, beta: float, gamma: float) -> jax.Array:
    """-log sigmoid(beta (mean+ - mean-) - gamma), of log-probabilities averaged over tokens. Meng
    et al. 2024 (SimPO), eq. 6. No reference is read."""
    means = chosen.log_prob / chosen.tokens - rejected.log_prob / rejected.tokens
    return -log_sigmoid(beta * means - gamma)


def orpo(chosen: Response, rejected: Response, *, beta: float, nll: float) -> jax.Array:
    """nll * the chosen response's nats per token - beta log sigmoid(log odds ratio). Hong et al.
    2024 (ORPO), eqs. 6 and 7, whose lambda is beta. No reference is read."""
    return nll * chosen.nll - beta * log_sigmoid(log_odds_ratio(chosen, rejected))


def log_odds_ratio(chosen: Response, rejected: Response) -> jax.Array:
    """log(odds+ / odds-), float32[...], odds = p / (1 - p) of the geometric mean p of a response's
    probabilities. Hong et al. 2024, eqs. 4 and 5."""
    better, worse = (r.log_prob / r.tokens for r in (chosen, rejected))
    return (better - worse) - (_log_of_rest(better) - _log_of_rest(worse))


def _log_of_rest(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x <= 0, without cancellation; x at most -1e-6, so that it is finite."""
    x = jnp.minimum(x, -1e-6)
    near = x > -math.log(2)
    small, large = jnp.where(near, x, -1.0), jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))


# --- A pair among others: batch statistics -----------------------------------------------------


def kto_pair(
    chosen: Response,
    rejected: Response,
    weight: jax.Array,
    *,
    beta: float,
    desirable: float,
    undesirable: float,
) -> jax.Array:
    """KTO of pairs: each response's baseline is the mean log-ratio of the batch's responses of the
    other sort, detached, at least 0. weight [...]: how much a pair counts. As TRL 0.7's kto_pair,
    halved so that a pair weighs as much as here in other losses."""
    total = jnp.maximum(jnp.sum(weight), 1e-9)
    better, worse = (
        jax.lax.stop_gradient(jnp.maximum(jnp.sum(weight * ratio(r)) / total, 0.0))
        for r in (chosen, rejected)
    )
    good = desirable * jax.nn.sigmoid(beta * (worse - ratio(chosen)))
    return (good + undesirable * jax.nn.sigmoid(beta * (ratio(rejected) - better))) / 2


def aot(chosen: Response, rejected: Response, weight: jax.Array, *, beta: float) -> jax.Array:
    """The mean of DPO over sorted margins: the policy's margins, by rank, against the reference's.
    Melnyk et al. 2024 (AOT), paired. All pairs of positive weight count alike, and every element of
    the result is that mean."""
    policy = chosen.log_prob - rejected.log_prob
    return _sorted_dpo(policy, chosen.reference - rejected.reference, weight, beta)


def aot_unpaired(
    chosen: Response, rejected: Response, weight: jax.Array, *, beta: float
) -> jax.Array:
    """The mean of DPO over sorted log-ratios: those of all chosen responses, by rank, against those
    of all rejected ones. Melnyk et al. 2024 (AOT), unpaired; otherwise as `aot`."""
    return _sorted_dpo(ratio(chosen), ratio(rejected), weight, beta)


def _sorted_dpo(high: jax.Array, low: jax.Array, weight: jax.Array, beta: float) -> jax.Array:
    """The mean over ranks of -log sigmoid(beta (high - low)), in the shape of weight; what has no
    weight comes last in both orders."""
    count = jnp.sum(weight > 0)
    first, second = (jnp.sort(jnp.where(weight > 0, x, jnp.inf).reshape(-1)) for x in (high, low))
    counted = jnp.arange(weight.size) < count
    apart = jnp.where(counted, first, 0.0) - jnp.where(counted, second, 0.0)
    total = jnp.sum(jnp.where(counted, -log_sigmoid(beta * apart), 0.0))
    return jnp.broadcast_to(total / jnp.maximum(count, 1), weight.shape)


# --- Single responses ------------------------------------------------------------------------


def kto(
    log_ratio: jax.Array,
    wanted: jax.Array,
    baseline: jax.Array,
    *,
    beta: float,
    desirable: float,
    undesirable: float,
) -> jax.Array:
    """desirable * (1 - sigmoid(beta (log-ratio - baseline))) where wanted [...], undesirable *
    (1 - sigmoid(beta (baseline - log-ratio))) elsewhere. Ethayarajh et al. 2024 (KTO), eqs. 7, 8.

    baseline: an estimate of KL(policy || reference), which must carry no gradient (`kto_baseline`).
    """
    z = beta * (log_ratio - baseline)
    return jnp.where(wanted, desirable * jax.nn.sigmoid(-z), undesirable * jax.nn.sigmoid(z))


def kto_baseline(log_ratio: jax.Array, there: jax.Array) -> jax.Array:
    """max(0, the mean log-ratio of responses that belong to other prompts), a scalar without
    gradient; there [...]: which count. Ethayarajh et al. 2024, section 4.1. A batch statistic."""
    mean = jnp.sum(jnp.where(there, log_ratio, 0.0)) / jnp.maximum(jnp.sum(there), 1)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


# Losses of one pair each.
PAIRS: dict[str, Callable[..., jax.Array]] = {
    f.__name__: f
    for f in (dpo, dpo_mean, cdpo, robust, hinge, ipo_sum, ipo_mean, exo, discopop, rpo, nca, bco,
              sppo, apo_zero, apo_down, cpo, simpo, orpo)
}  # fmt: skip
# Losses of one pair, given all pairs of the batch and their weights.
BATCHES: dict[str, Callable[..., jax.Array]] = {
    f.__name__: f for f in (kto_pair, aot, aot_unpaired)
}
# Those that read no reference.
FREE = ("cpo", "simpo", "orpo")
