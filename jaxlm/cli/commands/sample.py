"""jaxlm sample: a trained model's replies to prompts, as they are generated."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence

import tyro

from jaxlm import api
from jaxlm.cli import search_settings
from jaxlm.core import cache
from jaxlm.core.remote import staging
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message
from jaxlm.decode import prompt_tokens, reply
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.speculate.speculative_sampling import Speculate
from jaxlm.decode.token_sampling import Sampling
from jaxlm.train import trained_weights
from jaxlm.train.run import directory


@dataclasses.dataclass(frozen=True)
class _Sampling(Sampling):
    """The settings, with what the command line writes otherwise."""

    banned: tyro.conf.UseAppendAction[tuple[tuple[int, ...], ...]] = ()
    """A sequence of token ids that is never completed, may be repeated: --banned 5 --banned 7 8."""


def sample(args: Sequence[str]) -> int:
    """The exit code of `jaxlm sample` with these arguments."""
    return tyro.cli(_command, args=list(args), prog="jaxlm sample")


def _command(
    run: tyro.conf.Positional[pathlib.Path],
    prompt: tuple[str, ...] = ("",),
    template: str | None = None,
    talk: bool = False,
    checkpoint: trained_weights.Which = "last",
    sampling: tyro.conf.OmitArgPrefixes[_Sampling] = _Sampling(),
    search: tyro.conf.OmitArgPrefixes[search_settings.Search] = search_settings.Search(),
    form: tyro.conf.OmitArgPrefixes[search_settings.Form] = search_settings.Form(),
    drafts: tyro.conf.OmitArgPrefixes[search_settings.Drafts] = search_settings.Drafts(),
) -> int:
    """Continue prompts with a trained model; the text appears as it is generated.

    A model trained on conversations answers each prompt as the user's message, and stops at the end
    of its turn. One that reads both ways (BERT) fills in every <mask> of a prompt; one that writes
    a target (T5) reads the prompt as its source, <extra_id_0> and so on where spans are missing.

    Args:
        run: The run directory, such as runs/demo.
        prompt: Texts to continue; an empty one starts a new document.
        template: The template of conversations, such as chatml, a Jinja file, or `tokenizer` for
            the template in the tokenizer's own files; the run's own where none is given.
        talk: The prompts are one conversation, which goes on with lines from standard input.
        checkpoint: The last checkpoint, or the one with the best evaluation.
        sampling: Sampling settings.
        search: Beam search and contrastive search.
        form: What the text has to match.
        drafts: Speculative decoding.
    """
    chosen = search_settings.chosen(search, sampling)
    constraint = search_settings.constraint(form)
    cache.programs()
    run = staging.local(run)
    saved = trained_weights.load(run, checkpoint)
    speculate = search_settings.speculate(drafts, lambda r: print(r, file=sys.stderr, flush=True))
    if speculate is not None:
        api.refuse_drafts(saved, chosen, speculate)
    tokenizer = directory.tokenizer(run, saved.run)
    trained_weights.refuse_template(run, saved.run, template)
    settings = prompt_tokens.stopping(chosen, trained_weights.stop_tokens(run))
    chat = prompt_tokens.written(saved.run.data, template)
    if chat is None and talk:
        raise ValueError(
            f"--talk: {run} was trained on text, not on conversations; name a --template to talk in"
        )
    if chat is not None and saved.model.kind != "decoder":
        raise ValueError("--template: this model does not continue texts, so it cannot answer")
    if chat is None:
        about = saved.run.data.corrupt if isinstance(saved.run.data, pretraining.Data) else None
        for text in prompt:
            args = (saved.model, saved.params, tokenizer, text, settings, about)
            for pieces in reply.replies(*args, constraint, speculate):
                _show(pieces)
        return 0
    if talk and isinstance(settings, Sampling) and settings.n > 1:
        raise ValueError(f"--n: {settings.n} given; a conversation (--talk) goes on with one reply")
    conversation: list[Message] = []
    for text in _turns(prompt, talk):
        conversation = [*(conversation if talk else ()), Message("user", text)]
        print(f"> {text}")
        args = (saved, chat, tokenizer, conversation, settings, constraint, speculate)
        answers = _answers(*args)
        shown = [_show(pieces) for pieces in answers]
        conversation.append(Message("assistant", shown[0].strip()))
    return 0


def _turns(prompt: Sequence[str], talk: bool) -> Iterator[str]:
    yield from (text for text in prompt if text or not talk)
    if talk:
        yield from (line.rstrip("\n") for line in sys.stdin)


def _answers(
    saved: trained_weights.Saved,
    chat: template.Template,
    tokenizer: tokenizers.tokenizer.Tokenizer,
    conversation: Sequence[Message],
    settings: reply.Settings,
    constraint: Constraint | None,
    speculate: Speculate | None,
) -> list[Iterator[str]]:
    encoded = prompt_tokens.asked(saved.run.data, chat, tokenizer, conversation)
    ending = prompt_tokens.stopping(settings, encoded.stops)
    args = (saved.model, saved.params, tokenizer, encoded.tokens, ending)
    return reply.continued(*args, constraint, speculate)


def _show(pieces: Iterator[str]) -> str:
    shown = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        shown += piece
    print()
    return shown
