"""Programs that runs of one worker share."""

import contextlib
from typing import Any

import pytest

from jaxlm import models
from jaxlm.eval import heldout, perplexity
from jaxlm.objectives import distill
from jaxlm.parallel.plan import Plan
from jaxlm.train import loop, step
from jaxlm.train.rl import episodes

# What the runs of a worker have compiled, by what it was built from.
KEPT: dict[Any, Any] = {}


def reads_models(run):
    """Whether a run's program depends on models in files, which may change."""
    reads = run.rollout is not None and run.rollout.reward_model
    return bool(reads) or isinstance(run.objective, distill.Config)


@contextlib.contextmanager
def shared():
    """Meanwhile, runs that compute the same share what is traced and compiled: a run that is
    stopped, resumed and compared is traced once (3.5 s of CPU become 1.8), and so is what decodes
    with its model. Processes of their own trace anew (tests/train/interruptions). It ends with a
    test file: mutants of other files need models that are built anew."""
    build, model, phases = loop.build, models.build, episodes.phases
    made = [(perplexity, "scorer"), (heldout, "scorer"), (step, "initializer"), (step, "beginner")]

    def once(make, *key):
        if key not in KEPT:
            KEPT[key] = make()
        return KEPT[key]

    def built(run):
        if reads_models(run):
            return build(run)
        parts = (run.model, run.objective, run.optim, run.steps, run.plan, run.adapter, run.mup)
        return once(lambda: build(run), *parts, run.rollout, run.diloco)

    def modelled(cfg, plan=Plan()):
        return once(lambda: model(cfg, plan), model, cfg, plan)

    def by_identity(make, *parts):
        # kept along with what it was made of, so that no other object gets the same id
        return once(lambda: (make(*parts), parts), make, *map(id, parts[:-1]), parts[-1])[0]

    def played(run, model, objective, stop):
        if reads_models(run):
            return phases(run, model, objective, stop)
        key = (id(model), id(objective), run.objective, run.rollout, run.plan, stop)
        return once(lambda: (phases(run, model, objective, stop), model, objective), *key)[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build", built)
        patch.setattr(models, "build", modelled)
        patch.setattr(episodes, "phases", played)
        for module, name in made:
            make = getattr(module, name)
            patch.setattr(module, name, lambda *parts, make=make: by_identity(make, *parts))
        yield
