"""`jaxlm ablate FILE`: an ablation by paired runs, with power stated before and looks planned."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxlm.core import config
from jaxlm.train.run import environment
from jaxlm.train.sweep import engines, paired_runs


def ablate(args: Sequence[str]) -> int:
    """jaxlm ablate FILE"""

    def command(
        file: tyro.conf.Positional[pathlib.Path],
        execution: Annotated[engines.Execution, tyro.conf.arg(name="")] = engines.Execution(),
        out: str | None = None,
    ) -> int:
        """State the power, train pairs of runs until it is decided, and report its worth.

        Args:
            file: A Python file with `def arms() -> Ablation`, such as experiments/ablation/ffn.py;
                `FILE:NAME` calls another function.
            execution: Where and how often its runs are trained.
            out: Where the run directories are; the file's own place if left out.
        """
        target = str(file)
        plan = config.load(target if ".py:" in target else f"{target}:arms")
        if not isinstance(plan, paired_runs.Ablation):
            raise ValueError(f"{target}: {type(plan).__name__} given; an Ablation is needed")
        if out is not None:
            plan = dataclasses.replace(plan, out=out)
        environment.quiet()
        engines.spare(execution.engine)
        paired_runs.run(plan, execution)
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm ablate")
