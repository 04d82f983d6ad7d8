"""An export contains the whole Config: no field is lost on the way through config.json."""

import dataclasses

import pytest

from jaxlm import convert, models
from jaxlm.convert import read, write
from jaxlm.convert.config_json import Fields
from jaxlm.convert.config_rows import Row
from jaxlm.models import gpt, llama, mistral
from jaxlm.ops import rope
from tests.convert import cases


def imported(kind, record):
    return read.understood(Fields(dict(record), "config.json"), kind)


def oracle(kind):
    record = cases.ORACLES[cases.FIRST[kind]]
    return imported(kind, {k: v for k, v in record.items() if k != "architecture"})


@pytest.mark.parametrize("kind", cases.FIRST)
def test_a_config_field_that_no_row_names_is_refused_unless_at_its_default(kind, monkeypatch):
    """An export left out a field that its author had not thought of, and the exported model was
    another one. Here each row of a table is forgotten in turn."""
    known, cfg = convert.ARCHITECTURES[kind], oracle(kind)
    refused = 0
    for row in known.fields:
        others = [other for other in known.fields if other is not row]
        named = {name for other in others for name in other.ours}
        lost = [f for f in dataclasses.fields(cfg) if f.name in {*row.ours} - named]
        if all(getattr(cfg, f.name) == f.default for f in lost):
            continue
        forgetful = known._replace(fields=others)
        monkeypatch.setitem(convert.ARCHITECTURES, kind, forgetful)
        with pytest.raises(ValueError, match=r"model\.\w+=.* has no counterpart.*always"):
            write.architecture(cfg, kind)
        refused += 1
    assert refused >= 4


@pytest.mark.parametrize("kind", cases.FIRST)
def test_a_row_that_names_a_field_and_does_not_write_it_is_refused(kind, monkeypatch):
    """Here each field of a config.json is forgotten in turn, by the row that should write it."""
    known, cfg = convert.ARCHITECTURES[kind], oracle(kind)
    record = known.write(cfg)
    assert write.architecture(cfg, kind) == (kind, record)
    refused = set()
    for name in record.keys() - {"model_type", "architectures"}:
        rows = [Row(r.ours, r.read, without(r.write, name)) for r in known.fields]
        monkeypatch.setitem(convert.ARCHITECTURES, kind, known._replace(fields=rows))
        try:
            _, short = write.architecture(cfg, kind)
        except ValueError:  # missing, without a counterpart, or a Config that cannot be
            refused.add(name)
            continue
        again = imported(kind, short)
        for field in dataclasses.fields(cfg):
            if field.name not in write.TRAINING:
                assert getattr(again, field.name) == getattr(cfg, field.name), (name, field.name)
    assert len(refused) >= 4


def without(writes, name):
    return lambda cfg: {k: v for k, v in writes(cfg).items() if k != name}


EQUIVALENT = [
    (
        llama.Config(layers=2, scaling=rope.Ntk(2.0)),
        {"theta": rope.stretched(128, 1e4, 2.0), "scaling": None},
    ),
    (llama.Config(layers=2, context=4096, scaling=rope.Dynamic(2.0, 2048)), {"context": 2048}),
    (
        mistral.Config(
            layers=6, experts=4, limit=7.0, bias=True, sinks=True, pattern=3 * ("local", "global")
        ),
        {"pattern": ("local", "global")},
    ),
    (gpt.Config(layers=2, ffn=4 * 768), {"ffn": None}),
    (gpt.Config(layers=2, ffn=4 * 768, norm="post"), {"ffn": None}),
    (gpt.Config(layers=2, query_scalar=64.0), {"query_scalar": None}),
]  # fmt: skip


@pytest.mark.parametrize(("cfg", "read_as"), EQUIVALENT)
def test_a_config_that_is_read_back_in_another_form_is_exported(cfg, read_as):
    """An export compared the Config with what is read back field by field, and so refused a model
    with NTK-aware positions, one imported for a longer context, a pattern written out
    and a width given as the default one: the same models in another form."""
    kind, record = write.architecture(cfg)
    assert imported(kind, record) == dataclasses.replace(cfg, **read_as)


@pytest.mark.parametrize("name", ["llama2-7b", "gpt2", "mistral-7b", "qwen3-8b", "gemma2-2b"])
def test_presets_are_exported(name):
    assert imported(*write.architecture(models.presets()[name])) == models.presets()[name]
