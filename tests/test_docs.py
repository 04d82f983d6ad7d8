"""What the documents say exists, loads and runs."""

import ast
import contextlib
import dataclasses
import io
import pathlib
import re
import shlex
import subprocess

import pytest

from jaxlm.cli import main
from jaxlm.core import config
from jaxlm.train.run import run as runs

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
FIELDS = ["Reproduces", "Command", "Hardware", "Time", "Expected"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(text):
    """Command lines of a shell block, without comments."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


SHELL = [command for block in blocks("sh") for command in commands(block)]


def variants():
    for file in CONFIGS:
        tree = ast.parse(file.read_text("utf-8"))
        for f in tree.body:
            if isinstance(f, ast.FunctionDef) and not f.name.startswith("_"):
                yield f"{file.relative_to(ROOT)}:{f.name}"


def test_the_readme_shows_what_it_promises():
    first = README.split("\n## ")[0]
    assert [c for c in commands(blocks("sh")[0])] == [["make", "demo"], ["make", "test"]]
    assert blocks("python")[0] in first
    assert "| measured | result |" in first
    concepts = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert concepts == ["Param", "Config", "Plan", "Model", "Objective", "State", "Run"]


def test_the_files_to_read_first_are_under_a_thousand_lines():
    paragraph = next(p for p in README.split("\n\n") if p.startswith("**Read first**"))
    files = re.findall(r"\((jaxlm/[\w/]+\.py)\)", paragraph)
    assert len(files) >= 5
    assert sum(len((ROOT / f).read_text("utf-8").splitlines()) for f in files) < 1000


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text("utf-8")
    local = [t for t in re.findall(r"\]\(([^)]+)\)", text) if not t.startswith("http")]
    paths = [t.split("#")[0] for t in local] + re.findall(r"`((?:jaxlm|tests)/[\w/]+\.py)`", text)
    assert not [p for p in paths if not (ROOT / p).exists()]


def test_make_targets_exist():
    wanted = {c[1] for c in SHELL if c[0] == "make"}
    wanted |= set(re.findall(r"`make ([\w-]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    found = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert wanted <= set(found)
    done = subprocess.run(
        ["make", "-n", *sorted(wanted)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_ci_uses_the_readmes_own_commands():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    used = {goal for goals in re.findall(r"\bmake ([\w -]+)", script) for goal in goals.split()}
    assert used == {c[1] for c in SHELL if c[0] == "make"}


@pytest.mark.parametrize("line", [c for c in SHELL if c[0] == "jaxlm"], ids=" ".join)
def test_commands_are_understood(line, tmp_path, monkeypatch):
    """Every `jaxlm` line up to its first effect: help where it would compute, a run where cheap."""
    assert {c[0] for c in SHELL} == {"make", "jaxlm"}
    monkeypatch.chdir(ROOT)
    out = io.StringIO()
    if line[1] in ("plan", "list"):
        with contextlib.redirect_stdout(out):
            assert main.main(line[1:]) == 0
    else:
        # the arguments stay: an unknown name among them would fail before the help
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
            arguments = [a for a in line[1:] if a != "--help"]
            if line[1] == "eval":
                arguments = ["eval"]  # its run does not exist yet
            main.main([*arguments, "--help"])
        assert end.value.code == 0
        help_text = out.getvalue()
        assert not [a for a in line if a.startswith("--") and a not in help_text]
    assert out.getvalue()


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch):
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(example, "README.md", "exec"), {})
    told = re.search(r"# ([\d.]+) \+- ([\d.]+)", example)
    measured = float(out.getvalue().splitlines()[-1])
    assert abs(measured - float(told[1])) <= float(told[2])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_config_is_a_lab_record(file):
    told = ast.get_docstring(ast.parse(file.read_text("utf-8")))
    assert told.splitlines()[0].endswith((".", "?"))
    record = dict(re.findall(r"^(\w+): (.+)$", told, re.MULTILINE))
    assert list(record) == FIELDS
    assert f"jaxlm train {file.relative_to(ROOT)}" in record["Command"] or file.stem == "demo"


@pytest.mark.parametrize("target", list(variants()))
def test_a_config_loads_and_is_valid(target, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = config.load(target)
    assert isinstance(run, runs.Run)
    # its tokenizer is trained by a command of its own; everything else can be known here
    runs.validate(
        dataclasses.replace(run, data=dataclasses.replace(run.data, tokenizer="bytes"))
        if not pathlib.Path(run.data.tokenizer).exists()
        else run
    )
