"""The whole life of a model in a few calls, from Python: the interface of `import jaxlm`.

result = jaxlm.train(run)
saved = jaxlm.load("runs/first")
jaxlm.generate(saved, ["Once upon"], jaxlm.Sampling(max_new=32))
jaxlm.evaluate(saved)["bits_per_byte"]
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxlm.core import check, log
from jaxlm.data import kinds, pretraining, tokenizers
from jaxlm.data.records import examples
from jaxlm.data.records.records import Record
from jaxlm.data.sources import source
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenized import shard_cache
from jaxlm.decode import completions, prompt_tokens, reply, token_sampling
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.search import hypotheses
from jaxlm.decode.search.beam_search import Beams
from jaxlm.decode.search.contrastive_search import Contrastive
from jaxlm.decode.serve.bulk import generation_job, prompt_lines
from jaxlm.decode.speculate import speculative_sampling
from jaxlm.decode.speculate.speculative_sampling import Speculate
from jaxlm.decode.token_sampling import Sampling
from jaxlm.eval import heldout, perplexity
from jaxlm.models.layers import cache_kinds
from jaxlm.train import initial_weights, inputs, program, trained_weights
from jaxlm.train.run import directory
from jaxlm.train.trained_weights import Saved

TOGETHER = 64
"""Texts of `generate` that form one batch; more of them share slots."""
SLOTS = 16
"""Slots of many prompts."""


def generate(
    saved: Saved,
    prompts: Sequence[str],
    sampling: Sampling | Beams | Contrastive = Sampling(),
    template: str | None = None,
    constraint: Constraint | None = None,
    speculate: Speculate | None = None,
) -> list[str]:
    """The texts that a trained model writes for each prompt: one, or `sampling.n` in a row.

    A decoder continues the prompts: up to `TOGETHER` texts in one batch, more in the slots of an
    engine, with a progress bar on a terminal. One that was trained on conversations, or any
    with a `template`, answers each as the user's message and stops at the end of its turn. An
    encoder returns the prompt and the likeliest tokens of each <mask> in it, an encoder-decoder the
    source and its target, as `jaxlm sample` shows them. Text r is sampled with the seed of
    `sampling` plus r. `Beams` and `Contrastive` search for a text in place of drawing it; of beams,
    `num_return_sequences` texts of a decoder's prompt follow each other, best first. constraint:
    what every text of a decoder has to match that ends before max_new. speculate: how tokens of a
    decoder are drafted, which changes speed and not the tokens.

    Raises: ValueError for one text in place of a list, for a model that cannot do so, or a template
    that is not its tokenizer's; as `token_sampling.generate`; for a model that drafts in another
    tokenizer's ids; ImportError for a constraint without the extra `constrain`.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts: {prompts!r} given; a list of texts is needed: [{prompts!r}]")
    trained_weights.refuse_template(saved.folder, saved.run, template)
    tokenizer = directory.tokenizer(saved.folder, saved.run)
    settings = prompt_tokens.stopping(sampling, trained_weights.stop_tokens(saved.folder))
    rows: Sequence[Sampling | Beams | Contrastive] = [settings] * len(prompts)
    if isinstance(settings, Sampling):
        rows = token_sampling.each(settings, len(prompts))
    data, model = saved.run.data, saved.model
    layout = prompt_tokens.written(data, template)
    decoder = model.kind == "decoder"
    if constraint is not None and not (decoder and isinstance(settings, Sampling)):
        raise ValueError("constraint: only what a decoder samples can be constrained")
    if speculate is not None:
        refuse_drafts(saved, settings, speculate)
    if not decoder:
        if layout is not None:
            raise ValueError("template: this model does not continue texts, so it cannot answer")
        return _filled(saved, tokenizer, prompts, rows)
    turns = [
        prompt_tokens.asked(data, layout, tokenizer, (Message("user", text),)) for text in prompts
    ]
    if not isinstance(settings, Sampling):
        return _searched(saved, tokenizer, turns, settings)
    several = len(prompts) * settings.candidates > TOGETHER and speculate is None
    if several and token_sampling.independent(model):
        return _in_slots(saved, prompts, settings, template, constraint)
    drawn = token_sampling.each(settings, len(prompts))
    rows = [prompt_tokens.stopping(row, turn.stops) for row, turn in zip(drawn, turns, strict=True)]
    written = completions.complete(
        model, saved.params, tokenizer, [turn.tokens for turn in turns], rows, constraint, speculate
    )
    return [row.text for row in written]


def _filled(
    saved: Saved,
    tokenizer: tokenizers.tokenizer.Tokenizer,
    prompts: Sequence[str],
    rows: Sequence[Sampling | Beams | Contrastive],
) -> list[str]:
    """`generate` by an encoder or an encoder-decoder."""
    data = saved.run.data
    about = data.corrupt if isinstance(data, pretraining.Data) else None
    return [
        "".join(pieces)
        for prompt, row in zip(prompts, rows, strict=True)
        for pieces in reply.replies(saved.model, saved.params, tokenizer, prompt, row, about)
    ]


def _searched(
    saved: Saved,
    tokenizer: tokenizers.tokenizer.Tokenizer,
    turns: Sequence[prompt_tokens.Turn],
    settings: Beams | Contrastive,
) -> list[str]:
    """`generate` by a search."""
    ending = prompt_tokens.stopping(settings, [i for turn in turns for i in turn.stops])
    tokens = [turn.tokens for turn in turns]
    found, params = [], token_sampling.prepare(saved.model, saved.params)
    for start in range(0, len(tokens), TOGETHER):
        part = tokens[start : start + TOGETHER]
        found += hypotheses.complete(saved.model, params, tokenizer, part, ending)
    return [one.text for texts in found for one in texts]


def _in_slots(
    saved: Saved,
    prompts: Sequence[str],
    sampling: Sampling,
    template: str | None,
    constraint: Constraint | None,
) -> list[str]:
    """`generate` by an engine."""
    job = _job(saved, lambda: prompt_lines.listed(prompts), sampling, template, constraint)
    size = generation_job.survey(job)
    decoding = generation_job.begin(job, size, SLOTS, measure=sys.stdout.isatty())
    texts: list[list[str]] = [[] for _ in prompts]
    with log.open(True, "texts", size.count) as shown:
        for number, _, rows in generation_job.texts(job, decoding, shown):
            texts[number] = [row.text for row in rows]
    return [text for each in texts for text in each]


def generate_file(
    saved: Saved,
    prompts: str | os.PathLike[str],
    out: str | os.PathLike[str],
    sampling: Sampling = Sampling(),
    template: str | None = None,
    constraint: Constraint | None = None,
    slots: int = SLOTS,
) -> generation_job.Totals:
    """Write the texts of `generate` for every prompt of a file to `out`, a line of JSON each, in
    the order of the prompts: the prompt's record with `text` and `finish`.

    prompts: .txt, a prompt a line, or records with `prompt` or `messages` (`prompt_lines`); they
    are read as they are needed, so that a file may be larger than memory. Texts are kept as they
    end: a call that was killed goes on where it was, and the file is the same bytes. slots: prompts
    that are decoded together.

    Raises: ValueError, before any compute, for a prompt that does not fit, with its line; for an
    `out` that was begun with other prompts, settings or weights, naming the first difference; as
    `generate`.
    """
    settings = prompt_tokens.stopping(sampling, trained_weights.stop_tokens(saved.folder))
    trained_weights.refuse_template(saved.folder, saved.run, template)
    job = _job(saved, lambda: prompt_lines.read(prompts), settings, template, constraint)
    identity = trained_weights.identity(saved) | {"template": template}
    if (numbers := cache_kinds.numbers(saved.model)) is not None:
        identity |= {"cache": numbers}
    return generation_job.write(job, out, identity, slots, "texts")


def _job(
    saved: Saved,
    records: Callable[[], Iterator[Record]],
    sampling: Sampling,
    template: str | None,
    constraint: Constraint | None,
) -> generation_job.Job:
    data, tokenizer = saved.run.data, directory.tokenizer(saved.folder, saved.run)
    turn = prompt_lines.encoder(data, prompt_tokens.written(data, template), tokenizer)
    return generation_job.Job(
        saved.model, saved.params, tokenizer, records, turn, sampling, constraint
    )


def refuse_drafts(
    saved: Saved, settings: Sampling | Beams | Contrastive, speculate: Speculate
) -> None:
    """Raises: ValueError for a model that cannot draft or verify, a search, and a model that drafts
    in the ids of another tokenizer."""
    check.refuse("", speculative_sampling.problems(saved.model, speculate))
    reply.refuse_search(settings)
    draft = speculate.draft
    if isinstance(draft, Saved):
        own = directory.tokenizer(saved.folder, saved.run)
        if directory.tokenizer(draft.folder, draft.run).hash != own.hash:
            raise ValueError(
                f"speculate.draft: {draft.folder} has the tokenizer {draft.run.data.tokenizer!r}; "
                f"it must have that of {saved.folder}, {saved.run.data.tokenizer!r}, id for id"
            )


def evaluate(
    saved: Saved, data: kinds.AnyData | None = None, split: source.Split = "val"
) -> dict[str, Any]:
    """The scores of a trained model on one split of its own data, or of other data.

    Of text: nats per token and bits per byte, of a mixture those of each source too. Of all else:
    the loss, and what the objective reports with it, both over `rows`.

    Raises: ValueError for data of another kind, or written otherwise than the model was trained to
    read (tokenizer, template, corruption), or longer than its learned positions; for a split that
    is empty; for a run that learnt from its own samples.
    """
    run, model = saved.run, saved.model
    data = run.data if data is None else data
    check.refuse("", data.problems())
    trained_weights.refuse_changes(saved.folder, run, data)
    tokenizer = tokenizers.load(data.tokenizer)
    if tokenizer.vocab > run.model.vocab and data.tokenizer != run.data.tokenizer:
        raise ValueError(
            f"data.tokenizer: {data.tokenizer!r} has {tokenizer.vocab} ids, the model has "
            f"{run.model.vocab}"
        )
    fits = f"at most {model.context}, where the model's learned positions end"
    check.field("data.seq", data.seq, data.seq <= (model.context or data.seq), fits)
    if not isinstance(data, pretraining.Data):
        return _examples(saved, data, split)
    text = shard_cache.opened(data, split, run.model.vocab)
    score = perplexity.scorer(model, saved.plan)
    return perplexity.scores(score, saved.params, data, text, saved.plan)


def _examples(saved: Saved, data: kinds.AnyData, split: source.Split) -> dict[str, Any]:
    """The objective's own evaluation, with whatever frozen weights it reads; adapters have been
    merged with theirs."""
    if saved.run.rollout is not None:
        raise ValueError(
            f"{saved.folder} learnt from its own samples: metrics.jsonl has their evaluations, and "
            "`jaxlm sample` draws more"
        )
    # `split` chooses the split, and the held-out share matters for nothing else
    run = dataclasses.replace(saved.run, data=data, plan=saved.plan, adapter=None, eval_every=None)
    model, objective = program.build(run, run.plan)
    rows = inputs.examples_of(run, model, objective)
    chosen = rows.val if split == "val" else rows.train
    if chosen is None:
        raise ValueError(
            f"data.holdout: {data.holdout} leaves nothing held out of {data.source}; give "
            "`--split train` to score all of it"
        )
    result = heldout.evaluate(
        heldout.scorer(objective, run.plan),
        objective,
        saved.params,
        initial_weights.frozen(run, objective, trained_weights.begun(saved.folder)),
        examples.val_batches(chosen, run.data.batch),
        run.plan,
    )
    return result | {"rows": len(chosen)}
