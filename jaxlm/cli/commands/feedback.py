"""`jaxlm feedback`: a model's judgements of answers, its own or others', as data."""

import dataclasses
import importlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import tyro

from jaxlm import feedback as feedbacks
from jaxlm.cli.commands import FEEDBACK
from jaxlm.core import cache
from jaxlm.feedback import output
from jaxlm.train import trained_weights

S = TypeVar("S")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call(Generic[S]):
    """The arguments of an action: the model that answers, and the action's own settings."""

    run: tyro.conf.Positional[pathlib.Path]
    """The run directory, such as runs/chat."""
    settings: Annotated[S, tyro.conf.arg(name="")]
    """Settings of the action."""
    checkpoint: trained_weights.Which = "last"
    """The last checkpoint, or the one with the best evaluation."""
    template: str | None = None
    """Template of conversations, where it is not the run's own."""
    rows: int = 64
    """Conversations that are read at once; the answers do not depend on it."""


def feedback(args: Sequence[str]) -> int:
    """jaxlm feedback ACTION RUN ..."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: jaxlm feedback ACTION RUN [--name value ...]\n")
        for name, module in FEEDBACK.items():
            description = importlib.import_module(module).__doc__ or ""
            print(f"  {name:<10}{description.splitlines()[0]}")
        print("\njaxlm feedback ACTION --help explains its arguments.")
        return 0
    if args[0] not in FEEDBACK:
        raise ValueError(f"jaxlm feedback: no action {args[0]!r}; there are {sorted(FEEDBACK)}")
    module = importlib.import_module(FEEDBACK[args[0]])
    kind: Any = Call[module.Settings]
    call = tyro.cli(
        kind,
        args=list(args[1:]),
        prog=f"jaxlm feedback {args[0]}",
        description=module.__doc__,
        config=(tyro.conf.FlagConversionOff,),
    )
    cache.programs()
    voice = feedbacks.load(call.run, call.checkpoint, call.template, call.rows)
    return _show(module.run(voice, call.settings))


def _show(summary: output.Summary) -> int:
    print(json.dumps(summary._asdict(), indent=1))
    mass = summary.facts.get("mass", 1.0)
    if mass < 0.1:
        print(
            f"warning: the model chooses one of the two with probability {mass:.3f} only; the form "
            "of the question may not suit it (constitution, `compare` and `choices`)",
            file=sys.stderr,
        )
    return 0
