"""jaxlm sample, jaxlm chat: a trained model's replies to prompts, as they are generated."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence

import tyro

from jaxlm import api
from jaxlm.cli import conversation, search_settings
from jaxlm.core import cache as program_cache
from jaxlm.core.remote import staging
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.templates import template as templates
from jaxlm.data.templates.template import Message
from jaxlm.decode import prompt_tokens, reply
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.serve.bulk import generation_job
from jaxlm.decode.serve.dialogue import Dialogue
from jaxlm.decode.speculate.speculative_sampling import Report, Speculate
from jaxlm.decode.token_sampling import Sampling
from jaxlm.ops.quant.cache_entries import Numbers
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
    prompt: tuple[str, ...] = (),
    prompts: pathlib.Path | None = None,
    out: pathlib.Path | None = None,
    slots: int | None = None,
    template: str | None = None,
    checkpoint: trained_weights.Which = "last",
    cache: Numbers | None = None,
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
        prompt: Texts to continue; an empty one, as where none is given, starts a new document.
        prompts: A file of prompts: .txt, one a line, or .jsonl, in a field `prompt` or `messages`.
        out: The .jsonl file for the texts of `prompts`. The same command goes on after a stop.
        slots: Prompts of `prompts` that are decoded together, 16 if not given.
        template: The template of conversations, such as chatml, a Jinja file, or `tokenizer` for
            the template in the tokenizer's own files; the run's own where none is given.
        checkpoint: The last checkpoint, or the one with the best evaluation.
        cache: Numbers of the KV cache, 8 bits each; the model's own where none are given.
        sampling: Sampling settings.
        search: Beam search and contrastive search.
        form: What the text has to match.
        drafts: Speculative decoding.
    """
    chosen = search_settings.chosen(search, sampling)
    constraint = search_settings.constraint(form)
    if prompts is not None or out is not None or slots is not None:
        _check_file(prompts, out, prompt, chosen, drafts)
    program_cache.programs()
    saved = trained_weights.load(run := staging.local(run), checkpoint, cache=cache)
    speculate, reports = _speculate(drafts, saved, chosen)
    if prompts is not None and out is not None:
        slots = api.SLOTS if slots is None else slots
        totals = api.generate_file(saved, prompts, out, sampling, template, constraint, slots)
        print(_summary(totals, out))
        return 0
    tokenizer = directory.tokenizer(run, saved.run)
    trained_weights.refuse_template(run, saved.run, template)
    settings = prompt_tokens.stopping(chosen, trained_weights.stop_tokens(run))
    layout = prompt_tokens.written(saved.run.data, template)
    if layout is not None and saved.model.kind != "decoder":
        raise ValueError("--template: this model does not continue texts, so it cannot answer")
    for text in prompt or ("",):
        if layout is not None:
            print(f"> {text}")
        for pieces in _answers(saved, layout, tokenizer, text, settings, constraint, speculate):
            _show(pieces)
    _tell(reports)
    return 0


def _check_file(
    prompts: pathlib.Path | None,
    out: pathlib.Path | None,
    prompt: Sequence[str],
    settings: reply.Settings,
    drafts: search_settings.Drafts,
) -> None:
    """Raises: ValueError for what does not go with a file of prompts."""
    if prompts is None:
        raise ValueError("--out and --slots are for a file of prompts: give --prompts FILE")
    if out is None:
        raise ValueError("--prompts: give --out FILE.jsonl, which the texts go to")
    if prompt:
        raise ValueError("--prompt: given along with --prompts; give one of the two")
    if not isinstance(settings, Sampling):
        raise ValueError("--prompts: texts of a file are sampled; leave the search out")
    if drafts != search_settings.Drafts():
        raise ValueError(
            "--prompts: texts of a file are decoded in slots, which take no drafts; leave out "
            "--draft, --lookup and --mtp"
        )


def _summary(totals: generation_job.Totals, out: pathlib.Path) -> str:
    """The end of a file of prompts, for people."""
    text = f"{out}: texts of {totals.count:,} prompts"
    if totals.found:
        text += f", {totals.found:,} of them there before"
    if totals.share is None:
        return text
    rate = totals.tokens / totals.seconds
    return (
        f"{text}; {totals.tokens:,} tokens in {totals.seconds:.1f} s, {rate:,.0f} tokens/s, "
        f"{totals.share:.0%} of the memory's bandwidth"
    )


def _speculate(
    drafts: search_settings.Drafts,
    saved: trained_weights.Saved,
    settings: reply.Settings,
) -> tuple[Speculate | None, list[Report]]:
    """The settings of drafts, and the list that their reports go to."""
    reports: list[Report] = []
    made = search_settings.speculate(drafts, reports.append)
    if made is not None:
        api.refuse_drafts(saved, settings, made)
    return made, reports


def _tell(reports: Sequence[Report]) -> None:
    """Print the sum of the reports, apart from the texts."""
    if reports:
        sys.stdout.flush()
        print(Report(*map(sum, zip(*reports, strict=True))), file=sys.stderr)


def _answers(
    saved: trained_weights.Saved,
    layout: templates.Template | None,
    tokenizer: tokenizers.tokenizer.Tokenizer,
    text: str,
    settings: reply.Settings,
    constraint: Constraint | None,
    speculate: Speculate | None,
) -> list[Iterator[str]]:
    data = saved.run.data
    if layout is None:
        about = data.corrupt if isinstance(data, pretraining.Data) else None
        args = (saved.model, saved.params, tokenizer, text, settings, about)
        return reply.replies(*args, constraint, speculate)
    encoded = prompt_tokens.asked(data, layout, tokenizer, [Message("user", text)])
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


def chat(args: Sequence[str]) -> int:
    """The exit code of `jaxlm chat` with these arguments."""
    return tyro.cli(_chat, args=list(args), prog="jaxlm chat")


def _chat(
    run: tyro.conf.Positional[pathlib.Path],
    prompt: tuple[str, ...] = (),
    template: str | None = None,
    system: str | None = None,
    length: int | None = None,
    checkpoint: trained_weights.Which = "last",
    cache: Numbers | None = None,
    sampling: tyro.conf.OmitArgPrefixes[_Sampling] = _Sampling(),
    form: tyro.conf.OmitArgPrefixes[search_settings.Form] = search_settings.Form(),
) -> int:
    """Talk to a trained model in the terminal, or with lines of a pipe.

    Each line is a message; a line with /help lists commands. Ctrl-C stops an answer, Ctrl-D ends.

    Args:
        run: The run directory, such as runs/sft.
        prompt: Messages that the conversation begins with.
        template: The template of conversations, as `jaxlm sample` has it.
        system: The system message, in place of the run's own.
        length: Tokens that the model reads and writes at most: older messages are left out. The
            model's positions, or the tokens of a row in training where any number runs.
        checkpoint: The last checkpoint, or the one with the best evaluation.
        cache: Numbers of the KV cache, 8 bits each; the model's own where none are given.
        sampling: Sampling settings.
        form: What each answer has to match.
    """
    constraint = search_settings.constraint(form)
    program_cache.programs()
    run = staging.local(run)
    saved = trained_weights.load(run, checkpoint, cache=cache)
    data = saved.run.data
    tokenizer = directory.tokenizer(run, saved.run)
    trained_weights.refuse_template(run, saved.run, template)
    layout = prompt_tokens.written(data, template)
    if layout is None:
        raise ValueError(
            f"{run} was trained on text, not on conversations; name a --template to talk in"
        )
    settings = prompt_tokens.stopping(sampling, trained_weights.stop_tokens(run))
    room = (saved.model.context or data.seq) if length is None else length
    args = (saved.model, saved.params, tokenizer, data, layout, settings, room, constraint)
    talk = Dialogue(*args)
    talk.set_system(system)
    conversation.hold(talk, prompt)
    return 0
