"""Options of `jaxlm sample` that search for a text, constrain it, or draft its tokens."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from jaxlm.core import check
from jaxlm.decode.constraints import Constraint, Whitespace
from jaxlm.decode.search.beam_search import Beams
from jaxlm.decode.search.contrastive_search import Contrastive
from jaxlm.decode.speculate.speculative_sampling import Drafter, Report, Speculate
from jaxlm.decode.token_sampling import Sampling
from jaxlm.train import trained_weights


@dataclasses.dataclass(frozen=True)
class Search:
    """Beam search and contrastive search, of at most --max-new tokens, to --stop-tokens."""

    beams: int | None = None
    """Beams of a beam search; none is made without."""
    length_penalty: float = Beams.length_penalty
    """Beam search divides the sum of log-probabilities by length to this power."""
    early_stopping: bool | Literal["never"] = Beams.early_stopping
    """Whether as many texts as beams end a search, or only that none would be better."""
    num_return_sequences: int = Beams.num_return_sequences
    """Texts of a beam search to show, best first, with their scores."""
    num_beam_groups: int = Beams.num_beam_groups
    """Groups of beams that are to differ."""
    diversity_penalty: float = Beams.diversity_penalty
    """Cost in nats of a token for each beam of an earlier group that has it too."""
    penalty_alpha: float | None = None
    """Contrastive search over the --top-k likeliest tokens (4 if not given): weight of the
    similarity to earlier tokens."""


@dataclasses.dataclass(frozen=True)
class Form:
    """Form that a sampled text has to match; one of these at most."""

    choices: tuple[str, ...] = ()
    """One of these texts."""
    regex: str | None = None
    """A regular expression for the whole text."""
    json_schema: pathlib.Path | None = None
    """A file with a JSON schema."""
    grammar: pathlib.Path | None = None
    """A file with a grammar in Lark's syntax."""
    whitespace: Whitespace = "fixed"
    """White space of --json-schema's texts outside strings: `, ` and `: `, or any."""


@dataclasses.dataclass(frozen=True)
class Drafts:
    """Speculative decoding: the same tokens in fewer passes; one of --draft, --lookup and --mtp."""

    draft: pathlib.Path | None = None
    """Run directory of a smaller model with the same tokenizer, which drafts tokens."""
    lookup: bool = False
    """Draft what followed the latest words when they occurred before."""
    mtp: bool = False
    """Draft with the model's own multi-token prediction."""
    draft_length: int = Speculate.length
    """Tokens to draft for a pass of the model, at most."""


def speculate(options: Drafts, report: Callable[[Report], Any]) -> Speculate | None:
    """The settings that the options ask for, a model to draft with loaded.

    Raises: ValueError for more than one way to draft, and a length without any; as
    `trained_weights.load`.
    """
    given = [name for name in ("draft", "lookup", "mtp") if getattr(options, name)]
    if not given:
        check.refuse("", check.changed("", options, "draft_length", why="without a way to draft"))
        return None
    if len(given) > 1:
        raise ValueError(f"--{' and --'.join(given)}: given together; drafts come from one of them")
    check.within("", options, "draft_length", least=1)
    draft: Drafter | Literal["lookup", "mtp"] = "lookup" if options.lookup else "mtp"
    if options.draft is not None:
        draft = trained_weights.load(options.draft)
    return Speculate(draft, options.draft_length, report=report)


def constraint(form: Form) -> Constraint | None:
    """The constraint that the options ask for. Raises: ValueError as Constraint, OSError for a file
    that cannot be read."""
    if form == Form():
        return None
    schema = None if form.json_schema is None else form.json_schema.read_text("utf-8")
    grammar = None if form.grammar is None else form.grammar.read_text("utf-8")
    return Constraint(form.choices, form.regex, schema, grammar, form.whitespace)


def chosen(search: Search, sampling: Sampling) -> Sampling | Beams | Contrastive:
    """The settings that the options ask for.

    Raises: ValueError for options of one way to decode along with another.
    """
    of_beams = [f.name for f in dataclasses.fields(Search)[1:-1]]
    if search.beams is None:
        check.refuse("", check.changed("", search, *of_beams, why="without --beams"))
    elif search.penalty_alpha is not None:
        raise ValueError("--penalty-alpha: contrastive search has no beams; give one of the two")
    kept = {"max_new", "stop_tokens"} | ({"top_k"} if search.penalty_alpha is not None else set())
    drawn = [f.name for f in dataclasses.fields(Sampling) if f.name not in kept]
    common = {"max_new": sampling.max_new, "stop_tokens": sampling.stop_tokens}
    if search.beams is not None:
        check.refuse("", check.changed("sampling", sampling, *drawn, why="with --beams"))
        rest = {name: getattr(search, name) for name in of_beams}
        return Beams(num_beams=search.beams, **rest, **common)
    if search.penalty_alpha is not None:
        check.refuse("", check.changed("sampling", sampling, *drawn, why="with --penalty-alpha"))
        top_k = Contrastive.top_k if sampling.top_k is None else sampling.top_k
        return Contrastive(penalty_alpha=search.penalty_alpha, top_k=top_k, **common)
    return sampling
