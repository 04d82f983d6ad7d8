"""`jaxlm list` and `jaxlm plot`: configs, presets, corpora, tokenizer kinds, runs and curves."""

import ast
import pathlib
from collections.abc import Iterator, Sequence

import tyro

from jaxlm import models
from jaxlm.core import json_file, param
from jaxlm.core.remote import objects, staging
from jaxlm.data import synthetic, tokenizers
from jaxlm.data.sources import corpora
from jaxlm.train.run import directory
from jaxlm.train.run import plot as curves


def listing(args: Sequence[str]) -> int:
    """jaxlm list [FOLDER or URL]"""

    def command(folder: tyro.conf.Positional[pathlib.Path] = pathlib.Path()) -> int:
        """Show configs, presets, corpora, tokenizer kinds and runs.

        Args:
            folder: Where configs/ and runs/ are; of a store's URL the runs below it, alone.
        """
        address = objects.url(folder)
        print(text(folder) if address is None else _section("runs", list(stored(address))))
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm list")


def plot(args: Sequence[str]) -> int:
    """jaxlm plot RUN"""

    def command(run: tyro.conf.Positional[pathlib.Path]) -> int:
        """Draw a run's loss curves to loss.png in its directory.

        Args:
            run: The run directory, such as runs/demo.
        """
        run = staging.local(run)
        directory.load(run)
        directory.warn_of_lost_records(run)
        path = curves.loss(run)
        if path is None:
            raise ValueError(f"{run} has no metrics to draw yet")
        print(staging.named(str(path)))
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm plot")


def text(folder: pathlib.Path) -> str:
    """All of it as lines; configs and runs are those under `folder`."""
    sections = {
        "configs": list(configs(folder / "configs")),
        "presets": [(n, f"{param.count(models.spec(c)):,}") for n, c in models.presets().items()],
        "corpora": [(name, corpus.help) for name, corpus in corpora.CORPORA.items()],
        "sources of known entropy": list(synthetic.listing()),
        "tokenizers": [(name, kind.help) for name, kind in tokenizers.KINDS.items()],
        "runs": list(runs(folder / "runs")),
    }
    return "\n\n".join(_section(title, rows) for title, rows in sections.items())


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    """A title, and a line for each (name, fact)."""
    width = max((len(name) for name, _ in rows), default=0) + 2
    body = [f"  {name:<{width}}{fact}".rstrip() for name, fact in rows] or ["  none here"]
    return "\n".join([title, *body])


def configs(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(path, first line of the docstring) of every config file; nothing is imported."""
    for file in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        yield str(file), docstring.partition("\n")[0]


def runs(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(path, how far it is) of every run directory; of a damaged one, what is wrong with it."""
    for file in sorted(folder.glob("*/config.json")):
        yield str(file.parent), _state_or_damage(file)


def stored(address: str) -> Iterator[tuple[str, str]]:
    """(URL, how far it is) of every run directory below a URL, or at it, as `runs`. Their small
    files are fetched. Raises: StoreError."""
    found: list[str] = []
    names = (n for n in objects.listing(address) if n.rpartition("/")[2] == "config.json")
    for parts in sorted(name.split("/")[:-1] for name in names):
        place = "/".join([address, *parts])
        # a file of this name in a run directory is not another run's
        if not any(f"{place}/".startswith(f"{run}/") for run in found):
            found.append(place)
            yield place, _state_or_damage(staging.local(place) / "config.json")


def _state_or_damage(file: pathlib.Path) -> str:
    try:
        return _state(file)
    except (ValueError, OSError) as error:
        return staging.named(f"damaged: {error}")


def _state(file: pathlib.Path) -> str:
    config = json_file.read_object(file)
    result = directory.read_result(file.parent)
    if result is None:
        return f"not finished, {config.get('steps')} steps wanted"
    fault = directory.lost_records(file.parent, result)
    warning = "" if fault is None else f"; {fault}"
    if result.diverged is not None:
        return f"diverged at step {result.step} of {result.steps}: {result.diverged}{warning}"
    score = directory.score_text(result.val).removeprefix("val ")
    early = f" of {result.steps} ({result.early_stop})" if result.early_stop else ""
    return f"finished, {result.step} steps{early}, {score}{warning}"
