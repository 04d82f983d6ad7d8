"""Floor 5: the run, its step, its loop, and what it leaves on disk. `jaxlm.train(run)` trains."""

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxlm.train.run.directory import Result
    from jaxlm.train.run.run import Run


class _Callable(types.ModuleType):
    """This package, which may also be called."""

    def __call__(self, run: "Run") -> "Result":
        """Train to the end, from the last good checkpoint if there is one: as `loop.run`.

        Raises: ValueError for what is no Run; as `loop.run`.
        """
        from jaxlm.train import loop
        from jaxlm.train.run.run import Run

        if not isinstance(run, Run):
            raise ValueError(f"run: {run!r} given; a jaxlm.Run is needed")
        return loop.run(run)


sys.modules[__name__].__class__ = _Callable
