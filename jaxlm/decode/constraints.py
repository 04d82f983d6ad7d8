"""Continuations that match a choice, a regular expression, a JSON schema or a grammar (extra
`constrain`): llguidance computes which tokens may come next.

Tokens are allowed by their bytes, however the tokenizer would have cut the text. Where the text may
end, the stop tokens are allowed; where it must, they alone.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxlm.core import check
from jaxlm.data.tokenizers import tokenizer as tokenizers

# Else, where only one text is possible, only the tokens that the tokenizer would cut it into are.
ALL_CUTS = '%llguidance {"no_forcing": true}'
# JSON as `json.dumps` writes it, in llguidance's words: with any white space allowed, a model could
# go on with it until max_new.
FIXED = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

Whitespace = Literal["fixed", "free"]


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Form that a continuation has to match; one of the fields is given."""

    choices: tuple[str, ...] = ()
    """One of these texts."""
    regex: str | None = None
    """A regular expression in Rust's syntax, for the whole text; \\d is any digit of Unicode."""
    json_schema: str | None = None
    """A JSON schema as JSON text; `{}` is any JSON value. Its own `x-guidance`, options of
    llguidance, is followed."""
    grammar: str | None = None
    """A context-free grammar in Lark's syntax, as llguidance reads it, with a rule `start`."""
    whitespace: Whitespace = "fixed"
    """White space of JSON outside strings: `, ` and `: ` as `json.dumps` has it, or any."""

    def __post_init__(self) -> None:
        check.refuse("", check.choices("constraint", self))
        fields = ("choices", "regex", "json_schema", "grammar")
        given = [name for name in fields if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"constraint: {', '.join(given) or 'nothing'} given; one of choices, regex, "
                "json_schema and grammar is needed"
            )
        if isinstance(self.choices, str) or not all(isinstance(c, str) and c for c in self.choices):
            raise ValueError(
                f"constraint.choices: {self.choices!r} given; texts that are not empty are needed"
            )
        if self.json_schema is None:
            ok, fits = self.whitespace == "fixed", "'fixed' without json_schema"
            check.field("constraint.whitespace", self.whitespace, ok, fits)
        else:
            try:
                schema = json.loads(self.json_schema)
            except ValueError as error:
                raise ValueError(f"constraint.json_schema: no JSON: {error}") from None
            if not isinstance(schema, dict):
                raise ValueError(
                    f"constraint.json_schema: {self.json_schema[:60]!r} given; an object is needed"
                )


class Matcher:
    """A constraint and the text so far."""

    def __init__(self, matcher: Any, vocab: int):
        self._matcher = matcher
        self._vocab = vocab

    def allowed(self) -> np.ndarray:
        """Tokens that may come next, bool[V]; none where there is a fault."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(packed, bitorder="little").astype(bool)[: self._vocab]
        return np.pad(bits, (0, self._vocab - len(bits)))

    def take(self, token: int) -> None:
        """The text goes on with a token; one that is not allowed is a fault."""
        self._matcher.consume_token(token)

    @property
    def accepting(self) -> bool:
        """Whether the text may end here."""
        return self._matcher.is_accepting()

    def fault(self) -> str | None:
        """Reason that it cannot go on, such as a grammar that has become too complex; or None."""
        return f"constraint: {self._matcher.get_error()}" if self._matcher.is_error() else None


class Vocabulary:
    """The tokens that constraints choose from."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, vocab: int, stops: Sequence[int]):
        """vocab: ids of the model, which may be more than the tokenizer's; those are never allowed.
        stops: tokens that end a text.

        Raises: ImportError without llguidance.
        """
        try:
            import llguidance
        except ImportError as error:
            raise ImportError(
                "constraints need llguidance: pip install 'jaxlm[constrain]'"
            ) from error
        self._library = llguidance
        self._vocab = vocab
        words = _Words(tokenizer, vocab, stops)
        wrapped = llguidance.TokenizerWrapper(words)
        self._tokenizer = llguidance.LLTokenizer(wrapped, n_vocab=vocab, eos_token=list(stops))

    def matcher(self, constraint: Constraint) -> Matcher:
        """The constraint before the first token. Raises: ValueError for one that cannot be read."""
        make = self._library.LLMatcher
        if constraint.choices:
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in constraint.choices)
            rules, name = f"start: {texts}", "choices"
        elif constraint.regex is not None:
            slashed = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", constraint.regex)
            rules, name = f"start: /{slashed}/", "regex"
        elif constraint.json_schema is not None:
            schema = json.loads(constraint.json_schema)
            if constraint.whitespace == "fixed":
                schema.setdefault("x-guidance", FIXED)
            rules, name = f"start: %json {json.dumps(schema)}", "json_schema"
        else:
            rules, name = constraint.grammar, "grammar"
        grammar = make.grammar_from_lark(f"{ALL_CUTS}\n{rules}")
        if fault := make.validate_grammar(grammar, self._tokenizer):
            raise ValueError(f"constraint.{name}: {fault}")
        return Matcher(make(self._tokenizer, grammar, log_level=0), self._vocab)


class _Words:
    """A tokenizer as llguidance reads it: the bytes of every token that is no special one."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, vocab: int, stops: Sequence[int]):
        special = {*tokenizer.special.values(), *(mark.id for mark in tokenizer.marks.values())}
        special |= {*stops, *range(tokenizer.vocab, vocab)}
        # some kinds write a token otherwise at the beginning of a text
        before = tokenizer.encode("a")
        start = len(tokenizer.decode_bytes(before))
        self.tokens = []
        for token in range(vocab):
            text = b"" if token in special else tokenizer.decode_bytes([*before, token])[start:]
            self.tokens.append(text or b"\xff<" + str(token).encode() + b">")
        self.special_token_ids = sorted(special)
        self.eos_token_id = stops[0]
        self.bos_token_id = tokenizer.special.get("bos")
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)
