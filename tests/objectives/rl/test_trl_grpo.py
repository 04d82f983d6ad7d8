"""GRPO and its relatives against TRL itself, in value and gradient: the same logits, masks and
advantages through `GRPOTrainer._compute_loss`, `RLOOTrainer._compute_loss` and ours."""

import collections
import types

import jax
import numpy as np
import pytest

from jaxlm.objectives.rl import grpo
from tests.objectives import free

pytestmark = pytest.mark.parity

N, T, V = 5, 6, 7
LENGTHS = (6, 4, 5, 1, 3)
# ours -> TRL's loss_type and importance_sampling_level, and the bounds that differ from 0.2
CASES = {
    "grpo": (grpo.Config(beta=0.04), {}),
    "grpo-corrected": (
        grpo.Config(beta=0.1, kl_estimator="k3_ratio", most=1.2),
        {"use_bias_correction_kl": True, "delta": 1.2},
    ),
    "dr_grpo": (
        grpo.Config(variant="dr_grpo", divisor=9.0),
        {"loss_type": "dr_grpo", "length": 9},
    ),
    "dapo": (grpo.Config(variant="dapo"), {"loss_type": "dapo", "high": 0.28}),
    "bnpo": (grpo.Config(variant="reinforce", entropy=0.03), {"loss_type": "bnpo"}),
    "gspo": (
        grpo.Config(variant="gspo", beta=0.04),
        {"level": "sequence", "low": 3e-4, "high": 4e-4},
    ),
    "luspo": (
        grpo.Config(variant="luspo", clip_low=0.1, clip_high=0.2),
        {"loss_type": "luspo", "level": "sequence", "low": 0.1},
    ),
    "cispo": (grpo.Config(variant="cispo"), {"loss_type": "cispo", "high": 5.0}),
    "sapo": (grpo.Config(variant="sapo"), {"loss_type": "sapo"}),
    "vespo": (grpo.Config(variant="vespo"), {"loss_type": "vespo"}),
}


@pytest.fixture(scope="module")
def given():
    """logits [N, T, V] and what was sampled, scored and masked, in float64."""
    r = np.random.default_rng(0)
    mask = (np.arange(T) < np.array(LENGTHS)[:, None]).astype(float)
    logits = r.normal(size=(N, T, V))
    targets = r.integers(0, V, (N, T)).astype(np.int32)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    now = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    near = [now + r.normal(0, 0.25, (N, T)) for _ in range(2)]
    return types.SimpleNamespace(
        mask=mask,
        logits=logits,
        targets=targets,
        behaviour=near[0],
        reference=near[1],
        advantages=np.array([1.2, -0.7, 0.4, -0.9, 2.0]),
    )


def ours(cfg, given):
    """(loss, gradient in the logits)."""
    with jax.enable_x64(True):
        batch = free.rollout(
            given.mask,
            given.mask * given.behaviour,
            reference=given.mask * given.reference,
            advantage=given.mask * given.advantages[:, None],
            targets=given.targets,
        )
        objective = grpo.build(cfg, free.model(N, T, V))
        value, _, grads = free.slope(objective, {"logits": given.logits}, {}, batch)
    return value, grads["logits"]


def accelerator():
    same = lambda x, **_: x  # noqa: E731
    return types.SimpleNamespace(
        num_processes=1, gather=same, gather_for_metrics=same, reduce=same, sync_gradients=True
    )


def theirs(trainer, given, **inputs):
    """(loss, gradient in the logits) of a trainer whose policy has these logits."""
    import torch

    logits = torch.tensor(given.logits, requires_grad=True)
    log_p = torch.log_softmax(logits, -1)
    targets = torch.tensor(given.targets, dtype=torch.int64)
    now = log_p.gather(-1, targets[..., None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (now, entropy, None)
    mask = torch.tensor(given.mask)
    loss = trainer._compute_loss(
        types.SimpleNamespace(training=True),
        {
            "prompt_ids": targets[:, :1],
            "prompt_mask": mask[:, :1],
            "completion_ids": targets,
            "completion_mask": mask,
            "advantages": torch.tensor(given.advantages),
            "num_items_in_batch": mask.sum(),
        }
        | {name: torch.tensor(value) for name, value in inputs.items()},
    )
    loss.backward()
    return loss.item(), logits.grad.numpy()


def common(cls, **more):
    """A trainer without a model, an optimiser or a loader."""
    trainer = object.__new__(cls)
    vars(trainer).update(
        {
            "accelerator": accelerator(),
            "model": types.SimpleNamespace(training=True),
            "_metrics": {"train": collections.defaultdict(list)},
            "aux_loss_enabled": False,
            "current_gradient_accumulation_steps": 1,
        }
        | more
    )
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_its_gradient_are_trls(case, given):
    trl = pytest.importorskip("trl", minversion="1.16")
    cfg, differs = CASES[case]
    args = types.SimpleNamespace(
        delta=differs.get("delta"),
        use_bias_correction_kl=differs.get("use_bias_correction_kl", False),
        steps_per_generation=1,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
    )
    trainer = common(
        trl.GRPOTrainer,
        args=args,
        loss_type=differs.get("loss_type", "grpo"),
        importance_sampling_level=differs.get("level", "token"),
        epsilon_low=differs.get("low", 0.2),
        epsilon_high=differs.get("high", 0.2),
        beta=cfg.beta,
        max_completion_length=differs.get("length", T),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=cfg.entropy > 0,
        use_adaptive_entropy=False,
        entropy_coef=cfg.entropy,
    )
    inputs = {"old_per_token_logps": given.behaviour, "ref_per_token_logps": given.reference}
    value, grads = theirs(trainer, given, **inputs)
    loss, slope = ours(cfg, given)
    np.testing.assert_allclose(loss, value, atol=1e-7)
    np.testing.assert_allclose(slope, grads, atol=1e-7)
    assert np.abs(grads).max() > 1e-3


def test_rloo_is_trls(given):
    trl = pytest.importorskip("trl", minversion="1.16")
    trainer = common(trl.RLOOTrainer, epsilon_low=0.2, epsilon_high=0.2)
    old = (given.mask * given.behaviour).sum(1)
    value, grads = theirs(trainer, given, old_logps=old)
    loss, slope = ours(grpo.Config(variant="rloo"), given)
    np.testing.assert_allclose(loss, value, atol=1e-7)
    np.testing.assert_allclose(slope, grads, atol=1e-7)
