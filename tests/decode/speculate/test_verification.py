"""Verification alone: which drafts stay, and that the tokens are those of plain draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.decode.speculate import verification
from jaxlm.ops import sampling
from tests.decode.test_sampler_laws import surprise

V, L, N, PLACE = 5, 3, 20_000, 7
RANDOM = np.random.default_rng(3)
# the law after a token at each place: target and draft
P, Q = (RANDOM.normal(0, s, (L + 1, V, V)).astype(np.float32) for s in (1.3, 1.0))
START = 2


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=3)
def drawn(p, q, offered, n=N):
    """Drafts of L tokens from q, each after the last, and what p makes of them."""
    keys, greedy = jax.vmap(jax.random.key)(jnp.arange(n, dtype=jnp.uint32)), jnp.zeros(n, bool)
    token = jnp.full(n, START)
    logits, drafts = [p[0][token]], []
    for i in range(L):
        token = sampling.sample(q[i][token], keys, jnp.full(n, PLACE + i), greedy)
        drafts.append(token)
        logits.append(p[i + 1][token])
    drafts, place = jnp.stack(drafts, axis=1), jnp.full(n, PLACE)
    args = (jnp.stack(logits, axis=1), drafts, jnp.full(n, offered), keys, place, greedy)
    return drafts, *verification.verify(*args)


def run(p=P, q=Q, offered=L):
    return tuple(map(np.asarray, drawn(p, q, offered)))


def together(p, q):
    """The probability that two Gumbel-max draws by one noise are equal: token i wins both where no
    j has g_j - g_i above both log ratios."""
    p, q = (np.asarray(x, np.float64) for x in (p, q))
    return sum(1 / np.maximum(p / p[i], q / q[i]).sum() for i in range(len(p)) if p[i] * q[i] > 0)


def test_tokens_follow_the_law_and_drafts_stay_as_often_as_one_noise_allows():
    drafts, tokens, accepted = run()
    p, q = softmax(P), softmax(Q)
    before = np.full(N, START)
    for i in range(L + 1):
        here = accepted >= i
        for t in range(V):
            rows = here & (before == t)
            if not rows.any():  # before the first draft there is one token alone
                continue
            # all tokens at this place, however they came about, follow the target's law
            assert surprise(dict(enumerate(p[i, t])), tokens[rows, i]) > 1e-5
            if i == L:
                continue
            stays, distance = together(p[i, t], q[i, t]), np.abs(p[i, t] - q[i, t]).sum() / 2
            assert (1 - distance) / (1 + distance) <= stays <= 1 - distance + 1e-12
            kept = (accepted[rows] > i).astype(int)
            assert surprise({0: 1 - stays, 1: stays}, kept) > 1e-5
            if t == START and i == 0:  # which noises of their own would be found to miss
                alone = (p[i, t] * q[i, t]).sum()
                assert surprise({0: 1 - alone, 1: alone}, kept) < 1e-9
        before = tokens[:, i]


def test_tokens_are_plain_draws_whatever_is_drafted():
    """Of the same logits: the noise belongs to the row and the place alone."""
    n = 512
    keys = jax.vmap(jax.random.key)(jnp.arange(n, dtype=jnp.uint32))
    x = jnp.asarray(RANDOM.normal(size=(n, L + 1, V)), jnp.float32)
    first, greedy = jnp.arange(n) % 9, jnp.arange(n) % 4 == 0
    want = np.stack([sampling.sample(x[:, i], keys, first + i, greedy) for i in range(L + 1)], 1)
    verify = jax.jit(verification.verify)
    for seed in range(2):
        random = np.random.default_rng(seed)
        drafts, offered = random.integers(0, V, (n, L)), random.integers(0, L + 1, n)
        drafts = np.where(random.random((n, L)) < 0.7, want[:, :L], drafts)
        tokens, accepted = verify(x, jnp.asarray(drafts), jnp.asarray(offered), keys, first, greedy)
        np.testing.assert_array_equal(tokens, want)
        equal = np.cumprod((drafts == want[:, :L]) & (np.arange(L) < offered[:, None]), axis=1)
        np.testing.assert_array_equal(accepted, equal.sum(axis=1))
    np.testing.assert_array_equal(want[greedy], np.argmax(x, axis=-1)[greedy])


def test_equal_laws_accept_all_and_disjoint_ones_none():
    drafts, tokens, accepted = run(q=P[:L])
    assert (accepted == L).all() and (tokens[:, :L] == drafts).all()
    even = np.where(np.arange(V) % 2, -np.inf, P).astype(np.float32)
    odd = np.where(np.arange(V) % 2, Q, -np.inf).astype(np.float32)
    drafts, tokens, accepted = run(even, odd)
    assert (accepted == 0).all() and (drafts % 2 == 1).all() and (tokens[:, 0] % 2 == 0).all()


def test_fewer_are_offered_than_drafted():
    _, tokens, accepted = run(q=P[:L], offered=1)
    assert (accepted == 1).all()
    later = {t: tokens[tokens[:, 0] == t, 1] for t in range(V)}
    assert all(surprise(dict(enumerate(softmax(P)[1, t])), x) > 1e-5 for t, x in later.items())


def test_a_certain_draft_stays_with_its_probability():
    certain = np.where(np.arange(V) == 3, 0, -np.inf) + np.zeros_like(Q)
    drafts, _, accepted = run(q=certain.astype(np.float32))
    stays = softmax(P)[0, START, 3]
    assert (drafts == 3).all()
    assert surprise({0: 1 - stays, 1: stays}, (accepted > 0).astype(int)) > 1e-5
