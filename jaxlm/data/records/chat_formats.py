"""Records to conversations: the layouts in which instructions and dialogues are published.

    alpaca              {"instruction": "...", "input": "...", "output": "..."}, or "instances" of
                        input and output
    dolly               {"instruction": "...", "context": "...", "response": "..."}
    sharegpt            {"conversations": [{"from": "human", "value": "..."}, ...]}
    messages            {"messages": [{"role": "user", "content": "..."}, ...]}
    oasst               {"prompt": {"text": "...", "role": "prompter", "replies": [...]}}
    prompt_completion   {"prompt": "...", "completion": "..."}, or FLAN's inputs and targets

A record's layout is seen from its fields unless it is named. In each, `system` may hold the system
message; `tools`, `documents` and `chat_template_kwargs` go to the chat template along with the
messages (messages.py).
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from jaxlm.data.records import messages as reading
from jaxlm.data.records import records
from jaxlm.data.records.messages import Message
from jaxlm.data.records.records import Record

Format = Literal["alpaca", "dolly", "sharegpt", "messages", "oasst", "prompt_completion"]
Tree = Literal["best", "all"]


class Conversation(NamedTuple):
    """Messages, which of them are learnt (only the assistant's can be), and where they are from.
    variables: inputs of the template other than messages."""

    messages: tuple[Message, ...]
    learnt: tuple[bool, ...]
    origin: str
    variables: dict[str, Any] = {}

    def headed(self, messages: tuple[Message, ...]) -> "Conversation":
        """The conversation with more messages at its head, which are not learnt."""
        more = len(messages) - len(self.messages)
        return self._replace(messages=messages, learnt=(*(more * (False,)), *self.learnt))


def read(
    record: Record, layout: Format | None, between: str, tree: Tree = "best"
) -> Iterator[Conversation]:
    """The conversations of a record; several where it is a tree or has several instances.

    between: the text between an instruction and its input. tree: of an OpenAssistant tree, the
    path of the best-ranked replies, or every path, each message learnt once.

    Raises: ValueError naming the record's place and the field that is missing or wrong.
    """
    format = detect(record) if layout is None else layout
    variables = reading.variables(record)
    for conversation in _READERS[format](record, between, tree):
        headed = conversation.headed(reading.with_system(record, conversation.messages))
        yield headed._replace(variables=variables) if variables else headed


def detect(record: Record) -> Format:
    """The layout of a record. Raises: ValueError if it is none of them."""
    has = record.value.keys()
    if "messages" in has:
        return "messages"
    if "conversations" in has:
        return "sharegpt"
    if isinstance(record.value.get("prompt"), dict):
        return "oasst"
    if "instruction" in has:
        return "dolly" if "response" in has else "alpaca"
    if has & {"prompt", "inputs"}:
        return "prompt_completion"
    raise ValueError(
        f"{record.origin}: fields {sorted(has)} are of no known layout; there are "
        f"{list(_READERS)} (see docs/sft.md)"
    )


def opening(conversation: Conversation) -> str:
    """The messages before the first answer, by which conversations are held out."""
    messages = []
    for message in conversation.messages:
        if message.role == "assistant":
            break
        messages.append(message.plain())
    return records.key(messages)


def _whole(messages: list[Message], origin: str) -> Conversation:
    return Conversation(tuple(messages), tuple(m.role == "assistant" for m in messages), origin)


def _instructed(instruction: str, about: str, answer: str, between: str, origin: str) -> Any:
    prompt = f"{instruction}{between}{about}" if about else instruction
    return _whole([Message("user", prompt), Message("assistant", answer)], origin)


def _optional(record: Record, name: str) -> str:
    return "" if record.value.get(name) is None else records.text(record, name)


def _alpaca(record: Record, between: str, tree: Tree) -> Iterator[Conversation]:
    instruction = records.text(record, "instruction")
    if "instances" not in record.value:
        about, answer = _optional(record, "input"), records.text(record, "output")
        yield _instructed(instruction, about, answer, between, record.origin)
        return
    for part in _parts(record, "instances"):
        about, answer = _optional(part, "input"), records.text(part, "output")
        yield _instructed(instruction, about, answer, between, part.origin)


def _dolly(record: Record, between: str, tree: Tree) -> Iterator[Conversation]:
    instruction, about = records.text(record, "instruction"), _optional(record, "context")
    answer = records.text(record, "response")
    yield _instructed(instruction, about, answer, between, record.origin)


_SPEAKERS = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bing": "assistant", "bard": "assistant",
    "system": "system", "developer": "system", "tool": "tool",
}  # fmt: skip


def _sharegpt(record: Record, between: str, tree: Tree) -> Iterator[Conversation]:
    yield _weighed(record, "conversations")


def _messages(record: Record, between: str, tree: Tree) -> Iterator[Conversation]:
    yield _weighed(record, "messages")


def _weighed(record: Record, name: str) -> Conversation:
    messages, learnt = [], []
    for part in _parts(record, name):
        messages.append(_message(part))
        # OpenAI's files, and ShareGPT's, may mark an assistant's message with "weight": 0.
        weight = part.value.get("weight")
        if weight not in (None, 0, 1):
            raise ValueError(f"{part.origin}: field 'weight' is {weight!r}; 0 or 1 is needed")
        learnt.append(messages[-1].role == "assistant" and weight != 0)
    return Conversation(tuple(messages), tuple(learnt), record.origin)


def _prompt_completion(record: Record, between: str, tree: Tree) -> Iterator[Conversation]:
    if any(isinstance(record.value.get(name), list) for name in ("prompt", "completion")):
        prompt = _turns(record, "prompt", "user")
        response = _turns(record, "completion", "assistant")
        question, answered = reading.joined(prompt, response, f"{record.origin}: completion")
        learnt = (*(False for _ in question), *(m.role == "assistant" for m in answered))
        yield Conversation((*question, *answered), learnt, record.origin)
        return
    question = records.text(record, "prompt", "inputs")
    answer = records.text(record, "completion", "response", "targets")
    yield _whole([Message("user", question), Message("assistant", answer)], record.origin)


def _turns(record: Record, name: str, role: str) -> tuple[Message, ...]:
    """The messages of a field: a list of them, or one text by `role`."""
    if isinstance(record.value.get(name), list):
        return tuple(_message(part) for part in _parts(record, name))
    return (Message(role, records.text(record, name)),)


def _parts(record: Record, name: str) -> list[Record]:
    if name not in record.value:
        raise records.missing(record, name)
    parts = record.value[name]
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{record.origin}: field {name!r} must be a list of objects")
    return [Record(part, f"{record.origin}: {name}[{i}]") for i, part in enumerate(parts)]


def _role(part: Record, name: str) -> str:
    speaker = records.text(part, name)
    if speaker not in _SPEAKERS:
        raise ValueError(
            f"{part.origin}: field {name!r} is {speaker!r}; expected one of {sorted(_SPEAKERS)}"
        )
    return _SPEAKERS[speaker]


def _message(part: Record) -> Message:
    """A message under OpenAI's names, or ShareGPT's."""
    who = "from" if "from" in part.value else "role"
    what = "value" if "value" in part.value else "content"
    role = _role(part, who)
    return reading.read(part.value, part.origin, who, what)._replace(role=role)


# --- Trees -----------------------------------------------------------------------------------


def _oasst(record: Record, between: str, tree: Tree) -> Iterator[Conversation]:
    """Köpf et al. 2023. Replies that were deleted or rejected in review are left out."""
    root = record.value.get("prompt")
    if not isinstance(root, dict):
        raise ValueError(f"{record.origin}: field 'prompt' must be an object with 'replies'")
    seen: set[tuple[int, ...]] = set()
    for path in _paths(Record(root, f"{record.origin}: prompt"), (), tree):
        messages, learnt = [], []
        for places, part in path:
            messages.append(Message(_role(part, "role"), records.text(part, "text")))
            learnt.append(messages[-1].role == "assistant" and places not in seen)
            seen.add(places)
        yield Conversation(tuple(messages), tuple(learnt), path[-1][1].origin)


_Path = list[tuple[tuple[int, ...], Record]]


def _paths(node: Record, places: tuple[int, ...], tree: Tree) -> Iterator[_Path]:
    """Paths from here to leaves: [(which reply at each depth, message), ...]."""
    replies = _parts(node, "replies") if node.value.get("replies") else []
    kept = [
        (i, reply)
        for i, reply in enumerate(replies)
        if not reply.value.get("deleted") and reply.value.get("review_result") is not False
    ]
    kept.sort(key=lambda numbered: _rank(numbered[1]))  # stable: equals stay in the file's order
    if not kept:
        yield [(places, node)]
    for i, reply in kept[: 1 if tree == "best" else len(kept)]:
        for path in _paths(reply, (*places, i), tree):
            yield [(places, node), *path]


def _rank(reply: Record) -> float:
    """0 is the best; what nobody ranked comes last."""
    rank = reply.value.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
        raise ValueError(f"{reply.origin}: field 'rank' is {rank!r}; a number is needed")
    return float("inf") if rank is None else float(rank)


_READERS: dict[str, Callable[[Record, str, Tree], Iterator[Conversation]]] = {
    "alpaca": _alpaca,
    "dolly": _dolly,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "oasst": _oasst,
    "prompt_completion": _prompt_completion,
}
