"""Targets that objectives read from the cache (`precompute`): a teacher's distributions, and a
reference policy's log-probabilities.

    teachers/KEY      ids        int32[rows, T, k]        the likeliest next tokens, likeliest first
                      log_probs  float32[rows, T, k + 1]  of these, and of all others together
    references/KEY    log_probs  float32[rows, K]         of each response, summed over its tokens

A teacher takes 8k + 4 bytes a position (100 million tokens with k = 32: 26 GB), a reference 4K
bytes a prompt.
"""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import config
from jaxlm.core.batch import Choices, Taught
from jaxlm.core.remote import staging
from jaxlm.data.records import examples
from jaxlm.models.model import Model
from jaxlm.objectives import distill, lora
from jaxlm.objectives.objective import Frozen, Objective
from jaxlm.objectives.preference import dpo, responses
from jaxlm.parallel import transfer
from jaxlm.train import initial_weights, precompute, trained_weights
from jaxlm.train.run import checkpoint, directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run


def attach(run: Run, model: Model, objective: Objective, split: examples.Split) -> examples.Split:
    """The examples along with the targets that the run's objective stores, if any; computed now if
    that was not done before. The facts then name a reference.

    Raises: as `precompute.attach`; ValueError for weights without a whole checkpoint, and for
    targets that are not finite; as `initial_weights.frozen` for a reference.
    """
    cfg, facts = run.objective, split.facts
    if isinstance(cfg, distill.Config) and cfg.read == "stored":
        source = _teacher(run, cfg, [facts_of(run.data), facts])
    elif isinstance(cfg, dpo.Config) and cfg.reference == "stored":
        source = _reference(run, model, objective, facts)
        facts = facts | {"reference": source.key}
    else:
        return split
    plain = {"train": split.train} | ({} if split.val is None else {"val": split.val})
    rows = precompute.attach(source, plain)
    return split._replace(train=rows["train"], val=rows.get("val"), facts=facts)


def taught(run: Run, plain: examples.Rows, identity: list[Any]) -> precompute.Rows:
    """Rows of text along with the distributions of the run's teacher. identity: JSON that decides
    the rows. Raises: as `attach`."""
    cfg = run.objective
    assert isinstance(cfg, distill.Config)
    source = _teacher(run, cfg, [facts_of(run.data), *identity])
    return precompute.attach(source, {"train": plain})["train"]


def facts_of(data: Any) -> dict[str, Any]:
    """The fields of a data config that decide its rows, and not their order or size of batches."""
    fields = dataclasses.asdict(data)
    # of a mixture nothing is stored
    return {n: v for n, v in fields.items() if n not in ("batch", "seed", "workers", "ramp", "mix")}


def _manifest(folder: str, number: int | None) -> str:
    """Identity of a checkpoint's weights: the hash of its manifest, which lists theirs."""
    file = staging.local(folder) / "checkpoints" / str(number) / "manifest.json"
    if number is None or not file.is_file():
        raise ValueError(f"start: {folder} no longer has the checkpoint of step {number}")
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- A teacher -------------------------------------------------------------------------------


def _teacher(run: Run, cfg: distill.Config, rows: list[Any]) -> precompute.Source:
    steps = checkpoint.steps(staging.local(cfg.teacher) / "checkpoints")
    if not steps:
        raise ValueError(f"objective.teacher: {cfg.teacher} has no checkpoint")
    facts = {
        "rows": rows,
        "weights": _manifest(cfg.teacher, max(steps)),
        "temperature": cfg.temperature,
        "top_k": cfg.top_k,
    }

    def prepare() -> precompute.Compute:
        teacher = trained_weights.load(cfg.teacher, "last", run.plan)
        compiled = jax.jit(
            lambda params, batch: distill.kept(cfg, teacher.model, params, batch, run.plan),
            out_shardings=run.plan.replicated,
        )

        def compute(rows: np.ndarray, batch: Any) -> dict[str, np.ndarray]:
            text = transfer.batch(run.plan, batches.text(batch))
            ids, log_probs = jax.device_get(compiled(teacher.params, text))
            if np.isnan(log_probs[: len(rows)]).any():
                raise ValueError(
                    f"objective.teacher: {cfg.teacher} gives logits that are not finite"
                )
            return {"ids": ids, "log_probs": log_probs}

        return compute

    return precompute.Source(
        kind="teachers",
        facts=facts,
        field="objective.read",
        reader=f"the teacher {cfg.teacher}",
        batch=run.data.batch,
        prepare=prepare,
        join=_join_teacher,
    )


def _join_teacher(batch: Any, arrays: dict[str, np.ndarray]) -> Taught:
    return Taught(*batches.text(batch), ids=arrays["ids"], log_probs=arrays["log_probs"])


# --- A reference -----------------------------------------------------------------------------


def _reference(
    run: Run, model: Model, objective: Objective, rows: dict[str, Any]
) -> precompute.Source:
    begun = initial_weights.recorded(runs.folder(run))
    facts = {
        "rows": rows,
        "weights": _reference_weights(run, begun),
        "model": config.to_dict(run.model),
        "compute": run.plan.compute,
        "quantise": None if run.adapter is None else run.adapter.quantise,
    }

    def prepare() -> precompute.Compute:
        # as reference="frozen" reads it; with adapters, their base, in 4 bits if it is
        part = Frozen(model.spec) if run.adapter is None else objective.frozen[lora.BASE]
        held = objective._replace(frozen={"reference": part})
        weights = initial_weights.frozen(run, held, begun)["reference"]
        compiled = jax.jit(
            lambda weights, batch: responses.summed(model, weights, batch, run.plan),
            out_shardings=run.plan.replicated,
        )

        def compute(rows: np.ndarray, batch: Choices) -> dict[str, np.ndarray]:
            log_probs = jax.device_get(compiled(weights, transfer.batch(run.plan, batch)))
            wrong = np.flatnonzero(~np.isfinite(log_probs[: len(rows)]).all(axis=1))
            if len(wrong):
                raise ValueError(
                    f"objective.reference: the log-probabilities of prompt {rows[wrong[0]]} of the "
                    "data are not finite under the weights that the run begins from: "
                    f"{log_probs[wrong[0]].tolist()}"
                )
            return {"log_probs": log_probs}

        return compute

    return precompute.Source(
        kind="references",
        facts=facts,
        field="objective.reference",
        reader="the reference",
        batch=run.data.batch // run.plan.microbatches,
        prepare=prepare,
        join=_join_reference,
    )


def _reference_weights(run: Run, begun: dict[str, Any]) -> Any:
    """Identity of the reference's weights: their checkpoint's, or the seed they are drawn by."""
    if run.start is None:
        return ["seed", run.seed]
    place = staging.local(run.start) / "checkpoints"
    steps = checkpoint.steps(place)
    return _manifest(
        run.start, begun["step"] if begun else checkpoint.good(place, directory.warn, steps)
    )


def _join_reference(batch: Choices, arrays: dict[str, np.ndarray]) -> Choices:
    return batch._replace(reference=arrays["log_probs"])
