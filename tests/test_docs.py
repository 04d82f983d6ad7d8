"""What the documents say exists, loads and runs."""

import ast
import contextlib
import dataclasses
import importlib
import io
import pathlib
import re
import shlex
import subprocess
import sys
import types

import jax
import pytest
from jax.extend import core

from jaxlm import models
from jaxlm.cli import main
from jaxlm.core import config, param
from jaxlm.models.layers import stack
from jaxlm.ops.attention import At
from jaxlm.train.run import run as runs
from scripts.tpu import vm
from tests import programs
from tests.test_tree import FLOORS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in PAGES)]
# Pages whose Python blocks run, in this order: the first trains the run that others load.
RUNNING = ["quickstart", "data", "models", "checkpoints", "plans", "decoding", "extending"]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
FIELDS = ["Reproduces", "Command", "Hardware", "Time", "Expected"]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text):
    """Command lines of a shell block, without comments."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


SHELL = [command for block in blocks("sh") for command in commands(block)]
SHOWN = [c for p in PAGES for b in blocks("sh", p.read_text("utf-8")) for c in commands(b)]


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


def test_the_files_to_read_first_are_a_thousand_lines_at_most():
    paragraph = next(p for p in README.split("\n\n") if p.startswith("**Read first**"))
    files = re.findall(r"\((jaxlm/[\w/]+\.py)\)", paragraph)
    assert len(files) >= 5
    assert sum(len((ROOT / f).read_text("utf-8").splitlines()) for f in files) <= 1000


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text, folder = (ROOT / name).read_text("utf-8"), (ROOT / name).parent
    local = [t for t in re.findall(r"\]\(([^)]+)\)", text) if not t.startswith("http")]
    paths = [folder / t.split("#")[0] for t in local]
    paths += [ROOT / t for t in re.findall(r"`((?:jaxlm|tests|docs)/[\w/]+\.(?:py|md))`", text)]
    # NAME stands for that of an addition
    assert not [p for p in paths if not p.exists() and p.stem != "NAME"]


def test_make_targets_exist():
    wanted = {c[1] for c in SHELL + SHOWN if c[0] == "make"}
    wanted |= set(re.findall(r"`make ([\w-]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert wanted <= set(targets)
    done = subprocess.run(
        ["make", "-n", *sorted(wanted)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_ci_uses_the_readmes_own_commands():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    used = {t for targets in re.findall(r"\bmake ([\w -]+)", script) for t in targets.split()}
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


def test_commands_of_the_pages_are_understood(monkeypatch):
    """Their names and options exist, and so do the configs that they name."""
    assert {c[0] for c in SHOWN} == {"make", "jaxlm", "python"}
    monkeypatch.chdir(ROOT)
    scripts = [c for c in SHOWN if c[0] == "python"]
    assert {c[1] for c in scripts} == {"scripts/tpu/vm.py"}
    inner = {tuple(vm.arguments(c[2:]).command) for c in scripts}
    for command, *given in inner | {tuple(c[1:]) for c in SHOWN if c[0] == "jaxlm"}:
        # a run that does not exist has no options of its own data: those of any run are shown
        given = [a for a in given if command != "eval" or not a.startswith("runs/")]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
            main.main([command, *given, "--help"])
        assert end.value.code == 0, (command, given)
        unknown = [a for a in given if a.startswith("--") and a not in out.getvalue()]
        assert not unknown, (command, given)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_imports_of_python_blocks_exist(name):
    """Of blocks that do not run, too: after a move, five pages imported modules of the past."""
    for block in blocks("python", (ROOT / name).read_text("utf-8")):
        imports = [n for n in ast.parse(block).body if isinstance(n, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), name, "exec"), {})


def test_python_of_the_pages_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in RUNNING:
        names = {}
        for block in blocks("python", (ROOT / "docs" / f"{name}.md").read_text("utf-8")):
            exec(compile(block, f"docs/{name}.md", "exec"), names)
    assert "6738415616" in capsys.readouterr().out  # LLaMA 2 7B, on the page of models


# --- generated parts of the site: docs/_ext ---------------------------------------------------


@pytest.fixture(scope="module")
def site():
    """The modules of docs/_ext by name; they import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "_ext"))
        names = ("blocks", "docstrings", "floors", "expand")
        yield types.SimpleNamespace(**{n: importlib.import_module(n) for n in names})
        for name in names:
            del sys.modules[name]


def test_the_floors_are_those_that_the_imports_keep(site, monkeypatch):
    levels = {n: f for n, f in FLOORS.items() if n != "__main__"}
    assert site.floors.stated() == levels
    assert "[ objectives ]  [ decode ]" in site.floors.figure()
    assert "core" in site.floors.imports()["train"] and site.floors.imports()["core"] == []
    monkeypatch.setattr(site.floors, "stated", lambda: levels | {"core": 9})
    with pytest.raises(ValueError, match=r"imports jaxlm/core \(floor 9\)"):
        site.floors.figure()


def test_every_preset_has_a_figure(site):
    for name in models.presets():
        figure = site.blocks.figure(name)
        assert f"{name}: " in figure and "(+)" in figure
    spec = models.spec(models.presets()["gpt1"])["stack"]["0"]["0_post"]
    with pytest.raises(ValueError, match=r"\['gate'\] without a place"):
        site.blocks.path(spec | {"gate": None}, "post", "gpt")


ORDERED = programs.FIRST | {case for case in programs.FAMILIES if case.endswith("-post")}
# Operations that move a weight without computing with it.
MOVES = {"broadcast_in_dim", "convert_element_type", "dynamic_slice", "gather", "reshape", "slice"}
MOVES |= {"squeeze", "split", "transpose", "copy", "sharding_constraint"}


def reads(jaxpr, names, seen):
    """Adds the names of a program's inputs to `seen` in the order in which they are read."""
    names = {v: n for v, n in zip(jaxpr.invars, names, strict=True) if n is not None}
    for eqn in jaxpr.eqns:
        given = [None if isinstance(v, core.Literal) else names.get(v) for v in eqn.invars]
        inner = [getattr(j, "jaxpr", j) for j in core.jaxprs_in_params(eqn.params)]
        if eqn.primitive.name in MOVES and given[0] is not None:
            names |= dict.fromkeys(eqn.outvars, given[0])
        elif inner and len(inner[0].invars) == len(given):
            reads(inner[0], given, seen)
        else:
            seen += [n for n in given if n is not None]


@pytest.mark.parametrize("family", sorted(ORDERED))
def test_a_figure_has_the_order_of_the_program(site, family):
    """The figure of a layer names its weights in the order in which the compiled program does."""
    model = programs.shape(family)
    batch = programs.fit(family, programs.rows(1))

    def hidden(params):
        at = At(batch.segments, batch.positions)
        return model.hidden(params, batch.tokens, at, **programs.sourced(model, params, batch)).x

    seen = []
    flat = param.flatten(model.spec)
    reads(jax.make_jaxpr(hidden)(param.abstract(model.spec)).jaxpr, list(flat), seen)
    read = [n.split("/") for n in dict.fromkeys(seen)]
    for name in {"encoder", "stack"} & set(model.spec):
        for segment, place, _ in stack.places(model.spec[name]):
            layer, kind = model.spec[name][segment][place], place.partition("_")[2]
            order = dict.fromkeys(n[3] for n in read if n[:3] == [name, segment, place])
            text = " ".join(site.blocks.path(layer, kind, type(model.cfg).KIND))
            assert [*dict.fromkeys(n for n in re.findall(r"[a-z_]+", text) if n in layer)] == [
                *order
            ]


def test_every_page_and_every_package_has_its_place():
    """A page that no table of contents names is on the site, and nobody finds it."""
    folder = ROOT / "docs"
    index = (folder / "index.md").read_text("utf-8").splitlines()
    assert {p.stem for p in PAGES} - {"index"} <= set(index)
    packages = set(FLOORS) - {"__main__", "cli"}  # `jaxlm --help` describes the command line
    pages = [p.read_text("utf-8") for p in (folder / "api").glob("*.md")]
    shown = [name for text in pages for name in re.findall(r"generated: api (\w+) ", text)]
    assert sorted(shown) == sorted(packages)


def test_docstrings_become_markdown(site):
    text = site.docstrings.markdown(
        """Returns x [B, T] of <mask> and `a*b`.

        first: a thing
            that hangs. second line.
        second: another.

            a figure   of text

        Raises: ValueError for a_b.
        """
    )
    assert text.split("\n\n") == [
        r"Returns x \[B, T\] of \<mask\> and `a*b`.",
        "- first: a thing that hangs. second line.\n- second: another.",
        "```text\na figure   of text\n```",
        r"Raises: ValueError for a\_b.",
    ]
    page = site.docstrings.package("api")
    assert "{py:function} generate(saved: jaxlm.train.trained_weights.Saved," in page


def test_pages_are_expanded(site):
    folder = ROOT / "docs"
    assert site.expand.expand("[README](../README.md)", folder) == "`README.md`"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        site.expand.expand("[x](../nowhere.md)", folder)
    with pytest.raises(ValueError, match="'graph' given"):
        site.expand.expand("<!-- generated: graph -->", folder)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch):
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(example, "README.md", "exec"), {})
    stated = re.search(r"# ([\d.]+) \+- ([\d.]+)", example)
    *_, measured, texts = out.getvalue().splitlines()
    assert abs(float(measured) - float(stated[1])) <= float(stated[2])
    assert len(ast.literal_eval(texts)) == 1


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_config_is_a_lab_record(file):
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8")))
    assert docstring.splitlines()[0].endswith((".", "?"))
    record = dict(re.findall(r"^(\w+): (.+)$", docstring, re.MULTILINE))
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
