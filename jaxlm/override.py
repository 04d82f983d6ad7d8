"""Typed overrides of a config's leaves from the command line."""

import warnings
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def apply(cfg: T, args: Sequence[str], prog: str) -> T:
    """cfg, a frozen dataclass, with `--field.leaf value` overrides.

    Where a field is a union (a run's model), the config's own member is what can be changed.
    `--help` prints every leaf with its meaning and default, and exits with 0. An unknown name, a
    wrong type and a value that the dataclass refuses are printed with the nearest name or the
    reason, and exit with 2.
    """
    import tyro

    with warnings.catch_warnings():
        # Every family's class is called Config; the subcommands they would make are turned off.
        warnings.filterwarnings("ignore", "Duplicate subcommand name", UserWarning)
        return tyro.cli(
            type(cfg),
            default=cfg,
            args=list(args),
            prog=prog,
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )
