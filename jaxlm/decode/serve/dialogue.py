"""A conversation with one model: its messages, the next answer as a stream, and what is left out.

    talk = Dialogue(model, params, tokenizer, data, layout, Sampling(), length=1024)
    for piece in talk.say("Hi"): ...
    for piece in talk.again(): ...

The conversation's beginning is in the engine's prefix cache: an answer computes the tokens that
came since the last one, up to a chunk of them.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator

from jaxlm.core import param
from jaxlm.data import kinds
from jaxlm.data.records import chat_formats, records
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import completions, prompt_tokens, sampling_settings
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.prompt_tokens import Turn
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.decode.serve.capacities import Capacity
from jaxlm.decode.serve.engine import Engine
from jaxlm.models.model import Model

FIXED = 4096  # tokens of a conversation, for which every program is compiled once


class Dialogue:
    """messages: those of user and assistant, in turn. system: the message before them, None for the
    run's own or none. left_out: oldest messages without room in the last answer's prompt. cached:
    tokens of that prompt that were not computed again. stopped: whether it was cut."""

    def __init__(
        self,
        model: Model,
        params: param.Tree,
        tokenizer: tokenizers.Tokenizer,
        data: kinds.AnyData,
        layout: template.Template,
        sampling: Sampling,
        length: int,
        constraint: Constraint | None = None,
    ):
        """data, layout: as `prompt_tokens.asked` has them. length: tokens of the conversation that
        the model reads, an answer's among them. Answer i has the seed sampling.seed + i.

        Raises: ValueError as `Engine`, and for more than one continuation.
        """
        sampling_settings.check_single(sampling, "a conversation goes on with one answer")
        self.messages: list[Message] = []
        self.system: str | None = None
        self.left_out = 0
        self.cached = 0
        self.stopped = False
        self._tokenizer, self._data, self._layout = tokenizer, data, layout
        self._base = layout
        self._sampling = completions.with_eos(tokenizer, sampling)
        self._constraint = constraint
        self._length = length
        self._answers = 0
        # a token at a time: each is shown, and may be the last
        self._engine = Engine(model, params, Capacity(1, length, steps=1, fixed=FIXED), tokenizer)

    def warm(self) -> None:
        """Compile the programs of all answers, but for conversations of more than FIXED tokens:
        begin two answers that nobody reads to a prompt of three chunks, the second from the first
        one's prefix.

        Raises: ValueError as `Engine.submit`.
        """
        size, length = self._engine.capacity.chunk, self._length
        room = length - min(self._sampling.max_new, max(1, length // 4))
        tokens = [tokenizers.begin(self._tokenizer)] * max(1, min(2 * size + 1, room))
        turn = Turn(tokens, template.stops(self._layout, self._tokenizer))
        for _ in range(2):
            number = self._engine.submit(turn.tokens, self._settings(turn), self._constraint)
            for _ in range(3):
                self._engine.step()
            self._engine.cancel(number)
            self._engine.step()

    @property
    def unanswered(self) -> bool:
        """Whether the last message is another than the assistant's."""
        return bool(self.messages) and self.messages[-1].role != "assistant"

    def say(self, text: str, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Pieces of the answer to the user's next message; see `answer`."""
        self.messages.append(Message("user", text))
        return self.answer(stop)

    def again(self, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Pieces of another answer to the user's last message. Raises: ValueError if there is none;
        then as `answer`."""
        if all(message.role != "user" for message in self.messages):
            raise ValueError("nothing was asked yet")
        while self.messages[-1].role != "user":
            self.messages.pop()
        return self.answer(stop)

    def answer(self, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Pieces of the answer to the messages so far, as soon as they are certain. It is added to
        the messages when it ends, and when stop() is true, as far as it came: without a word the
        message that it answers goes, too.

        Raises: ValueError, while iterating, for a message that has no room or that the template
        refuses: it is taken back.
        """
        try:
            turn = self._fitted()
            yield from self._pieces(turn, stop)
        except ValueError:
            self.undo()
            raise

    def _settings(self, turn: Turn) -> Sampling:
        """The settings of the next answer."""
        seed = (self._sampling.seed + self._answers) % 2**32
        limit = min(self._sampling.max_new, self._length - len(turn.tokens))
        least = min(self._sampling.min_new, limit)
        limited = dataclasses.replace(self._sampling, seed=seed, max_new=limit, min_new=least)
        return prompt_tokens.stopping(limited, turn.stops)

    def _pieces(self, turn: Turn, stop: Callable[[], bool]) -> Iterator[str]:
        number = self._engine.submit(turn.tokens, self._settings(turn), self._constraint)
        self._answers += 1
        said, self.stopped, first = "", False, True
        while self._engine.busy:
            for part in self._engine.step():
                if part.number != number:
                    continue
                if part.finish == "failed":
                    raise ValueError(part.text)
                self.cached, first = (part.cached, False) if first else (self.cached, False)
                said += part.text
                if part.text:
                    yield part.text
            if not self.stopped and stop():
                self.stopped = self._engine.cancel(number)
        if self.stopped and not said.strip():
            self.undo()
        else:
            self.messages.append(Message("assistant", said.strip()))

    def undo(self) -> None:
        """Take back the user's last message and all that followed it."""
        while self.messages and self.messages.pop().role != "user":
            pass
        self.left_out = 0

    def reset(self) -> None:
        """Begin anew; the system message stays."""
        self.messages, self.left_out, self._layout = [], 0, self._base

    def set_system(self, text: str | None) -> None:
        """Give another system message; None is the run's own, or none. Raises: ValueError for a
        template that refuses or drops it."""
        if text is not None:
            question = Message("user", "a")
            bare = template.prompt(self._base, self._tokenizer, [question])
            given = [Message("system", text), question]
            try:
                headed = template.prompt(self._base, self._tokenizer, given)
            except ValueError as error:
                raise ValueError(f"system: {error}") from error
            if headed.tolist() == bare.tolist():
                name = self._base.name
                raise ValueError(f"system: template {name!r} does not write system messages")
        self.system, self.left_out = text, 0

    def save(self, file: str | os.PathLike[str]) -> None:
        """Add the conversation to a file of JSON lines, as `messages`, which training reads."""
        rows = [{"role": m.role, "content": m.text, **m.fields()} for m in self._headed(0)]
        with pathlib.Path(file).expanduser().open("a", encoding="utf-8") as out:
            out.write(json.dumps({"messages": rows}, ensure_ascii=False) + "\n")

    def load(self, file: str | os.PathLike[str]) -> None:
        """Go on with the last conversation of a file, in any layout that training reads.

        Raises: FileNotFoundError; ValueError for a file that holds none, for one of another form,
        and where the template refuses it; nothing changes then.
        """
        *_, last = records.read(pathlib.Path(file).expanduser())
        *_, conversation = chat_formats.read(last, None, self._base.between)
        layout = template.given(self._base, conversation.variables)
        given = conversation.messages
        template.prompt(layout, self._tokenizer, given)
        system = given[0].text if given[0].role == "system" else None
        self.messages = list(given if system is None else given[1:])
        self.system, self._layout, self.left_out = system, layout, 0

    def _headed(self, first: int) -> list[Message]:
        head = [] if self.system is None else [Message("system", self.system)]
        return [*head, *self.messages[first:]]

    def _fitted(self) -> Turn:
        """The prompt of the next answer, without the oldest exchanges where they have no room."""
        wanted = min(self._sampling.max_new, max(1, self._length // 4))
        while True:
            messages = self._headed(self.left_out)
            turn = prompt_tokens.asked(self._data, self._layout, self._tokenizer, messages)
            left = self._length - len(turn.tokens)
            later = range(self.left_out + 1, len(self.messages))
            following = next((i for i in later if self.messages[i].role == "user"), None)
            if left >= wanted or (following is None and left > 0):
                return turn
            if following is None:
                raise ValueError(
                    f"the message makes {len(turn.tokens)} tokens, and {self._length} are all that "
                    "the model is given; say it in fewer words"
                )
            self.left_out = following
