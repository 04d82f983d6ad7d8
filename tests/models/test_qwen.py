"""Qwen's layers and experts in use, and the Configs that are refused."""

import dataclasses

import pytest

from jaxlm.core import param
from jaxlm.models import qwen
from tests.families.qwen import CASES, QWEN


def active(cfg):
    """Parameters a token meets, in billions."""
    total = 0.0
    for p in param.flatten(qwen.spec(cfg)).values():
        size = param.count({"": p})
        total += size * (cfg.active / cfg.experts if "expert" in p.axes[: p.copies] else 1)
    return total / 1e9


def test_the_names_say_what_a_token_meets():
    for name, billions in (
        ("qwen3-30b-a3b", 3.3),
        ("qwen3-235b-a22b", 22.2),
        ("qwen1.5-moe-a2.7b", 2.7),
        ("qwen2-57b-a14b", 14.2),
    ):
        assert active(qwen.PRESETS[name]) == pytest.approx(billions, abs=0.06), name


def test_kinds():
    assert QWEN.kinds == ("global", "local", "local")
    assert CASES["qwen-moe"].kinds == ("global", "global_moe", "global_moe")
    assert [layer.window for layer in qwen.layers(QWEN)] == [None, 3, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": ("local",), "window": None}, "model.window: None given"),
        ({"dense": (0,)}, "model.dense.*left out without model.experts"),
        ({"shared_ffn": 8}, "model.shared_ffn.*left out without model.experts"),
        ({"capacity": 1.5}, "model.capacity.*left out without model.experts"),
        ({"experts": 4, "active": 5}, r"model.active: 5 given; it must be in \[1, 4\]"),
        (
            {"experts": 4, "active": 2, "dense": (3,)},
            "model.dense: 3 given; it must be a layer's number, 0 .. 2",
        ),
        ({"experts": 0}, "model.experts: 0 given"),
        ({"heads": 3}, "model.kv: 2 does not divide model.heads=3"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QWEN, **changes)
