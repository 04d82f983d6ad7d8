"""Names and values are read from the source: at once, and as classes and parsers have them."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import types
import typing

import pytest
import tyro

from jaxlm import models
from jaxlm.cli import arguments, commands, main, schema
from jaxlm.train.run import run

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from jaxlm.models import llama
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Run

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
    pathlib.Path("run").mkdir()
    pathlib.Path("run/config.json").write_text("{}")


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
    assert main.main(["train", "tiny.py"]) == 2
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

    compare([("jaxlm.train.run.run", "Run")], [run.Run])
    assert sorted(schema.presets()) == sorted(models.presets())


def test_a_mistake_in_a_command_is_answered_without_jax(place):
    """The answer took 2.6 to 3.3 s, nearly all of it for imports."""
    lines = [
        "train tiny.py --optim.lrr 3",
        "train tiny.py --optim.lr abc",
        "plan llama3-9b",
        "sample runs/none",
        "sample run --promt text",
        "eval run --data.sourc text",
        "fit table.csv --targt 1e21",
    ]
    code = f"import sys; from jaxlm.cli import main; [main.main(x.split()) for x in {lines}];"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{code} print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.stderr.count("jaxlm: ") == len(lines)
    assert not set(done.stdout.split()) & {"jax", "numpy", "tyro", "rich", "optax"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train tiny.py --optm.lr 3", "no option --optm.lr; did you mean --optim.lr?"),
        ("train tiny.py --optm.lrr 3", "no option --optm.lrr; did you mean --optim.lr?"),
        ("train tiny.py --optm 3", "no option --optm; did you mean --optim?"),
        ("train tiny.py --data.lr 3", "no option --data.lr; did you mean --optim.lr?"),
        ("train tiny.py --data.nothing 3", "no option --data.nothing; --help lists all"),
        ("train tiny.py --optim.lr abc", "--optim.lr: 'abc' given; a number is needed"),
        ("train tiny.py --optim.clip=big", "--optim.clip: 'big' given; a number or None is needed"),
        ("train tiny.py --steps 1.5", "--steps: '1.5' given; a whole number is needed"),
        ("train tiny.py --plan.remat ful", "'ful' given; 'none' or 'dots' or 'full' is needed"),
        ("train tiny.py --checkpoint.keep-best yes", "'yes' given; True or False is needed"),
        ("sample run --max-mew 3", "no option --max-mew; did you mean --max-new?"),
        ("sample run --no-tlk", "no option --no-tlk"),
        ("sample run --temperature hot", "--temperature: 'hot' given; a number is needed"),
        ("sample run --checkpoint first", "'first' given; 'last' or 'best' is needed"),
        ("eval run --split tset", "'tset' given; 'train' or 'val' is needed"),
        ("sweep file.py --worker 2", "no option --worker; did you mean --workers?"),
        ("sweep file.py --optim.lrr 2", "no option --optim.lrr; did you mean --optim.lr?"),
        ("feedback label run --row 3", "no option --row; did you mean --rows?"),
        ("plan-ahead --flpos 3", "no option --flpos; did you mean --flops?"),
    ],
)
def test_a_wrong_option_or_value_is_named_with_what_fits(place, line, expected):
    """`--optm.lr` was answered with `--optim`, and a wrong number after 2.9 s."""
    with pytest.raises(ValueError, match=re.escape(expected)):
        arguments.check(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "train tiny.py --optim.lr 1e-3 --steps -5 --seed 1_000 --optim.clip None --optim.ema=nan",
        "train tiny.py --model.scaling.factor 4 --optim.name lion --name True --samples a b",
        "sample run --prompt --seed 3 --stop-tokens 1 2 --top-k None --top_p 1",
        "sample run --checkpoint best -- --anything",
        "import a b --plan.data 2 --ignore --plan.fsdp",
        "list --help --anything",
    ],
)
def test_what_may_be_right_is_left_to_the_command(place, line):
    arguments.check(line.split())


def handed_to_tyro(name):
    """(what a command lets tyro fill, how): the arguments of its call of `tyro.cli`."""
    seen = []

    def record(function, **keywords):
        seen.append((function, keywords.get("config", ())))
        raise KeyboardInterrupt

    command, *action = name.split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", record)
        patch.setattr(
            tyro.extras, "subcommand_cli_from_dict", lambda found, **_: record(found[action[0]])
        )
        assert main.main([command, *action, "--help"]) == 130
    return seen[0]


def test_the_options_of_commands_are_those_of_the_parser():
    """What is read from the source is what each command's own parser accepts; of `eval`, whose data
    is any kind, the parser of one kind accepts some."""
    every = [(c, a) for c, entry in commands.COMMANDS.items() for a in entry.options]
    for command, action in every:
        name = f"{command} {action}".rstrip()
        function, markers = handed_to_tyro(name)
        with pytest.warns(DeprecationWarning):
            parser = tyro.extras.get_parser(function, config=markers)
        flags = {flag for action in parser._actions for flag in action.option_strings}
        want = {flag[2:].replace("-", "_") for flag in flags - {"-h", "--help"}}
        # --no-flag is --flag's opposite; --no-repeat-ngram-size is an option of its own
        want -= {path for path in want if re.sub(r"(^|\.)no_", r"\1", path) in want - {path}}
        have = set(arguments.paths(arguments.options(command, action)))
        assert want <= have if name == "eval" else want == have, name
