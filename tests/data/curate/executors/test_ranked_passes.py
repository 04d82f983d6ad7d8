"""A recipe by ranks, without and with datatrove's executor: the bytes of one process."""

import pytest

from jaxlm.core import config
from jaxlm.data.curate import curation
from jaxlm.data.curate.executors import ranked_passes
from tests.data.curate.test_curation import content, corpus  # noqa: F401

RECIPE = """
import pathlib
from tests.data.curate import test_curation as t

def config():
    folder = pathlib.Path({folder!r})
    near = t.Near(against=({old!r},))
    given = t.recipe(folder)
    return t.recipe(folder, steps=(*given.steps[:-1], near), most_lost=0.9)
"""


@pytest.fixture
def recipe(corpus, tmp_path):  # noqa: F811
    text = RECIPE.format(folder=str(corpus), old=str(corpus / "b" / "1.jsonl"))
    (tmp_path / "recipe.py").write_text(text)
    curation.curate(config.load(str(tmp_path / "recipe.py")), tmp_path / "one")
    return tmp_path / "recipe.py"


def finished(recipe, work, monkeypatch):
    """The directory that `curate` makes of a work folder, where every score must be."""
    with monkeypatch.context() as patch:
        patch.setattr("jaxlm.data.curate.workspace.Workspace.put_scores", None)
        patch.setattr("jaxlm.data.curate.workspace.Workspace.put_arrays", None)
        curation.curate(config.load(str(recipe)), recipe.parent / "ranked", work)
    return content(recipe.parent / "ranked")


def test_ranks_score_everything_once(recipe, tmp_path, monkeypatch):
    passes = ranked_passes.passes(str(recipe), str(tmp_path / "work"))
    # sources, those kept elsewhere, steps up to the lines, rewriting, the rest, and the old again
    assert [p.number for p in passes] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="pass 0 of the recipe is not complete"):
        passes[2](None, 0, 2)
    passes[0](None, 0, 2)
    with pytest.raises(ValueError, match="task 1 has no result; run that pass again"):
        passes[1](None, 0, 2)
    for each in passes:
        for rank in (1, 0, 2):
            each(None, rank, 3)
    assert finished(recipe, tmp_path / "work", monkeypatch) == content(tmp_path / "one")


@pytest.mark.slow
def test_datatroves_executor_runs_the_passes(recipe, tmp_path, monkeypatch):
    executor = pytest.importorskip("datatrove.executor")
    previous = None
    for each in ranked_passes.passes(str(recipe), str(tmp_path / "work")):
        logs = str(tmp_path / f"logs{each.number}")
        previous = executor.LocalPipelineExecutor(
            [each], tasks=3, workers=2, logging_dir=logs, depends=previous
        )
    assert previous is not None
    previous.run()
    assert finished(recipe, tmp_path / "work", monkeypatch) == content(tmp_path / "one")
