"""Divergences of a student from its teacher, against TRL's numbers and closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.losses import divergence as divergence_
from tests import programs
from tests.objectives import published

divergence = programs.Whole(divergence_)
BETAS = (0.0, 0.25, 0.5, 1.0)


def rows(seed, shape=(3, 4, 9)):
    return np.random.default_rng(seed).normal(size=shape) * 2


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def oracle(teacher, student, beta):
    """The generalised JSD as sums over outcomes, in float64; gradient in the student's logits."""
    t, s = np.exp(log_softmax(teacher)), np.exp(log_softmax(student))
    m = beta * t + (1 - beta) * s
    if beta == 0:
        value, slope = (t * np.log(t / s)).sum(-1), -t / s
    elif beta == 1:
        value, slope = (s * np.log(s / t)).sum(-1), np.log(s / t) + 1
    else:
        value = (beta * t * np.log(t / m) + (1 - beta) * s * np.log(s / m)).sum(-1)
        slope = (1 - beta) * np.log(s / m)
    return value, s * (slope - (s * slope).sum(-1, keepdims=True))


@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_are_those_of_the_definition(beta):
    teacher, student = rows(0), rows(1)
    theirs = jnp.float32(log_softmax(teacher))

    def total(x):
        return jnp.sum(divergence.divergence(theirs, divergence.softened(x, 1.0), beta))

    value, slope = jax.jit(jax.value_and_grad(total))(jnp.float32(student))
    want, want_slope = oracle(teacher, student, beta)
    np.testing.assert_allclose(value, want.sum(), rtol=2e-6)
    np.testing.assert_allclose(slope, want_slope, atol=2e-6)
    same = divergence.divergence(theirs, theirs, beta)
    np.testing.assert_allclose(same, 0, atol=2e-7)


@pytest.mark.parametrize("beta", BETAS)
def test_an_outcome_that_a_distribution_excludes_counts_as_nothing(beta):
    """0 log 0 is 0: of the teacher forwards and of the student in reverse, of both in between."""
    sure, half = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    teacher, student = (sure, half) if beta < 1 else (half, sure)
    mixture = beta * teacher + (1 - beta) * student

    def kl(p, q):
        return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a)

    want = {0: kl(teacher, student), 1: kl(student, teacher)}.get(
        beta, beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)
    )
    with np.errstate(divide="ignore"):
        logs = [jnp.log(jnp.float32(p))[None] for p in (teacher, student)]
    np.testing.assert_allclose(divergence.divergence(*logs, beta), [want], rtol=1e-6)


def test_trls_numbers():
    """TRL takes the mean over the tokens with a label."""
    block = published.blocks()["distill_gjsd"]
    given = block["inputs"]
    student, teacher, labels = (np.array(given[n]) for n in ("student", "teacher", "labels"))
    for name, want in block["outputs"].items():  # beta0.25_T2.0
        beta, temperature = (float(part.strip("betaT")) for part in name.split("_"))
        ours = divergence.divergence(
            divergence.softened(jnp.float32(teacher), temperature),
            divergence.softened(jnp.float32(student), temperature),
            beta,
        )
        np.testing.assert_allclose(np.asarray(ours)[labels != -100].mean(), want, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("beta", BETAS)
def test_trls_loss_and_gradient_live(beta):
    """On-policy distillation's loss as TRL computes it, over the tokens with a label."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    from trl.experimental.gkd import GKDTrainer

    draw = np.random.default_rng(7)
    student, teacher = (draw.normal(size=(3, 5, 11)) * 2 for _ in "st")
    labels = np.where(draw.random((3, 5)) < 0.3, -100, 1)
    for temperature in (1.0, 2.0):
        theirs = torch.tensor(student, requires_grad=True)
        given = (theirs, torch.tensor(teacher), torch.tensor(labels), beta, temperature)
        loss = GKDTrainer.generalized_jsd_loss(*given)
        loss.backward()

        def ours(x, temperature=temperature):
            t, s = (divergence.softened(y, temperature) for y in (jnp.asarray(teacher), x))
            return jnp.mean(divergence.divergence(t, s, beta), where=labels != -100)

        value, slope = jax.jit(jax.value_and_grad(ours))(jnp.float32(student))
        np.testing.assert_allclose(value, loss.item(), rtol=2e-6)
        np.testing.assert_allclose(slope, theirs.grad.numpy(), atol=1e-6)


def test_a_teacher_made_coarse_is_exact_with_all_outcomes_and_never_further_with_fewer():
    teacher, student = (jnp.float32(log_softmax(rows(seed))) for seed in (2, 3))
    for beta in BETAS:
        whole = divergence.divergence(teacher, student, beta)
        before = jnp.zeros_like(whole)
        for k in (1, 3, 6, 8, 9):
            ids, kept = divergence.top(teacher, k)
            apart = divergence.divergence(kept, divergence.coarse(student, ids), beta)
            assert np.all(apart >= before - 1e-6) and np.all(apart <= whole + 1e-6)
            before = apart
        np.testing.assert_allclose(before, whole, atol=1e-6)


def test_the_coarse_students_gradient_is_finite_and_right():
    """k = V has no rest, whose log of nothing must not reach the gradient."""
    teacher, student = jnp.float32(log_softmax(rows(2))), jnp.float32(rows(3))

    def total(x, k):
        ids, kept = divergence.top(teacher, k)
        ours = divergence.coarse(divergence.softened(x, 1.0), ids)
        return jnp.sum(divergence.divergence(kept, ours, 0.0))

    for k in (8, 9):
        want = oracle(np.asarray(teacher, np.float64), np.asarray(student, np.float64), 0.0)[1]
        np.testing.assert_allclose(
            jax.jit(jax.grad(total), static_argnums=1)(student, k), want, atol=5e-6
        )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"different shapes.*teacher, student"):
        divergence.divergence(jnp.zeros((2, 3)), jnp.zeros((2, 4)), 0.0)
    with pytest.raises(ValueError, match="beta: 1.5 given"):
        divergence.divergence(jnp.zeros((2, 3)), jnp.zeros((2, 3)), 1.5)
