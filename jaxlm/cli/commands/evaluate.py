"""`jaxlm eval` and `jaxlm score`: scores of a trained model, and scores by a reward model."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import tyro

from jaxlm import api
from jaxlm.cli import arguments
from jaxlm.core import cache, check, json_file
from jaxlm.core.remote import staging
from jaxlm.data import pretraining
from jaxlm.data.records import preference_formats, records
from jaxlm.data.sources import source
from jaxlm.eval import reward_model
from jaxlm.train import trained_weights
from jaxlm.train.run import directory


def evaluate(args: Sequence[str]) -> int:
    """jaxlm eval RUN [--data.source ...]"""
    if not args or args[0] in ("-h", "--help"):
        target, rest, read = "RUN", ["--help"], pretraining.Data()
    else:
        target, rest = arguments.target("eval", args)
        read = directory.load(target := str(staging.local(target))).data
    run = pathlib.Path(target)
    kind: Any = type(read)
    replaced = "--data.source" in [arg.partition("=")[0] for arg in rest]

    def command(
        checkpoint: trained_weights.Which = "last", split: source.Split = "val", data: kind = read
    ) -> int:
        """Score a trained model on held-out data, and print the scores as JSON.

        For a run that read text: nats and bits per byte. For all others: the loss, and the other
        metrics of its objective.

        Args:
            checkpoint: The last checkpoint, or the one with the best evaluation.
            split: The held-out part, or the one trained on. To score a whole file, give
                `--data.source FILE --data.holdout 0 --split train`.
            data: What is read; the run's own data where nothing else is given, and one source in
                place of all of a mixture. What the weights were trained to predict (tokenizer,
                template, corrupt, learn, ...) stays as it was.
        """
        if isinstance(data, pretraining.Data) and replaced:
            data = dataclasses.replace(data, mix=())
        check.refuse("", data.problems())
        trained_weights.refuse_changes(run, directory.load(run), data)
        cache.programs()
        saved = trained_weights.load(run, checkpoint)
        directory.warn_of_lost_records(run)
        result = api.evaluate(saved, data, split)
        facts = {"step": saved.step, "split": split, "source": data.source}
        if isinstance(data, pretraining.Data) and data.mix:
            facts["source"] = {n: own.source for n, own in pretraining.parts(data).items()}
        print(json.dumps(json_file.plain(facts | result), indent=1))
        loss = directory.not_finite(result, "the")
        if loss is not None:
            directory.warn(f"{run}, step {saved.step}: {loss}")
        return 0 if loss is None else directory.DIVERGED

    return tyro.cli(
        command, args=rest, prog=f"jaxlm eval {run}", config=(tyro.conf.FlagConversionOff,)
    )


# --- Rewards of texts ------------------------------------------------------------------------


def score(args: Sequence[str]) -> int:
    """jaxlm score RUN --prompt TEXT --response TEXT ..."""

    def command(
        run: tyro.conf.Positional[pathlib.Path],
        prompt: str = "",
        response: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        source: str | None = None,
        checkpoint: trained_weights.Which = "last",
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
        judge = trained_weights.judge(run, checkpoint)
        if source is None:
            for text, value in zip(
                response, reward_model.score(judge, [(prompt, r) for r in response])
            ):
                _line({"prompt": prompt, "response": text, "score": float(value)})
            return 0
        for record in records.read(source):
            _line(_scored(judge, record))
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm score")


def _scored(judge: reward_model.Judge, record: records.Record) -> dict[str, Any]:
    """The record with its scores."""
    several = "responses" in record.value
    texts = preference_formats.pairs(record)
    try:
        scores = [float(value) for value in reward_model.score(judge, texts)]
    except ValueError as error:
        raise ValueError(f"{record.origin}: {error}") from error
    return record.value | ({"scores": scores} if several else {"score": scores[0]})


def _line(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)
