"""Names are checked from the source: at once, and as the classes themselves have them."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import types
import typing

import pytest

from jaxlm import cli, models, schema
from jaxlm.train import run

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
from jaxlm.models import llama
from jaxlm.train.optim import Optim
from jaxlm.train.run import Run

SIZES = dict(vocab=259, embed=16, layers=1)


def config():
    return Run(
        name="tiny",
        model=llama.Config(**SIZES, heads=2, kv=1, head=8, ffn=32),
        optim=Optim(warmup=1),
        steps=4,
        log_every=2,
    )
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a config."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("tiny.py").write_text(CONFIG)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "warmup=1",
            "warmupp=1",
            "tiny.py:13: Optim has no field 'warmupp'; did you mean 'warmup'",
        ),
        ("kv=1", "kvv=1", "tiny.py:12: llama.Config has no field 'kvv'; did you mean 'kv'?"),
        ("layers=1", "layer=1", "tiny.py:12: TypeError: Config.__init__() got an unexpected"),
        ("steps=4,", "steps=4", "tiny.py:14: invalid syntax. Perhaps you forgot a comma?"),
    ],
)
def test_a_mistake_in_a_config_names_file_line_and_field(place, capsys, old, new, expected):
    """These were tracebacks of Python's, after seconds. A field in a dict is seen when it runs."""
    pathlib.Path("tiny.py").write_text(CONFIG.replace(old, new))
    assert cli.main(["train", "tiny.py"]) == 2
    assert expected in capsys.readouterr().err


def test_the_schema_is_that_of_the_classes():
    """What is read from the source is what Python makes of it, for every field of every config."""

    def compare(classes, types_):
        want = {}
        for cls in types_:
            hints = typing.get_type_hints(cls)
            for f in dataclasses.fields(cls):
                want.setdefault(f.name, set()).update(dataclasses_in(hints[f.name]))
        have = schema.fields(classes)
        assert set(have) == set(want)
        for name, inner in want.items():
            assert {(c.__module__, c.__name__) for c in inner} == set(have[name]), name
            if inner:
                compare(have[name], inner)

    def dataclasses_in(hint):
        if dataclasses.is_dataclass(hint):
            return {hint}
        union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        return {c for h in typing.get_args(hint) for c in dataclasses_in(h)} if union else set()

    compare([("jaxlm.train.run", "Run")], [run.Run])
    assert sorted(schema.presets()) == sorted(models.presets())


def test_a_misspelt_name_is_answered_without_jax(place):
    """The answer took 3.3 s, nearly all of it for imports."""
    code = (
        "import sys; from jaxlm import cli;"
        "cli.main(['train', 'tiny.py', '--optim.lrr', '3']); cli.main(['plan', 'llama3-9b']);"
        "cli.main(['sample', 'runs/none']); print(*sys.modules)"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.stderr.count("jaxlm: ") == 3
    assert not set(done.stdout.split()) & {"jax", "numpy", "tyro", "rich", "optax"}
