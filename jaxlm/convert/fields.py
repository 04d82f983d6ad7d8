"""Reading a `config.json` so that nothing in it is overlooked: every field is taken or refused."""

from collections.abc import Mapping
from typing import Any

# What no model's mathematics depends on: training, generation, file and library facts.
COMMON = frozenset({
    "_name_or_path", "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "classifier_dropout",
    "decoder_start_token_id",
    "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing", "id2label",
    "initializer_factor", "initializer_range", "is_decoder", "is_encoder_decoder",
    "keys_to_ignore_at_inference", "label2id", "model_type", "output_attentions",
    "output_hidden_states", "output_past",
    "output_router_logits", "pad_token_id", "prefix", "pretraining_tp", "problem_type",
    "return_dict",
    "sep_token_id", "task_specific_params", "tokenizer_class", "torch_dtype",
    "transformers_version", "unk_token_id", "use_cache",
})  # fmt: skip

# transformers' names of nonlinearities -> those of models/ffn.py. Of several the first is written.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "relu": "relu",
    "relu2": "relu2", "silu": "silu", "swish": "silu",
}  # fmt: skip


def activation(ours: str) -> str:
    """transformers' name of one of our nonlinearities."""
    return next(theirs for theirs, known in ACTIVATIONS.items() if known == ours)


def fixed(cfg: Any, **values: Any) -> None:
    """Nothing, if these fields of a Config are what an architecture always has.

    Raises: ValueError naming the first that is not: a config.json cannot say it.
    """
    for name, value in values.items():
        if getattr(cfg, name) != value:
            raise ValueError(
                f"model.{name}={getattr(cfg, name)!r} cannot be said; it is always {value!r}"
            )


class Fields:
    """A `config.json` that remembers which of its fields were read.

    Every method raises ValueError naming the field, what it is, and what is supported here.
    """

    def __init__(self, record: Mapping[str, Any], where: str = "config.json"):
        self._record, self._where = dict(record), where
        self._left = set(record) - COMMON

    def take(self, name: str, *aliases: str) -> Any:
        """A field's value. Raises: ValueError where it is missing under all of its names, or where
        two of them contradict each other."""
        found = {k: self._record[k] for k in (name, *aliases) if k in self._record}
        self._left -= set(found)
        if not found:
            raise ValueError(f"{self._where}: {name} is missing")
        if any(value != next(iter(found.values())) for value in found.values()):
            raise ValueError(f"{self._where}: {found} are one field and differ")
        return next(iter(found.values()))

    def get(self, name: str, default: Any, *aliases: str) -> Any:
        """A field's value, or the default of transformers where it is absent or null."""
        found = [k for k in (name, *aliases) if k in self._record]
        self._left -= set(found)
        value = next((self._record[k] for k in found if self._record[k] is not None), None)
        return default if value is None else value

    def maybe(self, name: str, default: Any) -> Any:
        """A field's value, where null is a value too; the default of transformers where absent."""
        return self.take(name) if name in self._record else default

    def only(self, name: str, default: Any, *allowed: Any) -> Any:
        """A field that has to have one of these values (the default among them)."""
        value = self.get(name, default)
        if value not in (default, *allowed):
            raise ValueError(
                f"{self._where}: {name}={value!r} is not supported; there is "
                f"{sorted({repr(v) for v in (default, *allowed)})}"
            )
        return value

    def among(self, name: str, default: str, known: Mapping[str, Any]) -> Any:
        """What `known` holds for a field's value."""
        value = self.get(name, default)
        if value not in known:
            raise ValueError(
                f"{self._where}: {name}={value!r} is not supported; there is {sorted(known)}"
            )
        return known[value]

    def part(self, name: str) -> "Fields":
        """A field that is a record, to be read (and its rest refused) like the whole."""
        return Fields(self.take(name), f"{self._where}: {name}")

    def skip(self, *names: str) -> None:
        """Fields that are known to change nothing here."""
        self._left -= set(names)

    def refuse_rest(self) -> None:
        """Raises: ValueError for fields that nothing has read and that say something: an unknown
        field may change what the model computes. Null, false, 0 and empty values say nothing."""
        rest = {k: self._record[k] for k in sorted(self._left) if self._record[k]}
        if rest:
            raise ValueError(
                f"{self._where}: unknown fields {rest}; a model that may compute something else is "
                "not imported"
            )
