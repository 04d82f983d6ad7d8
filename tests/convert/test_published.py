"""config.json files as they are published: accepted, or refused for the reason in the table of
docs/interchange.md. The records are `published.json`; a field that decides nothing is left out."""

import json
import pathlib
import re

import pytest

from jaxlm.convert import quantised, read
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import rope_parameters

HERE = pathlib.Path(__file__).parent
PUBLISHED = json.loads((HERE / "published.json").read_text("utf-8"))
PAGE = HERE.parents[1] / "docs" / "interchange.md"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    """28 of 166 published configs were refused for a field that nothing reads, and one that lets
    tokens see ahead was imported as causal."""
    entry = PUBLISHED[name]
    record, expected = entry["config"], entry["expected"]
    if expected == "accepted":
        cfg = read.understood(Fields(record), record["model_type"])
        if few := record.get("quantization_config"):
            assert quantised.understood(few, record["model_type"], name).name in entry["note"]
        assert bool(rope_parameters.notice(cfg)) == ("LongRoPE" in entry.get("note", ""))
    else:
        with pytest.raises(ValueError, match=re.escape(expected)):
            read.understood(Fields(record), record["model_type"])


def test_the_page_s_table_says_the_same():
    rows = {}
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 3 and cells[0] in PUBLISHED:
            rows[cells[0]] = cells[1:]
    assert rows.keys() == PUBLISHED.keys()
    for name, (kind, outcome) in rows.items():
        entry = PUBLISHED[name]
        assert kind == f"`{entry['config']['model_type']}`", name
        expected = entry["expected"]
        if expected == "accepted":
            assert outcome.startswith("accepted"), name
        else:
            assert outcome.startswith("refused") and expected.split("=")[0].split()[0] in outcome, (
                name
            )


def test_what_is_unknown_and_says_something_is_refused_with_a_way_on():
    record = PUBLISHED["LLaMA-7B"]["config"] | {"clip_qkv": 8.0, "zero_centered": False}
    with pytest.raises(ValueError, match=r"unknown fields {'clip_qkv': 8.0}.*--ignore clip_qkv"):
        read.understood(Fields(record), "llama")
    fields = Fields(record, ignored=("clip_qkv",))
    read.understood(fields, "llama")
    assert fields.skipped() == {"clip_qkv": 8.0}
    for name, message in (("hidden_act", "cannot be ignored"), ("clip", "has no such field")):
        fields = Fields(record, ignored=("clip_qkv", name))
        read.understood(fields, "llama")
        with pytest.raises(ValueError, match=f"--ignore {name}: .*{message}"):
            fields.skipped()


@pytest.mark.parametrize("value", [False, None])
def test_a_decoder_that_sees_ahead_is_refused(value):
    """`is_causal: false` was taken for a field that says nothing; null is false to transformers."""
    for name in ("LLaMA-7B", "gpt2-medium", "falcon-7b", "flan-t5-small", "gemma-2b"):
        record = PUBLISHED[name]["config"] | {"is_causal": value}
        with pytest.raises(ValueError, match=f"is_causal={value} is not supported"):
            read.understood(Fields(record), record["model_type"])
