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
from jaxlm.decode.serve import capacities, lanes, prefix_cache, slots
from jaxlm.decode.serve.capacities import Capacity
from jaxlm.decode.serve.lanes import Lane, Running
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models.model import Model
from jaxlm.parallel import devices

TOP = 20  # likeliest tokens of a place, at most


class Part(NamedTuple):
    """Addition of a step to a request.

    number: as `submit` returned it. tokens, log_probs, support_log_probs: of the new tokens, as in
    `sampling_loop.Generation`. text: the new text that is certain, "" without a tokenizer. finish:
    None while it runs, else "stop_token", "stop_string", "length", "cancelled" or "failed": its
    constraint could not be followed, and text says why. cached: of the first part, the prompt's
    tokens that were not computed again. top: of each new token's place, the likeliest tokens and
    their log-probabilities under the model's own softmax, as many as were asked for.
    """

    number: int
    tokens: list[int]
    log_probs: list[float]
    support_log_probs: list[float]
    text: str = ""
    finish: str | None = None
    cached: int = 0
    top: list[list[tuple[int, float]]] = []


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
        self._model = capacities.cached(model, capacity)._replace(spec=None)
        self._checked = model
        self._params = token_sampling.prepare(model, params)
        self.cache_bytes = slots.cache_bytes(self._model, self._params, capacity)
        what = f"capacity: the cache of {capacity.slots} slots of {capacity.length:,} tokens"
        if capacity.short_slots:
            what += f" and {capacity.short_slots} of {capacity.short:,}"
        devices.check(what, self.cache_bytes)
        self._tokenizer = tokenizer
        self._prefixes = prefix_cache.Prefixes(int(capacity.prefix_mib * 2**20), capacity.chunk)
        self._waiting: collections.OrderedDict[int, Running] = collections.OrderedDict()
        shared = self._model, self._params, capacity
        self._lanes = [Lane(*shared, capacity.slots, capacity.room)]  # from the shortest slots on
        if capacity.short_slots:
            room, short = capacity.short_room, capacity.short
            self._lanes.insert(0, Lane(*shared, capacity.short_slots, room, short))
        self._cached: dict[int, int] = {}  # of requests that have no part yet
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
        return sum(len(lane.taken) for lane in self._lanes)

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
        top: int = 0,
    ) -> int:
        """The number of a new request. prompt: token ids, at least one. constraint: what the
        continuation has to match; support_log_probs are of the tokens that it allows. top: how many
        of the likeliest tokens of each place its parts name.

        Raises: ValueError, before any compute, for what `token_sampling.generate` refuses, for a
        request that has more tokens than capacity.length, with the max_new that would fit, and for
        a constraint that cannot be read; ImportError without the extra `constrain`.
        """
        matcher = self.check(prompt, sampling, constraint, top)
        watch = None
        ids = [int(token) for token in prompt]
        if self._tokenizer is not None:
            watch = stop_strings.Watch(self._tokenizer, ids, sampling.stop_strings)
        number, self._next = self._next, self._next + 1
        self._waiting[number] = Running(number, ids, sampling, watch, matcher, top)
        return number

    def check(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        constraint: constraints.Constraint | None = None,
        top: int = 0,
    ) -> constraints.Matcher | None:
        """The matcher of the constraint. Raises: as `submit`."""
        most = min(TOP, self._checked.cfg.vocab)
        check.field("top", top, 0 <= top <= most, f"0 to {most}")
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
        for lane in self._lanes:
            for slot in lane.taken:
                if _request(lane, slot).number == number:
                    self._leave(lane, slot, False)
                    self._cancelled.append(number)
                    return True
        return False

    def step(self) -> list[Part]:
        """Requests take what slots are free, and all that run get up to capacity.steps tokens."""
        parts = [Part(n, [], [], [], finish="cancelled") for n in self._cancelled]
        self._cancelled = []
        self._move()
        parts += self._admit()
        parts += self._failed()
        # what is allowed depends on each token
        steps = 1 if any(one.matcher for one in self._running()) else self.capacity.steps
        begun = [(lane, lane.decode(steps)) for lane in self._lanes]
        for lane, news in begun:
            if news is not None:
                parts += self._parts(lane, jax.device_get(news))
        return parts

    def run(self) -> list[Part]:
        """Steps until nothing is left to do; each request's parts joined, by number."""
        done: dict[int, Part] = {}
        while self.busy:
            for part in self.step():
                old = done.get(part.number)
                done[part.number] = part if old is None else joined(old, part)
        return [done[number] for number in sorted(done)]

    def _running(self) -> list[Running]:
        return [_request(lane, slot) for lane in self._lanes for slot in lane.taken]

    def _move(self) -> None:
        """Texts that have outgrown their slots go on in larger ones that are free."""
        for small, large in zip(self._lanes, self._lanes[1:]):
            for old, new in zip(small.outgrown, large.free):
                one, known, row = small.lift(old)
                large.insert([new], [one], row)
                large.know(new, known)

    def _admit(self) -> list[Part]:
        """Waiting requests take free slots, the first to come first; the parts of those whose next
        token depends on their first. Prompts of one chunk are read together where they are of one
        width."""
        parts: list[Part] = []
        groups: dict[tuple[int, int], list[tuple[int, Running]]] = {}
        free = [lane.free for lane in self._lanes]
        for one in list(self._waiting.values()):
            number = next(i for i, lane in enumerate(self._lanes) if lane.takes(one.prompt))
            if not any(free):
                break
            if not free[number]:
                continue
            slot = free[number].pop(0)
            del self._waiting[one.number]
            if len(one.prompt) > self.capacity.chunk:
                parts += self._enter(self._lanes[number], [(slot, one)], self._read(one))
                continue
            width = self.capacity.columns(len(one.prompt))
            group = groups.setdefault((number, width), [])
            group.append((slot, one))
            if len(group) == self.capacity.together:
                parts += self._together(self._lanes[number], groups.pop((number, width)), width)
        for (number, width), group in groups.items():
            parts += self._together(self._lanes[number], group, width)
        return parts

    def _together(self, lane: Lane, group: list[tuple[int, Running]], width: int) -> list[Part]:
        """The parts of a group whose prompts are one chunk each."""
        tokens, count = _padded([one.prompt for _, one in group], self.capacity.together, width)
        room = self.capacity.sized(width, self.capacity.room)
        done = slots.begin(self._model, room, self._params, tokens, count)
        return self._enter(lane, group, done)

    def _read(self, one: Running) -> slots.Prefilled:
        """A prompt of several chunks, from those on that are kept."""
        size, prompt, most = self.capacity.chunk, one.prompt, self.capacity.room
        whole = (len(prompt) - 1) // size  # the last token is computed: its logits are needed
        pages = self._prefixes.find(prompt, whole)
        self._cached[one.number] = len(pages) * size
        done: slots.Prefilled | None = None
        cache = None
        if pages:
            room = self.capacity.sized(len(pages) * size, most)
            cache = slots.paste(self._model, room, pages[0])
        for kept in pages[1:]:
            cache = slots.append(self._model, cache, kept)
        for i in range(len(pages), whole + 1):
            ids = prompt[i * size : (i + 1) * size]
            width = self.capacity.columns(len(ids))
            tokens, count = _padded([ids], 1, width)
            room = self.capacity.sized(i * size + width, most)
            if cache is None:
                done = slots.begin(self._model, room, self._params, tokens, count)
            else:
                done = slots.go_on(self._model, room, self._params, cache, tokens, count)
            cache = done.cache
            if i < whole and self._prefixes.room:
                entries = slots.page(self._model, size, cache, np.int32(i * size))
                self._prefixes.add(prompt, i, entries)
        assert done is not None
        return done

    def _enter(
        self, lane: Lane, group: list[tuple[int, Running]], done: slots.Prefilled
    ) -> list[Part]:
        """Requests that were read get their first tokens and are in their slots; the parts of all
        of them, if the next token of one depends on its first."""
        index, requests = zip(*group, strict=True)
        prompts = [one.prompt for one in requests]
        width = self.capacity.width(max(map(len, prompts)))
        tokens, count = _padded(prompts, len(done.raw), width)
        rows = sampling_settings.rows_of([one.sampling for one in requests], len(count))
        rows = lanes.constrained(rows, requests, self._checked.cfg.vocab)
        top = min(TOP, self._checked.cfg.vocab) if any(one.top for one in requests) else 0
        columns = self.capacity.length
        row = slots.first_token(self._model, columns, top, done, tokens, count, rows)
        lane.insert(index, requests, row)
        if all(one.matcher is None for one in requests):
            return []
        news = jax.device_get(slots.news(row, jnp.zeros_like(row.last), 1))
        return [self._part(lane, slot, news, r) for r, slot in enumerate(index)]

    def _failed(self) -> list[Part]:
        """The ends of requests whose constraint has become too complex."""
        parts = []
        for lane in self._lanes:
            for slot in lane.taken:
                one = _request(lane, slot)
                fault = None if one.matcher is None else one.matcher.fault()
                if fault is not None:
                    self._leave(lane, slot, False)
                    parts.append(Part(one.number, [], [], [], fault, "failed"))
        return parts

    def _parts(self, lane: Lane, news: slots.News) -> list[Part]:
        """The parts of a lane's requests, but of those that wait for a larger slot."""
        going = [slot for slot in lane.taken if slot not in lane.outgrown]
        return [self._part(lane, slot, news, slot) for slot in going]

    def _part(self, lane: Lane, slot: int, news: slots.News, r: int) -> Part:
        """Additions, row r of the news, to the request in a slot, which leaves it if it has
        ended."""
        one, total, code = _request(lane, slot), int(news.lengths[r]), int(news.finish[r])
        count = total - lane.known(slot)
        lane.know(slot, total)
        tokens = news.tokens[r, :count].tolist()
        if not np.isfinite(news.log_probs[r, :count]).all():
            raise FloatingPointError(
                f"request {one.number}: the model's logits are not finite; are the weights?"
            )
        ended = code == sampling_loop.STOP_TOKEN or total >= one.sampling.max_new
        finish, text = token_sampling.FINISH[code] if ended else None, ""
        if one.watch is not None:
            shown = count - (code == sampling_loop.STOP_TOKEN)
            start = one.watch.tokens
            for token in tokens[:shown]:
                one.watch.push(token)
                if one.watch.stopped:
                    count, finish = one.watch.tokens - start, "stop_string"
                    break
            text = one.watch.take() + (one.watch.finish() if finish is not None else "")
        cached = self._cached.pop(one.number, 0)
        if finish is not None:
            self._leave(lane, slot, ended)
        elif one.matcher is not None:
            for token in tokens:
                one.matcher.take(token)
        raw, support = news.log_probs[r, :count], news.support_log_probs[r, :count]
        top = _likeliest(news.top, r, count, one.top)
        scores = raw.tolist(), support.tolist()
        return Part(one.number, tokens[:count], *scores, text, finish, cached, top)

    def _leave(self, lane: Lane, slot: int, ended: bool) -> None:
        """The slot is free, and no longer decoded. ended: whether the device knows that."""
        self._cached.pop(_request(lane, slot).number, None)
        lane.leave(slot, ended)


def _request(lane: Lane, slot: int) -> Running:
    one = lane.requests[slot]
    assert one is not None
    return one


def _padded(prompts: Sequence[list[int]], rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32[rows, width], how many of each are there, int32[rows])."""
    tokens, count = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
    for r, ids in enumerate(prompts):
        tokens[r, : len(ids)], count[r] = ids, len(ids)
    return tokens, count


def _likeliest(
    top: sampling_loop.Top | None, r: int, places: int, most: int
) -> list[list[tuple[int, float]]]:
    """The `most` likeliest tokens of the first places of a row."""
    if top is None or not most:
        return []
    tokens, scores = (x[r, :places, :most].tolist() for x in top)
    return [list(zip(*pair, strict=True)) for pair in zip(tokens, scores, strict=True)]


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
        a.top + b.top,
    )
