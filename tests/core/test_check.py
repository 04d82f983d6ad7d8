"""Checks of fields: the interval in the message is the interval that is checked."""

import dataclasses
import math

import pytest

from jaxlm.core import check
from jaxlm.models import gpt
from jaxlm.objectives import clm


@dataclasses.dataclass
class Inner:
    rate: float | None = None


@dataclasses.dataclass
class Outer:
    inner: Inner


@pytest.mark.parametrize(
    ("bounds", "fits", "accepted", "refused"),
    [
        ({"least": 1}, "at least 1", (1, 2.5, 1e30), (0.99, math.inf, math.nan)),
        ({"above": 0}, "above 0", (1e-30, 7), (0, -1, math.inf, math.nan)),
        ({"least": 0, "most": 1}, "in [0, 1]", (0, 0.5, 1), (-0.1, 1.1, math.nan)),
        ({"least": 0, "below": 1}, "in [0, 1)", (0, 0.99), (1, -0.1, math.nan)),
        ({"above": 0, "below": 0.5}, "in (0, 0.5)", (0.1,), (0, 0.5)),
        ({"above": 0, "most": 1}, "in (0, 1]", (1,), (0, 1.5, "1")),
    ],
)
def test_an_interval(bounds, fits, accepted, refused):
    for value in (None, *accepted):
        check.within("objective", Outer(Inner(value)), "inner.rate", **bounds)
    for value in refused:
        with pytest.raises(ValueError) as error:
            check.within("objective", Outer(Inner(value)), "inner.rate", **bounds)
        assert str(error.value) == f"objective.inner.rate: {value!r} given; it must be {fits}"


def test_none_fits_where_the_type_of_a_field_has_it():
    with pytest.raises(ValueError, match="model.embed: None given; it must be at least 1"):
        gpt.Config(embed=None)


def test_a_weight_of_a_loss_is_a_number():
    """`value < 0` is false of NaN: a weight of NaN was accepted, and every loss was NaN."""
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"objective.z_loss: .* it must be at least 0"):
            clm.Config(z_loss=value)
