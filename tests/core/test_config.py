"""Configs survive JSON, and what is wrong with a record is named."""

import dataclasses
import json
import math
import os
from typing import Literal

import pytest

from jaxlm import models, objectives
from jaxlm.core import config
from jaxlm.models import gpt, llama
from jaxlm.parallel import plan


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    shape: tuple[int, ...] = (1, 2)
    pairs: tuple[tuple[int, int], ...] = ()
    mode: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    model: models.AnyConfig
    inner: Inner = Inner()
    window: tuple[int, int] | None = None
    note: str | None = None


def through_json(cfg):
    return config.from_dict(type(cfg), json.loads(json.dumps(config.to_dict(cfg))))


@pytest.mark.parametrize(
    "cfg",
    [
        Outer(gpt.Config()),
        Outer(llama.Config(window=7), Inner(1e-7, (), ((0, 8), (5, 16)), "b"), (3, 9), "x"),
        plan.Plan(data=2, microbatches=3, compute="bfloat16"),
        objectives.clm.Config(z_loss=1e-4),
        *models.presets().values(),
    ],
    ids=lambda cfg: type(cfg).__module__,
)
def test_json_round_trip(cfg):
    assert through_json(cfg) == cfg


def test_every_class_of_a_union_keeps_its_kind():
    for cls in (gpt.Config, llama.Config):
        assert type(through_json(Outer(cls())).model) is cls


def test_kinds_are_names_in_files_and_do_not_change():
    """A checkpoint says which family and objective it is of by these words."""
    families = ["bert", "deepseek", "gemma", "gpt", "llama", "mistral", "palm", "qwen", "t5"]
    assert sorted(config.kind(m.Config) for m in models.FAMILIES.values()) == families
    trained = ["clm", "distill", "dpo", "grpo", "mlm", "ppo", "reward", "seq2seq", "sft"]
    assert sorted(config.kind(m.Config) for m in objectives.OBJECTIVES.values()) == trained
    with pytest.raises(TypeError, match="needs KIND"):
        config.kind(type("Config", (), {}))


def record(**changes):
    return config.to_dict(Outer(llama.Config())) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"innr": {}}, "innr: no such field .* did you mean 'inner'"),
        ({"inner": {"rate": "fast"}}, r"inner\.rate: expected float, got 'fast'"),
        ({"inner": {"rate": True}}, r"inner\.rate: expected float, got True"),
        ({"inner": {"shape": [1, "2"]}}, r"inner\.shape\[1\]: expected int, got '2'"),
        ({"inner": {"mode": "c"}}, r"inner\.mode: 'c' is none of \['a', 'b'\]"),
        ({"inner": 3}, "inner: expected a mapping, got 3"),
        ({"model": {"kind": "lama"}}, r"model\.kind: 'lama' is none of \[.*'gpt', 'llama'.*\]"),
        ({"model": {"vocab": 8}}, r"model\.kind: None is none of"),  # never guessed from fields
        ({"model": {"kind": "llama", "ffm": 3}}, r"model\.ffm: no such field .* 'ffn'"),
        ({"model": None}, "model: must not be empty"),
        ({"window": [1]}, "window: expected 2 values"),
        ({"window": 3}, "window: expected a list, got 3"),
    ],
)
def test_wrong_records_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config.from_dict(Outer, record(**changes))


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="model: missing from the record of Outer"):
        config.from_dict(Outer, {"note": "x"})


def test_an_integer_is_a_fine_float():
    cfg = config.from_dict(Inner, {"rate": 2})
    assert cfg.rate == 2.0 and type(cfg.rate) is float


def test_digest_is_of_the_values():
    a = config.to_dict(Outer(gpt.Config()))
    assert config.digest(a) == config.digest(json.loads(json.dumps(a)))
    assert config.digest(a) == config.digest(dict(reversed(a.items())))
    nudged = Outer(gpt.Config(eps=math.nextafter(1e-5, 1)))
    assert config.digest(config.to_dict(nudged)) != config.digest(a)
    assert len(config.digest(a)) == 12


def test_without_leaves_out_by_path():
    a, b = (
        config.to_dict(Outer(llama.Config(), Inner(rate), note=note))
        for rate, note in ((0.5, "x"), (0.1, "y"))
    )
    assert config.digest(a) != config.digest(b)
    same = [config.without(r, "note", "inner.rate") for r in (a, b)]
    assert same[0] == same[1] and "rate" in a["inner"]
    with pytest.raises(KeyError, match="nope"):
        config.without(a, "nope")


def test_differences_name_the_path_and_both_values():
    a, b = Outer(llama.Config(), Inner()), Outer(llama.Config(ffn=8), Inner(0.25))
    found = config.differences(config.to_dict(a), config.to_dict(b))
    assert found == [("model.ffn", 11008, 8), ("inner.rate", 0.5, 0.25)]
    assert config.differences({"a": 1}, {"b": 1}) == [("a", 1, None), ("b", None, 1)]
    assert config.differences(config.to_dict(a), config.to_dict(a)) == []


def test_load_reads_a_file_that_was_changed_in_the_same_second(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    file = tmp_path / "quick.py"
    for value in range(3):
        file.write_text(f"def config(): return {value}\n", "utf-8")
        os.utime(file, (10**9, 10**9))
        assert config.load(str(file)) == value


def test_load_reads_functions_of_a_file(tmp_path):
    file = tmp_path / "exp.py"
    file.write_text("def config():\n    return 1\ndef small():\n    return 2\ndef _no(): pass\n")
    assert config.load(str(file)) == 1
    assert config.load(f"{file}:small") == 2
    with pytest.raises(ValueError, match=r"no function 'smal'; it has \['config', 'small'\]; did"):
        config.load(f"{file}:smal")
    with pytest.raises(FileNotFoundError, match="no config file"):
        config.load(str(tmp_path / "absent.py"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match="the run in that directory is .*config.json"):
        config.load(str(tmp_path / "run"))
