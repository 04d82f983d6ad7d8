"""Slots of one size with the requests in them: one State on the device, and what the host knows of
it without asking."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.decode import constraints, sampling_loop, sampling_settings, stop_strings
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.decode.serve import slots
from jaxlm.decode.serve.capacities import Capacity
from jaxlm.models.model import Model


class Running(NamedTuple):
    """A request. watch: of its text, with a tokenizer. matcher: of its constraint. top: likeliest
    tokens of each place that are wanted."""

    number: int
    prompt: list[int]
    sampling: Sampling
    watch: stop_strings.Watch | None
    matcher: constraints.Matcher | None
    top: int = 0


class Lane:
    """`count` slots whose caches have up to `room` entries.

    limit: tokens of a text after which it has outgrown its slot and waits for a larger one; None
    where every text fits. Whether and where a text does so depends on the text alone.
    """

    def __init__(
        self,
        model: Model,
        params: param.Tree,
        capacity: Capacity,
        count: int,
        room: int,
        limit: int | None = None,
    ):
        self._model, self._params, self._capacity = model, params, capacity
        self._room, self._limit = room, limit
        self._state: sampling_loop.State | None = None
        self._rows: sampling_loop.Rows | None = None  # None after a request came or went
        self.requests: list[Running | None] = [None] * count
        self._known = np.zeros(count, np.int32)  # tokens of each that the host knows

    @property
    def taken(self) -> list[int]:
        """Slots with a request."""
        return [slot for slot, one in enumerate(self.requests) if one is not None]

    @property
    def free(self) -> list[int]:
        """Slots without one."""
        return [slot for slot, one in enumerate(self.requests) if one is None]

    def takes(self, prompt: Sequence[int]) -> bool:
        """Whether a text may begin here."""
        return self._limit is None or len(prompt) + 1 < self._limit

    @property
    def outgrown(self) -> list[int]:
        """Slots whose requests wait for a larger one."""
        return [slot for slot in self.taken if self._waits(slot)]

    def _waits(self, slot: int) -> bool:
        one = self.requests[slot]
        assert one is not None
        known = int(self._known[slot])
        return known < one.sampling.max_new and known >= self._most(one)

    def _most(self, one: Running) -> int:
        """New tokens until a request ends or has outgrown its slot."""
        most = one.sampling.max_new
        return most if self._limit is None else min(most, self._limit - len(one.prompt))

    def insert(
        self, index: Sequence[int], requests: Sequence[Running], rows: sampling_loop.State
    ) -> None:
        """Requests, the first rows of a State of R, in the free slots of `index`."""
        wide = rows.cache.at.segments.shape[1]
        if self._state is None:
            self._state = slots.free(self._model, len(self.requests), rows)
            self._state = slots.widened(self._model, min(wide, self._room), self._state)
        have = self._state.cache.at.segments.shape[1]
        if min(wide, self._room) > have:
            have = min(wide, self._room)
            self._state = slots.widened(self._model, have, self._state)
        self._state, rows = self._alike(self._state, rows)
        places = np.full(len(rows.last), -1, np.int32)
        places[: len(index)] = index
        self._state = slots.insert(self._model, have, self._state, places, rows)
        for slot, one in zip(index, requests, strict=True):
            self.requests[slot] = one
            self._known[slot] = 0
        self._rows = None

    def _alike(
        self, a: sampling_loop.State, b: sampling_loop.State
    ) -> tuple[sampling_loop.State, sampling_loop.State]:
        """Both with what one of them has: a text that rules read, likeliest tokens."""
        length = self._capacity.length
        if a.text is not None or b.text is not None:
            a, b = (slots.with_text(length, x) for x in (a, b))
        if a.top is not None or b.top is not None:
            most = max(x.top.tokens.shape[2] for x in (a, b) if x.top is not None)
            a, b = (slots.with_top(length, most, x) for x in (a, b))
        return a, b

    def lift(self, slot: int) -> tuple[Running, int, sampling_loop.State]:
        """(a request that has outgrown its slot, its tokens that are known, its row), which leaves
        the slot."""
        one = self.requests[slot]
        assert one is not None and self._state is not None
        known = int(self._known[slot])
        filled = np.int32(len(one.prompt) + known - 1)
        row = slots.lift(self._model, self._state, np.int32(slot), filled)
        self.leave(slot, True)
        return one, known, row

    def known(self, slot: int) -> int:
        """Tokens of a request that the host knows."""
        return int(self._known[slot])

    def know(self, slot: int, tokens: int) -> None:
        """The host knows so many tokens of a request."""
        self._known[slot] = tokens

    def decode(self, steps: int) -> slots.News | None:
        """Begins up to `steps` tokens for every request that does not wait for a larger slot; their
        News, on the device, or None where there is none."""
        going = [slot for slot in self.taken if not self._waits(slot)]
        if not going:
            return None
        assert self._state is not None
        if self._rows is None:
            self._rows = self._settings()
        if self._state.top is not None and not any(one and one.top for one in self.requests):
            self._state = self._state._replace(top=None)
        filled = [
            len(one.prompt) + int(known)
            for one, known in zip(self.requests, self._known, strict=True)
            if one is not None
        ]
        room = self._capacity.sized(max(filled) + steps, self._room)
        have = self._state.cache.at.segments.shape[1]
        if room > have or 2 * room < have:
            self._state = slots.widened(self._model, room, self._state)
        rows = constrained(self._rows, self.requests, self._model.cfg.vocab)
        self._state, news = slots.decode(
            self._model, steps, self._params, self._state, rows, self._known.copy()
        )
        return news

    def _settings(self) -> sampling_loop.Rows:
        idle = Sampling(temperature=0.0)
        settings = [idle if one is None else one.sampling for one in self.requests]
        rows = sampling_settings.rows_of(settings, len(settings))
        limits = [0 if one is None else self._most(one) for one in self.requests]
        return rows._replace(limit=jnp.asarray(np.array(limits, np.int32)))

    def leave(self, slot: int, ended: bool) -> None:
        """The slot is free. ended: whether the device knows that."""
        assert self._state is not None
        self.requests[slot], self._rows = None, None
        if not ended:
            self._state = slots.end(self._state, np.int32(slot))


def constrained(
    rows: sampling_loop.Rows, requests: Sequence[Running | None], vocab: int
) -> sampling_loop.Rows:
    """The rows with the tokens that each request's constraint allows next, if any has one."""
    if all(one is None or one.matcher is None for one in requests):
        return rows
    allowed = np.ones((len(rows.limit), vocab), bool)
    for r, one in enumerate(requests):
        if one is not None and one.matcher is not None:
            allowed[r] = one.matcher.allowed()
    return rows._replace(controls=rows.controls._replace(allowed=jax.device_put(allowed)))
