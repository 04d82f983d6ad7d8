"""What an export writes is what an import reads: no field of a Config is lost in between."""

import dataclasses

import pytest

from jaxlm import convert
from jaxlm.convert import read, write
from jaxlm.convert.config_json import Fields
from tests.convert import cases


def imported(kind, record):
    return read.understood(Fields(dict(record), "config.json"), kind)


@pytest.mark.parametrize("kind, case", cases.FIRST.items(), ids=str)
def test_a_field_that_an_export_forgets_is_refused(kind, case, monkeypatch):
    """A field of a Config that `write` did not list was left out without a word, and the exported
    model was another one. Here each field of a config.json is forgotten in turn."""
    known = convert.ARCHITECTURES[kind]
    cfg = imported(kind, {k: v for k, v in cases.ORACLES[case].items() if k != "architecture"})
    record = known.write(cfg)
    assert write.architecture(cfg, kind) == (kind, record)
    refused = set()
    for name in record.keys() - {"model_type", "architectures"}:
        short = {k: v for k, v in record.items() if k != name}
        forgets = known._replace(write=lambda _, short=short: short)
        monkeypatch.setitem(convert.ARCHITECTURES, kind, forgets)
        try:
            write.architecture(cfg, kind)
        except ValueError:  # missing, without a counterpart, or a Config that cannot be
            refused.add(name)
            continue
        again = imported(kind, short)
        for field in dataclasses.fields(cfg):
            if field.name not in write.TRAINING:
                assert getattr(again, field.name) == getattr(cfg, field.name), (name, field.name)
    assert len(refused) >= 4
