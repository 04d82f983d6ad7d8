"""Fields of a mixture: names, weights in force, and what is refused."""

import dataclasses
import re

import pytest

from jaxlm.core import config
from jaxlm.data import pretraining
from jaxlm.data.rows import mix_parts
from jaxlm.data.rows.mix_parts import Part

MIX = (Part("a", 3.0, changes=((5, 0.0), (20, 1.0))), Part("b", 1.0, changes=((20, 2.5),)))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("pydocs", "pydocs"),
        ("known:tree?seed=1", "known-tree-seed-1"),
        ("texts/web/*.jsonl.gz", "web"),
        ("texts/web/", "web"),
        ("gs://bucket/code.v2.parquet", "code"),
        ("/data/my texts/a b.txt", "a-b"),
        (".hidden", ".hidden"),
    ],
)
def test_a_name_is_taken_from_the_source(source, name):
    assert mix_parts.names((Part(source, 1.0), Part(source, 1.0, name="own"))) == [name, "own"]


def test_weights_in_force():
    assert mix_parts.weights(MIX) == [(0, (3.0, 1.0)), (5, (0.0, 1.0)), (20, (1.0, 2.5))]
    assert mix_parts.weights(MIX[1:]) == [(0, (1.0,)), (20, (2.5,))]


def test_each_part_is_data_of_its_own():
    data = pretraining.Data(mix=(Part("a", 1.0, field="body"), Part("b", 1.0)), seq=8)
    parts = pretraining.parts(data)
    assert [*parts] == ["a", "b"]
    assert parts["a"] == pretraining.Data(source="a", field="body", seq=8)
    alone = pretraining.Data(seq=8)
    assert pretraining.parts(alone) == {"": alone}


def test_a_config_holds_it_as_json():
    data = pretraining.Data(mix=MIX)
    assert config.from_dict(pretraining.Data, config.to_dict(data)) == data


def part(**changes):
    return dataclasses.replace(Part("b", 1.0), **changes)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (part(source=""), r"data.mix\[1\].source: '' given; it must be a name"),
        (part(field=""), r"data.mix\[1\].field: '' given"),
        (part(weight=-1.0), r"data.mix\[1\].weight: -1.0 given; it must be at least 0"),
        (part(weight=float("nan")), r"data.mix\[1\].weight: nan"),
        (part(weight=float("inf")), r"data.mix\[1\].weight: inf"),
        (part(weight=0.0), r"data.mix\[1\].weight: 0.0 given; .*leave 'b' out"),
        (part(max_epochs=0.0), r"data.mix\[1\].max_epochs: 0.0 given; it must be above 0"),
        (part(changes=((0, 1.0),)), r"data.mix\[1\].changes: .* rising steps from 1"),
        (part(changes=((4, 1.0), (4, 2.0))), r"data.mix\[1\].changes: .* rising steps from 1"),
        (part(changes=((4, -1.0),)), r"data.mix\[1\].changes: .* weights of at least 0"),
        (part(changes=((4, float("inf")),)), r"data.mix\[1\].changes: .* weights of at least 0"),
        (part(name="a/b"), r"data.mix\[1\].name: 'a/b' given; .* letters"),
        (part(name=""), r"data.mix\[1\].name: '' given"),
        (part(name="a"), r"data.mix: names: \['a', 'a'\] given; .* give each part a `name`"),
        (part(source="a", name="c"), r"data.mix\[1\].source: 'a' given; .* than data.mix\[0\]"),
    ],
)
def test_what_does_not_fit_is_named(other, said):
    (line,) = pretraining.Data(mix=(Part("a", 1.0), other)).problems()
    assert re.match(said, line)


def test_weights_are_never_all_zero_and_a_part_replaces_the_source():
    none = (Part("a", 1.0, changes=((9, 0.0),)), Part("b", 1.0, changes=((9, 0.0),)))
    (line,) = pretraining.Data(mix=none).problems()
    assert line.startswith("data.mix: weights: (0.0, 0.0) given; it must be above 0 for at least")
    assert "from step 9 on" in line
    lines = [*pretraining.Data(mix=MIX, source="c", field="body").problems()]
    assert [line.split(":")[0] for line in lines] == ["data.source", "data.field"]
    assert not [*pretraining.Data(mix=MIX).problems()]
    with pytest.raises(TypeError):  # no weight has a default
        Part("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        MIX[0].weight = 2.0
