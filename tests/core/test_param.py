"""Weights from strings: shapes, fan-ins, starts, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import param

P = param.shaper(vocab=11, embed=64, heads=4, head=8, ffn=48, expert=3)


@pytest.mark.parametrize(
    "text, shape, copies, inputs, fan_in",
    [
        ("embed -> heads head", (64, 4, 8), 0, 1, 64),
        ("heads head -> embed", (4, 8, 64), 0, 2, 32),
        ("expert | embed -> ffn", (3, 64, 48), 1, 1, 64),
        ("expert | heads head -> embed", (3, 4, 8, 64), 1, 2, 32),
    ],
)
def test_a_string_is_a_weight(text, shape, copies, inputs, fan_in):
    p = P(text)
    assert (p.shape, p.copies, p.inputs, p.fan_in) == (shape, copies, inputs, fan_in)
    assert p.axes == tuple(text.replace("|", " ").replace("->", " ").split())
    many = param.stacked(5, {"w": p})["w"]
    assert many.shape == (5, *shape) and many.axes == ("layer", *p.axes)
    assert (many.copies, many.inputs, many.fan_in) == (copies + 1, inputs, fan_in)


def test_without_an_arrow_nothing_is_contracted():
    p = P("vocab embed", init=param.normal(0.1))
    assert (p.shape, p.copies, p.inputs, p.fan_in) == ((11, 64), 0, 0, 0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("embed", "weight 'embed' has no arrow, so it requires init"),
        (
            "embed -> width",
            "weight 'embed -> width': unknown axis 'width'; have ['embed', 'expert'",
        ),
        ("-> embed", "weight '-> embed': an arrow requires inputs before it"),
        ("embed ->", "weight 'embed ->': an arrow requires inputs before it"),
    ],
)
def test_a_wrong_string_is_named(text, message):
    with pytest.raises(ValueError) as error:
        P(text)
    assert message in str(error.value)


def test_a_wrong_size_is_named():
    with pytest.raises(ValueError, match="axis 'heads' has size 0; sizes are at least 1"):
        param.shaper(heads=0)


def test_starts_have_the_spread_they_promise():
    spec = param.stacked(4, {"o": P("heads head -> embed"), "small": P("embed -> ffn")})
    spec["small"] = param.Param(
        spec["small"].shape, spec["small"].axes, param.fan_in(0.5), 1, spec["small"].inputs
    )
    spec["table"] = P("vocab embed", init=param.normal(0.02))
    w = jax.jit(lambda: param.init(spec, jax.random.key(0)))()
    for name, std in (("o", 32**-0.5), ("small", 0.5 * 64**-0.5), ("table", 0.02)):
        x = np.asarray(w[name])
        assert x.dtype == np.float32 and x.shape == spec[name].shape
        # the standard error of a standard deviation is std / sqrt(2 n)
        assert abs(x.std() / std - 1) < 5 / np.sqrt(2 * x.size), name
        assert abs(x.mean()) < 5 * std / np.sqrt(x.size), name
    layers = np.asarray(w["o"]).reshape(4, -1)
    assert np.abs(np.corrcoef(layers) - np.eye(4)).max() < 0.1


def test_values_depend_on_the_path_and_the_key_alone():
    p = P("embed -> ffn")
    w = param.init({"a": p, "b": {"a": p}}, jax.random.key(0))
    more = param.init({"a": p, "aa": p, "b": {"a": p, "0": p}}, jax.random.key(0))
    other = param.init({"a": p}, jax.random.key(1))
    assert (w["a"] == more["a"]).all() and (w["b"]["a"] == more["b"]["a"]).all()
    for x in (w["b"]["a"], more["aa"], more["b"]["0"], other["a"]):
        assert (w["a"] != x).mean() > 0.99


SPEC = {
    "table": P("vocab embed", init=param.normal(1.0)),
    "stack": param.stacked(2, {"q": P("embed -> heads head"), "bias": P("ffn", init=param.zeros)}),
    "norm": P("embed", init=param.ones),
    "unembed": P("embed -> vocab"),
}


def test_what_decays_and_what_is_a_hidden_matrix():
    assert param.flatten(param.decayed(SPEC)) == {
        "norm": False,
        "stack/bias": False,
        "stack/q": True,
        "table": True,
        "unembed": True,
    }
    assert [k for k, yes in param.flatten(param.matrices(SPEC)).items() if yes] == ["stack/q"]


def test_counting_and_shapes_allocate_nothing():
    assert param.count(SPEC) == 11 * 64 + 2 * (64 * 32 + 48) + 64 + 64 * 11
    huge = {"w": param.shaper(embed=10**6, ffn=10**7)("embed -> ffn")}
    assert param.count(huge) == 10**13
    shape = param.abstract(huge, jnp.bfloat16)["w"]
    assert shape.shape == (10**6, 10**7) and shape.dtype == jnp.bfloat16


def test_constant_starts():
    w = param.init(SPEC, jax.random.key(0))
    assert (w["norm"] == 1).all() and (w["stack"]["bias"] == 0).all()
