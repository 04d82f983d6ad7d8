"""The scheduler of continuous batching: requests wait, take a slot, are decoded together and leave.

    engine = Engine(model, params, Capacity(slots=8, length=1024))
    number = engine.submit([1, 5, 9], Sampling(max_new=32))
    while engine.busy:
        for part in engine.step():
            ...                                         # part.number, part.tokens, part.finish

Everything on the device is in `slots`. A request's tokens and log-probabilities are those it has
alone, bit for bit on CPU, whatever else is decoded and whenever it came.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import check, param
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import constraints, sampling_loop, sampling_settings, stop_strings, token_sampling
from jaxlm.decode.serve import capacities, prefix_cache, slots
from jaxlm.decode.serve.capacities import Capacity
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models.model import Model
from jaxlm.ops import attention
from jaxlm.parallel import devices


class Part(NamedTuple):
    """Addition of a step to a request.

    number: as `submit` returned it. tokens, log_probs, support_log_probs: of the new tokens, as in
    `sampling_loop.Generation`. text: the new text that is certain, "" without a tokenizer. finish:
    None while it runs, else "stop_token", "stop_string", "length", "cancelled" or "failed": its
    constraint could not be followed, and text says why. cached: of the first part, the prompt's
    tokens that were not computed again.
    """

    number: int
    tokens: list[int]
    log_probs: list[float]
    support_log_probs: list[float]
    text: str = ""
    finish: str | None = None
    cached: int = 0


class _Running(NamedTuple):
    """A request in a slot."""

    number: int
    prompt: list[int]
    sampling: Sampling
    watch: stop_strings.Watch | None
    matcher: constraints.Matcher | None


class Engine:
    """Slots, the requests in them, and those that wait."""

    def __init__(
        self,
        model: Model,
        params: param.Tree,
        capacity: Capacity = Capacity(),
        tokenizer: tokenizers.Tokenizer | None = None,
    ):
        """params: as they are trained or as `token_sampling.prepare` gives them. tokenizer: of
        stop strings and of the parts' text.

        Raises: ValueError for a model that does not continue texts, whose tokens compete or whose
        positions are fewer than capacity.length, and if the device has no memory for the cache.
        """
        if model.kind != "decoder":
            raise ValueError(f"a {model.kind} model does not continue texts; an engine needs one")
        token_sampling.check_independent(model, "engine")
        fits = f"at most {model.context}, the model's positions"
        ok = capacity.length <= (model.context or capacity.length)
        check.field("capacity.length", capacity.length, ok, fits)
        self.capacity = capacity
        self._model = model._replace(spec=None)
        self._checked = model
        self._params = token_sampling.prepare(model, params)
        self.cache_bytes = slots.cache_bytes(self._model, self._params, capacity)
        what = f"capacity: the cache of {capacity.slots} slots of {capacity.length:,} tokens"
        devices.check(what, self.cache_bytes)
        self._tokenizer = tokenizer
        self._prefixes = prefix_cache.Prefixes(int(capacity.prefix_mib * 2**20), capacity.chunk)
        self._waiting: collections.OrderedDict[int, _Running] = collections.OrderedDict()
        self._slots: list[_Running | None] = [None] * capacity.slots
        self._state: sampling_loop.State | None = None
        self._rows = sampling_settings.rows_of([], capacity.slots)
        self._cancelled: list[int] = []
        self._vocabularies: dict[tuple[int, ...], constraints.Vocabulary] = {}
        self._next = 0

    @property
    def busy(self) -> bool:
        """Whether a request runs, waits, or has an end to be told."""
        return bool(self.running or self._waiting or self._cancelled)

    @property
    def running(self) -> int:
        """Number of slots that are taken."""
        return sum(one is not None for one in self._slots)

    @property
    def waiting(self) -> int:
        """Number of requests without a slot."""
        return len(self._waiting)

    @property
    def prefixes(self) -> prefix_cache.Prefixes:
        """The prompts' chunks that are kept."""
        return self._prefixes

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        constraint: constraints.Constraint | None = None,
    ) -> int:
        """The number of a new request. prompt: token ids, at least one. constraint: what the
        continuation has to match; support_log_probs are of the tokens that it allows.

        Raises: ValueError, before any compute, for what `token_sampling.generate` refuses, for a
        request that has more tokens than capacity.length, with the max_new that would fit, and for
        a constraint that cannot be read; ImportError without the extra `constrain`.
        """
        matcher = self.check(prompt, sampling, constraint)
        watch = None
        ids = [int(token) for token in prompt]
        if self._tokenizer is not None:
            watch = stop_strings.Watch(self._tokenizer, ids, sampling.stop_strings)
        number, self._next = self._next, self._next + 1
        self._waiting[number] = _Running(number, ids, sampling, watch, matcher)
        return number

    def check(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        constraint: constraints.Constraint | None = None,
    ) -> constraints.Matcher | None:
        """The matcher of the constraint. Raises: as `submit`."""
        if sampling.candidates > 1:
            raise ValueError(
                f"sampling: {sampling.candidates} continuations; submit a request for each"
            )
        capacities.check_room(len(prompt), sampling, self.capacity)
        if sampling.stop_strings and self._tokenizer is None:
            raise ValueError("sampling.stop_strings: a tokenizer is needed to find strings")
        token_sampling.check_prompt(self._checked, 0, prompt, sampling)
        if constraint is None:
            return None
        if self._tokenizer is None:
            raise ValueError("constraint: a tokenizer is needed to match text")
        if not sampling.stop_tokens:
            raise ValueError("sampling.stop_tokens: () given; a constraint ends with one of them")
        key = sampling.stop_tokens
        if key not in self._vocabularies:
            self._vocabularies[key] = constraints.Vocabulary(
                self._tokenizer, self._checked.cfg.vocab, key
            )
        return self._vocabularies[key].matcher(constraint)

    def cancel(self, number: int) -> bool:
        """Whether the request was there; its slot is free from the next step on."""
        if self._waiting.pop(number, None) is not None:
            self._cancelled.append(number)
            return True
        for slot, one in enumerate(self._slots):
            if one is not None and one.number == number:
                self._leave(slot)
                self._cancelled.append(number)
                return True
        return False

    def step(self) -> list[Part]:
        """Requests take what slots are free, and all that run get up to capacity.steps tokens."""
        parts = [Part(n, [], [], [], finish="cancelled") for n in self._cancelled]
        self._cancelled = []
        for slot in range(len(self._slots)):
            while self._slots[slot] is None and self._waiting:
                _, one = self._waiting.popitem(last=False)
                parts.append(self._enter(slot, one))
        parts += self._failed()
        if self.running:
            parts += self._decode()
        return parts

    def run(self) -> list[Part]:
        """Steps until nothing is left to do; each request's parts joined, by number."""
        done: dict[int, Part] = {}
        while self.busy:
            for part in self.step():
                old = done.get(part.number)
                done[part.number] = part if old is None else joined(old, part)
        return [done[number] for number in sorted(done)]

    def _enter(self, slot: int, one: _Running) -> Part:
        """The first part of a request, which is in the slot from here on unless it has ended."""
        size, prompt = self.capacity.chunk, one.prompt
        whole = (len(prompt) - 1) // size  # the last token is computed: its logits are needed
        pages = self._prefixes.find(prompt, whole)
        done: slots.Prefilled | None = None
        cache = None
        if pages:
            cache = slots.paste(self._model, self._room(len(pages) * size), tuple(pages))
        for i in range(len(pages), whole + 1):
            ids = prompt[i * size : (i + 1) * size]
            width = size if len(ids) == size else token_sampling.bucket(len(ids))
            tokens = np.zeros((1, width), np.int32)
            tokens[0, : len(ids)] = ids
            room, count = self._room(i * size + width), jnp.asarray(len(ids), jnp.int32)
            if cache is None:
                done = slots.begin(self._model, room, self._params, tokens, count)
            else:
                done = slots.go_on(self._model, room, self._params, cache, tokens, count)
            cache = done.cache
            if i < whole and self._prefixes.room:
                entries = slots.page(self._model, size, cache, jnp.asarray(i * size, jnp.int32))
                self._prefixes.add(prompt, i, entries)
        assert done is not None
        row = self._first(done, one)
        self._insert(slot, row, one)
        part = self._part(slot, one, jax.device_get(row.out), 0)
        return part._replace(cached=len(pages) * size)

    def _first(self, done: slots.Prefilled, one: _Running) -> sampling_loop.State:
        tokens = np.zeros((1, token_sampling.bucket(len(one.prompt))), np.int32)
        tokens[0, : len(one.prompt)] = one.prompt
        count = jnp.asarray(len(one.prompt), jnp.int32)
        rows = sampling_settings.rows_of([one.sampling], 1)
        rows = self._constrained(rows, [one])
        return slots.first_token(self._model, self.capacity.length, done, tokens, count, rows)

    def _insert(self, slot: int, row: sampling_loop.State, one: _Running) -> None:
        room = row.cache.at.segments.shape[1]
        if self._state is None:
            self._state = slots.free(self._model, self.capacity.slots, row)
        have = self._state.cache.at.segments.shape[1]
        if room > have:
            self._state = slots.widened(self._model, room, self._state)
        if row.text is not None or self._state.text is not None:
            row = slots.with_text(self.capacity.length, row)
            self._state = slots.with_text(self.capacity.length, self._state)
        index = jnp.asarray(slot, jnp.int32)
        self._state = slots.insert(self._model, max(room, have), self._state, index, row)
        self._slots[slot] = one
        self._set_rows()

    def _failed(self) -> list[Part]:
        """The ends of requests whose constraint has become too complex."""
        parts = []
        for slot, one in enumerate(self._slots):
            fault = None if one is None or one.matcher is None else one.matcher.fault()
            if one is not None and fault is not None:
                self._leave(slot)
                parts.append(Part(one.number, [], [], [], fault, "failed"))
        return parts

    def _decode(self) -> list[Part]:
        """The parts of all slots that are taken, up to capacity.steps tokens on."""
        assert self._state is not None
        filled = np.asarray(self._state.cache.filled)
        taken = [slot for slot, one in enumerate(self._slots) if one is not None]
        running = [self._slots[slot] for slot in taken]
        constrained = any(one is not None and one.matcher is not None for one in running)
        steps = 1 if constrained else self.capacity.steps  # what is allowed depends on each token
        rows = self._constrained(self._rows, self._slots)
        room = self._room(max(int(filled[slot]) for slot in taken) + steps)
        have = self._state.cache.at.segments.shape[1]
        if room > have or 2 * room < have:
            self._state = slots.widened(self._model, room, self._state)
        before = np.asarray(self._state.out.lengths)
        self._state = slots.decode(self._model, steps, self._params, self._state, rows)
        out = jax.device_get(self._state.out)
        parts = []
        for slot in taken:
            one = self._slots[slot]
            assert one is not None
            parts.append(self._part(slot, one, out, int(before[slot])))
        return parts

    def _part(self, slot: int, one: _Running, out: sampling_loop.Generation, before: int) -> Part:
        """Additions of `out` to the request in a slot, which leaves it if it has ended. out is of
        the request's row alone, or of all slots."""
        r = slot if len(out.finish) > 1 or self.capacity.slots == 1 else 0
        count, code = int(out.lengths[r]) - before, int(out.finish[r])
        tokens = out.tokens[r, before : before + count].tolist()
        if not np.isfinite(out.log_probs[r, before : before + count]).all():
            raise FloatingPointError(
                f"request {one.number}: the model's logits are not finite; are the weights?"
            )
        finish, text = None if code == sampling_loop.RUNNING else token_sampling.FINISH[code], ""
        if one.watch is not None:
            shown = count - (code == sampling_loop.STOP_TOKEN)
            start = one.watch.tokens
            for token in tokens[:shown]:
                one.watch.push(token)
                if one.watch.stopped:
                    count, finish = one.watch.tokens - start, "stop_string"
                    break
            text = one.watch.take() + (one.watch.finish() if finish is not None else "")
        if finish is not None:
            self._leave(slot)
        if one.matcher is not None and finish is None:
            for token in tokens:
                one.matcher.take(token)
        raw = out.log_probs[r, before : before + count]
        support = out.support_log_probs[r, before : before + count]
        return Part(one.number, tokens[:count], raw.tolist(), support.tolist(), text, finish)

    def _leave(self, slot: int) -> None:
        """The slot is free, and no longer decoded."""
        assert self._state is not None
        self._slots[slot] = None
        self._state = slots.end(self._state, jnp.asarray(slot, jnp.int32))

    def _constrained(
        self, rows: sampling_loop.Rows, requests: Sequence[_Running | None]
    ) -> sampling_loop.Rows:
        """The rows with the tokens that each request's constraint allows next, if any has one."""
        if all(one is None or one.matcher is None for one in requests):
            return rows
        allowed = np.ones((len(requests), self._checked.cfg.vocab), bool)
        for r, one in enumerate(requests):
            if one is not None and one.matcher is not None:
                allowed[r] = one.matcher.allowed()
        return rows._replace(controls=rows.controls._replace(allowed=jnp.asarray(allowed)))

    def _set_rows(self) -> None:
        idle = Sampling(temperature=0.0)
        settings = [idle if one is None else one.sampling for one in self._slots]
        self._rows = sampling_settings.rows_of(settings, len(settings))

    def _room(self, tokens: int) -> int:
        """Slots a row of the cache for so many tokens, in few sizes: whole blocks, so that sums
        over slots are the same bits in each size (`ops.attention.BLOCK`), or one size that is
        less."""
        blocks = token_sampling.bucket(-(-tokens // attention.BLOCK), 1)
        most = self.capacity.room
        return most if most % attention.BLOCK else min(attention.BLOCK * blocks, most)


def joined(a: Part, b: Part) -> Part:
    """Two parts of a request, one after the other, as one."""
    support = a.support_log_probs + b.support_log_probs
    return Part(
        a.number,
        a.tokens + b.tokens,
        a.log_probs + b.log_probs,
        support,
        a.text + b.text,
        b.finish,
        a.cached,
    )
