"""Inputs of the loop: the batches of a run, from whatever source, and its evaluation."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.core import param
from jaxlm.data.tally import Tally
from jaxlm.train.step import State

# `watch.Watch.arrive`, as sources of batches need it.
Arrive = Callable[[str], None]


def unwatched(where: str) -> None:
    """`Arrive` without a watch."""


class Fed(NamedTuple):
    """Input of one step: the batch on its devices; metrics along with the step's own; and seconds
    by name that the batch took, the time waited for it ("data_wait") among them."""

    batch: Any
    metrics: dict[str, Any]
    seconds: dict[str, float]


class Stream(NamedTuple):
    """The batches from some step on. next(number, state) -> Fed of step `number`, from the state
    before it. carry() -> the arrays a checkpoint must hold to go on from here, {} if none."""

    next: Callable[[int, State], Fed]
    carry: Callable[[], param.Tree]


class Judged(NamedTuple):
    """An evaluation: its record, JSON; and the one number in it of which the best run has least."""

    record: dict[str, Any]
    measure: float


class Supply(NamedTuple):
    """The source of a run's batches.

    facts: JSON that decides every batch, together with (seed, step). corpus: its part of env.json.
    tally: what became of the source's records. notes: more lines to print before training.
    open(step, carry) -> a context with the Stream from that step on; carry is what a checkpoint
    held, as `Stream.carry` gave it, {} at step 0. carry: its shapes, {} if none.
    evaluate(state, batches) -> Judged, over the held-out split or its first batches; None if the
    run is not evaluated. positions(step): how many positions all steps before it hold, padding
    included. flops(step): FLOPs of a position in training, by name; {} where no formula is known.
    """

    facts: dict[str, Any]
    corpus: dict[str, Any]
    tally: Tally
    open: Callable[[int, param.Tree], contextlib.AbstractContextManager[Stream]]
    evaluate: Callable[[State, int | None], Judged] | None
    positions: Callable[[int], int]
    flops: Callable[[int], dict[str, float]]
    carry: param.Tree = {}
    notes: tuple[str, ...] = ()
