"""The kinds of data a run may read, with their contents. To add one: a file, and a line here.

pretraining text: the next token of documents, hidden tokens, missing spans
chat        conversations, of which the assistant's part is learnt
prefer      preferences between responses
prompts     prompts of a policy (`train.rollout`)

All others are examples (`examples.Rows`), read from records. Such a module has a frozen dataclass
with at least the fields source, tokenizer, holdout, seq, batch, seed and workers and a method
`problems()`, and a function `prepare(data) -> examples.Split`.
"""

from types import ModuleType

import numpy as np

from jaxlm.data import pretraining, tokenizers
from jaxlm.data.records import chats, examples, preferences, prompts
from jaxlm.data.tokenizers import tokenizer as interface

# Types of a Run's `data` field.
AnyData = chats.Chats | pretraining.Data | preferences.Preferences | prompts.Prompts

_ROWS = 1024  # examples looked at together

# The module of each kind of examples.
EXAMPLES: dict[type, ModuleType] = {
    chats.Chats: chats,
    preferences.Preferences: preferences,
    prompts.Prompts: prompts,
}


def stages(data: AnyData) -> list[pretraining.Stage]:
    """The run's changes of shape; examples have one shape from first to last."""
    if isinstance(data, pretraining.Data):
        return pretraining.stages(data)
    return [pretraining.Stage(0, 0, data.batch, data.seq, data.batch)]


def prepare(data: AnyData, evaluated: bool, vocab: int) -> examples.Split:
    """The examples of this data, for a model of `vocab` ids.

    Raises: as reading it; ValueError if a run that is evaluated would have nothing held out, and
    for an id that the model lacks, where its tokenizer has more.
    """
    split = EXAMPLES[type(data)].prepare(data)
    if evaluated and split.val is None:
        raise ValueError(
            f"data.holdout: {data.holdout} leaves none of the {len(split.train)} examples of "
            f"{data.source} to evaluate on; raise it, or set eval_every to None"
        )
    if tokenizers.load(data.tokenizer).vocab > vocab:
        for rows in (rows for rows in (split.train, split.val) if rows is not None):
            for first in range(0, len(rows), _ROWS):
                part = rows.read(np.arange(first, min(first + _ROWS, len(rows))))
                where = f"{data.source}, examples from {first} on"
                interface.check_known(part.tokens, vocab, where)
    return split
