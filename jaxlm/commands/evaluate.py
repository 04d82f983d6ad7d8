"""`jaxlm eval` and `jaxlm score`: what a trained model is worth, and what a reward model says."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import tyro

from jaxlm.core import cache, json_file
from jaxlm.data import (
    examples,
    kinds,
    loader,
    rankings,
    records,
    shard_cache,
    shards,
    source,
    tokenizers,
)
from jaxlm.eval import heldout, perplexity, rewards
from jaxlm.train import directory, program, saved, start, supply


def evaluate(args: Sequence[str], target: str | None) -> int:
    """jaxlm eval RUN [--data.source ...]; target is RUN, or None to explain the arguments."""
    run = pathlib.Path("RUN" if target is None else target)
    read = loader.Data() if target is None else directory.load(run).data
    kind: Any = type(read)

    def command(
        checkpoint: saved.Which = "last", split: source.Split = "val", data: kind = read
    ) -> int:
        """Score a trained model on held-out data, and print the scores as JSON.

        Of a run that read text: nats and bits per byte. Of all others: the loss, and what its
        objective reports beside it.

        Args:
            checkpoint: The last checkpoint, or the one with the best evaluation.
            split: The held-out part, or the one trained on. To score a whole file, give
                `--data.source FILE --data.holdout 0 --split train`.
            data: What is read; the run's own data where nothing else is given. What the weights
                were trained to predict (tokenizer, template, corrupt, learn, ...) stays as it was.
        """
        data.validate()
        saved.refuse_changes(run, directory.load(run), data)
        cache.programs()
        found = saved.load(run, checkpoint)
        directory.warn_of_lost_records(run)
        tokenizer = tokenizers.load(data.tokenizer)
        if tokenizer.vocab > found.run.model.vocab and data.tokenizer != read.tokenizer:
            raise ValueError(
                f"data.tokenizer: {data.tokenizer!r} has {tokenizer.vocab} ids, the model knows "
                f"{found.run.model.vocab}"
            )
        if found.model.context is not None and data.seq > found.model.context:
            raise ValueError(
                f"data.seq: {data.seq} given, and the model's learned positions end at "
                f"{found.model.context}; give that many or fewer"
            )
        if isinstance(data, loader.Data):
            result = _text(found, data, split, tokenizer.hash)
        else:
            result = _examples(run, found, data, split)
        facts = {"step": found.step, "split": split, "source": data.source}
        print(json.dumps(json_file.plain(facts | result), indent=1))
        loss = directory.not_finite(result, "the")
        if loss is not None:
            directory.warn(f"{run}, step {found.step}: {loss}")
        return 0 if loss is None else directory.DIVERGED

    return tyro.cli(
        command, args=list(args), prog=f"jaxlm eval {run}", config=(tyro.conf.FlagConversionOff,)
    )


def _text(
    found: saved.Saved, data: loader.Data, split: source.Split, tokenizer: str
) -> dict[str, Any]:
    folder = shard_cache.prepare(data, str(cache.folder() / "shards"))
    text = shards.open_shards(folder, split, tokenizer, found.run.model.vocab)
    score = perplexity.scorer(found.model, found.plan)
    return dataclasses.asdict(perplexity.evaluate(score, found.params, data, text, found.plan))


def _examples(
    folder: pathlib.Path, found: saved.Saved, data: kinds.AnyData, split: source.Split
) -> dict[str, Any]:
    """The objective's own evaluation of its weights, with whatever frozen ones it reads; adapters
    have been brought together with theirs."""
    if found.run.rollout is not None:
        raise ValueError(
            f"{folder} learnt from its own samples: metrics.jsonl has their evaluations, and "
            "`jaxlm sample` draws more"
        )
    # which split is wanted is said by `split`, and what is held out does not matter otherwise
    run = dataclasses.replace(found.run, data=data, plan=found.plan, adapter=None, eval_every=None)
    model, objective = program.build(run, run.plan)
    rows = supply.examples_of(run, model, objective)
    chosen = rows.val if split == "val" else rows.train
    if chosen is None:
        raise ValueError(
            f"data.holdout: {data.holdout} leaves nothing held out of {data.source}; give "
            "`--split train` to score all of it"
        )
    result = heldout.evaluate(
        heldout.scorer(objective, run.plan),
        objective,
        found.params,
        start.frozen(run, objective, saved.begun(folder)),
        examples.val_batches(chosen, run.data.batch),
        run.plan,
    )
    return result | {"rows": len(chosen)}


# --- Rewards of texts ------------------------------------------------------------------------


def score(args: Sequence[str]) -> int:
    """jaxlm score RUN --prompt TEXT --response TEXT ..."""

    def command(
        run: tyro.conf.Positional[pathlib.Path],
        prompt: str = "",
        response: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        source: str | None = None,
        checkpoint: saved.Which = "last",
    ) -> int:
        """Print the rewards that a reward model gives to responses, one JSON object a line.

        Args:
            run: The run directory of a reward model, such as runs/reward.
            prompt: What is responded to.
            response: A response; give it once for each.
            source: In place of them: a file, directory or glob of records {prompt, response} or
                {prompt, responses}, which are printed again with "score" or "scores".
            checkpoint: The last checkpoint, or the one with the best evaluation.
        """
        if (source is None) != bool(response):
            raise ValueError("--response or --source: one of them is needed, and not both")
        cache.programs()
        judge = rewards.load(run, checkpoint)
        if source is None:
            for text, value in zip(response, rewards.score(judge, [(prompt, r) for r in response])):
                _line({"prompt": prompt, "response": text, "score": float(value)})
            return 0
        for record in records.read(source):
            _line(_scored(judge, record))
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm score")


def _scored(judge: rewards.Judge, record: records.Record) -> dict[str, Any]:
    """The record with its scores."""
    several = "responses" in record.value
    asked = rankings.asked(record)
    try:
        found = [float(value) for value in rewards.score(judge, asked)]
    except ValueError as error:
        raise ValueError(f"{record.origin}: {error}") from error
    return record.value | ({"scores": found} if several else {"score": found[0]})


def _line(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)
