"""The shape of the tree: floors, names, and imports in one direction."""

import pytest

from tests import conftest
from tests.sources import (
    EVERYTHING,
    LIBRARY,
    PACKAGE,
    ROOT,
    imports,
    module_level,
    nodes_of,
    text_of,
    tree_of,
    where,
)

FLOORS = {
    "core": 0,
    "ops": 1,
    "parallel": 1,
    "models": 2,
    "data": 2,
    "scaling": 2,
    "objectives": 3,
    "decode": 3,
    "eval": 4,
    "train": 5,
    "feedback": 6,
    "convert": 6,
    "api": 6,
    "cli": 7,
    "__main__": 7,
}
# Modules and folders that a folder holds, itself apart.
ENTRIES = 14
# Lines of each part, little above what it takes: what goes beyond them replaces something, or is a
# capability that is new. `decode` and `eval` are not built to their height yet.
BUDGETS = {
    "core": 2000,
    "ops": 5350,
    "parallel": 2300,
    "models": 4850,
    "data": 8850,
    "data/curate": 4300,
    "scaling": 15700,
    "objectives": 2300,
    "train": 9580,
    "feedback": 2100,
    "convert": 6400,
    "cli": 3700,
}
FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "helpers", "helper", "base"}
pytestmark = pytest.mark.xdist_group("architecture")


def unit(dotted):
    """The folder or module of jaxlm that a dotted name stands in; None for jaxlm itself."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "jaxlm" and len(parts) > 1 and parts[1] in FLOORS else None


def test_every_part_of_the_library_has_a_floor():
    parts = {
        p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix in ("", ".py")
    }
    assert parts - {"__init__", "__pycache__"} <= set(FLOORS)


@pytest.mark.parametrize("part", BUDGETS)
def test_a_part_stays_within_its_lines(part):
    # a folder with a budget of its own is not of its parent's
    apart = [PACKAGE / other for other in BUDGETS if other.startswith(f"{part}/")]
    inside = [p for p in LIBRARY if (PACKAGE / part) in p.parents and not {*apart} & {*p.parents}]
    lines = sum(len(text_of(p).splitlines()) for p in inside)
    assert BUDGETS[part] / 2 < lines <= BUDGETS[part]


def modules():
    """{dotted name: path} of the library."""
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in LIBRARY
    }


def test_a_module_name_stands_in_one_folder_only():
    """Except a model family's, which is a file of models/ and one of convert/families/."""
    places = {}
    for path in LIBRARY:
        places.setdefault(path.stem, []).append(str(path.parent.relative_to(ROOT)))
    family = ["jaxlm/convert/families", "jaxlm/models"]
    several = {k: v for k, v in places.items() if len(v) > 1 and k != "__init__"}
    assert {k: v for k, v in several.items() if v != family} == {}


def test_folders_have_few_entries():
    wrong = []
    for folder in {p.parent for p in LIBRARY}:
        inside = {p.name for p in folder.iterdir()} - {"__init__.py", "__main__.py", "__pycache__"}
        inside = {n for n in inside if n.endswith(".py") or (folder / n / "__init__.py").is_file()}
        if len(inside) > ENTRIES:
            wrong.append(f"{folder.relative_to(ROOT)}: {len(inside)} entries")
    assert not wrong


def test_modules_import_each_other_in_one_direction():
    """No circle, not even one that an import inside a function hides."""
    # the front door and `jaxlm.train(run)` import on use what stands above them
    known = {name: path for name, path in modules().items() if name not in ("jaxlm", "jaxlm.train")}
    below = {name: {m for m, _ in imports(nodes_of(path), path)} for name, path in known.items()}
    below = {
        name: {m if m in known else m.rpartition(".")[0] for m in names} & set(known) - {name}
        for name, names in below.items()
    }
    while leaves := {name for name, names in below.items() if not names & set(below)}:
        below = {name: names for name, names in below.items() if name not in leaves}
    assert sorted(below) == []


def loaded(name):
    """Modules of the library that importing one of them loads, packages above each included."""
    known, seen, waiting = modules(), set(), [name]
    while waiting:
        parts = waiting.pop().split(".")
        for module in (".".join(parts[: n + 1]) for n in range(len(parts))):
            if module in known and module not in seen:
                seen.add(module)
                nodes = module_level(tree_of(known[module]))
                waiting += [m for m, _ in imports(nodes, known[module])]
    return seen


def test_an_objective_loads_no_data_format():
    """Pairing objectives with kinds of data in the objectives' package made a loss over arrays
    load 120 modules, with every reader of records, every template and every tokenizer."""
    modules = loaded("jaxlm.objectives.clm")
    assert len(modules) < 95
    assert not {m for m in modules if m.startswith(("jaxlm.data", "jaxlm.train", "jaxlm.scaling"))}


def test_every_folder_is_a_package():
    """Without `__init__.py` a folder is in the checkout, and missing from what pip installs."""
    folders = {p.parent for p in PACKAGE.rglob("*.py")}
    assert [f.name for f in folders if not (f / "__init__.py").is_file()] == []


def test_a_folder_imports_its_own_floor_or_below():
    wrong = []
    for path in LIBRARY:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name, node in imports(nodes_of(path), path):
            other = unit(name)
            if other is not None and own in FLOORS and FLOORS[other] > FLOORS[own]:
                wrong.append(f"{where(path, node)}: {own} imports {other}")
    assert not wrong


def test_no_file_is_named_for_nothing():
    wrong = [str(p.relative_to(ROOT)) for p in EVERYTHING if p.stem in FORBIDDEN_NAMES]
    assert not wrong


def test_a_group_of_tests_has_one_worker(request):
    """`--dist loadgroup` reads a group at the end of a test's name. With pytest 9.2 pytest-xdist
    3.8 puts none there, and each worker traced what another had."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("no workers")
    assert request.node.nodeid.endswith("@architecture")


def test_what_runs_with_the_newest_versions_exists():
    """A path of NEWEST that names nothing would select nothing, in silence."""
    assert not [path for path in conftest.NEWEST if not (ROOT / "tests" / path).exists()]
