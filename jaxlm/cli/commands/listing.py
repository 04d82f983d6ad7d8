"""`jaxlm list` and `jaxlm plot`: configs, presets, corpora, tokenizer kinds, runs and curves."""

import ast
import pathlib
from collections.abc import Iterator, Sequence

import tyro

from jaxlm import models
from jaxlm.core import json_file, param
from jaxlm.core.remote import staging
from jaxlm.data import synthetic, tokenizers
from jaxlm.data.sources import corpora
from jaxlm.train.run import directory
from jaxlm.train.run import plot as curves


def listing(args: Sequence[str]) -> int:
    """jaxlm list [FOLDER]"""

    def command(folder: tyro.conf.Positional[pathlib.Path] = pathlib.Path()) -> int:
        """Show configs, presets, corpora, tokenizer kinds and runs.

        Args:
            folder: Where configs/ and runs/ are.
        """
        print(text(folder))
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
    lines: list[str] = []
    for title, rows in sections.items():
        width = max((len(name) for name, _ in rows), default=0) + 2
        body = [f"  {name:<{width}}{fact}".rstrip() for name, fact in rows] or ["  none here"]
        lines += [title, *body, ""]
    return "\n".join(lines).rstrip()


def configs(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(path, first line of the docstring) of every config file; nothing is imported."""
    for file in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        yield str(file), docstring.partition("\n")[0]


def runs(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(path, how far it is) of every run directory; of a damaged one, what is wrong with it."""
    for file in sorted(folder.glob("*/config.json")):
        try:
            yield str(file.parent), _state(file)
        except (ValueError, OSError) as error:
            yield str(file.parent), f"damaged: {error}"


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
