"""Rotary fields of a config.json: read, refused, and written so that old and new readers agree."""

import pytest

from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import rope_parameters
from jaxlm.ops import rope as ops

SCALINGS = [
    None,
    ops.Linear(3.0),
    ops.Dynamic(3.0, 64),
    ops.Llama3(8.0, 1.0, 4.0, 64),
    ops.Yarn(5.0, 64),
    ops.Yarn(5.0, 64, 9.0, 2.0, 1.5, 0.7, 1.3, False),
    ops.LongRope((1.0, 1.5), (2.0, 4.0), 32, 4.0),
    ops.LongRope((1.0, 1.5), (2.0, 4.0), 32, 4.0, 1.25),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("reader", ["new", "old", "both"])
def test_what_is_written_is_read(scaling, share, reader):
    record = rope_parameters.write(8, 5e4, scaling, 64, share)
    old = ("rope_theta", "rope_scaling", "partial_rotary_factor")
    hidden = {"new": old, "old": ("rope_parameters",), "both": ()}[reader]
    fields = Fields({k: v for k, v in record.items() if k not in hidden})
    rotary = rope_parameters.read(fields, fields.take("max_position_embeddings"))
    assert rotary == rope_parameters.Rope(5e4, scaling, share)
    fields.refuse_rest()


def test_ntk_is_written_as_the_base_it_is():
    record = rope_parameters.write(8, 1e4, ops.Ntk(4.0), 64)
    rotary = rope_parameters.read(Fields(record), 64)
    plain = ops.frequencies(8, rotary.theta, rotary.scaling).freqs
    assert (plain == ops.frequencies(8, 1e4, ops.Ntk(4.0)).freqs).all()


@pytest.mark.parametrize(
    ("record", "scaling"),
    [
        ({}, None),
        ({"rope_scaling": None, "rope_parameters": None}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ops.Linear(2.0)),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, ops.Dynamic(2.0, 64)),
        # factor and original are counted by max_position_embeddings where they are left out
        (
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 16}},
            ops.Yarn(4.0, 16),
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, ops.Yarn(2.0, 64)),
        # the field beside the record wins, as in Phi-3
        (
            {
                "original_max_position_embeddings": 16,
                "rope_scaling": {"type": "su", "short_factor": [1, 1], "long_factor": [2, 2]},
            },
            ops.LongRope((1.0, 1.0), (2.0, 2.0), 16, 4.0),
        ),
    ],
)
def test_forms_of_old_checkpoints(record, scaling):
    assert rope_parameters.read(Fields(record), 64) == rope_parameters.Rope(1e4, scaling, 1.0)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"rope_parameters": {"rope_type": "axial"}}, "rope_type='axial' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 9}}, "no {'alpha': 9}"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing for rope_type='linear'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 0.5}},
            "factor: 0.5 given; it must be at least 1",
        ),
        (
            {"rope_scaling": {"factor": 2.0}, "rope_parameters": {"factor": 4.0}},
            r"rope_parameters and rope_scaling differ in \['factor'\]",
        ),
    ],
)
def test_errors(record, message):
    with pytest.raises(ValueError, match=message):
        rope_parameters.read(Fields(record), 64)
