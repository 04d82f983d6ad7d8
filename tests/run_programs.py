"""Programs that runs of one worker share."""

import contextlib

import pytest

from jaxlm.eval import perplexity
from jaxlm.objectives import distill
from jaxlm.train import loop, step


@contextlib.contextmanager
def shared():
    """Meanwhile, runs that compute the same share what is traced and compiled: a run that is
    stopped, resumed and compared is traced once (3.5 s of CPU become 1.8). Processes of their own
    trace anew (tests/train/interruptions)."""
    kept, build, scorer, initializer = {}, loop.build, perplexity.scorer, step.initializer

    def once(make, *key):
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def built(run):
        reads = run.rollout is not None and run.rollout.reward_model
        if reads or isinstance(run.objective, distill.Config):  # models in files, which may change
            return build(run)
        parts = (run.model, run.objective, run.optim, run.steps, run.plan, run.adapter, run.mup)
        return once(lambda: build(run), *parts, run.rollout, run.diloco)

    def by_identity(make, *parts):
        # kept along with what it was made of, so that no other object gets the same id
        return once(lambda: (make(*parts), parts), make, *map(id, parts[:-1]), parts[-1])[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build", built)
        patch.setattr(perplexity, "scorer", lambda *parts: by_identity(scorer, *parts))
        patch.setattr(step, "initializer", lambda *parts: by_identity(initializer, *parts))
        yield
