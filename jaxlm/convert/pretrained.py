"""Conversion of transformers checkpoints to run directories, and back."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

import jaxlm
from jaxlm import models, objectives
from jaxlm.convert import classifier, read, tokenizer_files, write
from jaxlm.convert.families import rope_parameters
from jaxlm.convert.quantised import packed_checkpoint, packed_export
from jaxlm.core import atomic, io, json_file, param
from jaxlm.core.remote import hub, objects, staging
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.corrupt import mask, span
from jaxlm.data.records import preferences
from jaxlm.data.templates import template
from jaxlm.objectives.preference import reward
from jaxlm.parallel.plan import Plan
from jaxlm.train import program, trained_weights
from jaxlm.train.run import checkpoint, directory
from jaxlm.train.run.directory import Result
from jaxlm.train.run.run import Run


def import_run(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    tokenizer_name: str | None = None,
    plan: Plan = Plan(),
    ignored: Sequence[str] = (),
    context: int | None = None,
    dequantize: bool = False,
) -> Run:
    """The Run of a new run directory with the weights of a checkpoint, a folder or a name on the
    Hugging Face hub (`core/remote/hub.py`), at step 0 and finished: it is
    sampled, evaluated, exported as any other, and another run starts from it (Run.start). A
    sequence classification with one label becomes a reward model, whose template is that of its
    tokenizer, or "plain".

    tokenizer_name: what `tokenizers.load` takes, in place of the checkpoint's own; a warning names
    ids that only it or only the model has. plan: the devices that hold the weights
    meanwhile. ignored: unknown fields of config.json that the caller answers for; env.json records
    them with their values. context: the length of texts that angles which depend on it (LongRoPE,
    dynamic NTK) are those of; None: up to the original context. The directory appears whole or not
    at all.

    Weights in few bits (`convert/quantised`) are kept so where a form here holds them exactly, on
    one device; warnings name those that are kept as arrays. dequantize: all are kept as arrays.

    Raises: FileExistsError for a target that is not empty; else as `read.inspect`, before a weight
    is read.
    """
    target = pathlib.Path(target)
    refuse_existing(target)
    given, (source, facts) = source, hub.fetched(source)
    planned = read.inspect(source, ignored)
    if planned.few is not None:
        for text in planned.few.notices:
            directory.warn(f"{given} ({planned.few.name}): {text}")
    if context is not None:
        planned = planned._replace(cfg=rope_parameters.at_context(planned.cfg, context))
    generation = tokenizer_files.generation(source)
    for text in tokenizer_files.warnings(source, tokenizer_name, planned.cfg.vocab):
        directory.warn(text)
    with atomic.folder(target) as folder:
        # the tokenizer's place in the run, and the one that it has until the folder is complete
        final = now = tokenizer_name or "bytes"
        if tokenizer_name is None:
            name = tokenizer_files.bring(source, folder / "tokenizer")
            if name is not None:
                final, now = (str(place / "tokenizer" / name) for place in (target, folder))
        run = _run(planned.cfg, target, final, plan)
        if "score" in planned.spec:
            run = _judging(run, template.OWN if template.own(now) is not None else "plain")
        facts = {**facts, "model_type": planned.model_type, "val": None}
        if planned.few is None or dequantize:
            params = read.place(planned, plan, jnp.float32)
        else:
            params, few = packed_checkpoint.place(planned, plan, str(given), directory.warn)
            facts |= few
        if planned.ignored:
            facts["ignored"] = planned.ignored
        fill(folder, target, run, params, facts, generation, tokenizers.load(now).hash)
    return run


def fill(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    run: Run,
    params: param.Tree,
    facts: dict[str, Any],
    generation: dict[str, Any],
    tokenizer_hash: str,
) -> None:
    """Write a finished run directory at step 0 into a folder that will be `target`."""
    folder = pathlib.Path(folder)
    (folder / "checkpoints").mkdir()
    sealed = directory.identity(run, tokenizer_hash, facts.get("start", {})) | facts
    checkpoint.commit_weights(folder / "checkpoints", params, sealed)
    directory.record(folder, run)
    directory.finish(folder, Result(str(target), 0, run.steps, 0, None, 0))
    _json(folder / "env.json", {"jaxlm": jaxlm.__version__, **facts})
    if generation:
        _json(folder / tokenizer_files.GENERATION, generation)


def _run(cfg: models.AnyConfig, target: pathlib.Path, tokenizer: str, plan: Plan) -> Run:
    """A Run with the objective that pretrains such a model, and rows that it can read."""
    model = models.build(cfg)
    fitting = objectives.fitting(model)
    corrupt = {"clm": None, "mlm": mask.Mask(), "seq2seq": span.Span()}[fitting]
    if isinstance(corrupt, span.Span) and isinstance(cfg, models.t5.Config):
        corrupt = dataclasses.replace(corrupt, start=cfg.start)
    seq = min(pretraining.Data().seq, model.context or pretraining.Data().seq)
    return Run(
        name=target.name,
        out=str(target.parent),
        model=cfg,
        data=pretraining.Data(tokenizer=tokenizer, seq=seq, corrupt=corrupt),
        objective=objectives.OBJECTIVES[fitting].Config(),
        plan=plan,
    )


def _judging(run: Run, layout: str) -> Run:
    """The Run of a reward model with the same model and tokenizer. It has seen no preferences here:
    training on some names their source."""
    data = preferences.Preferences(
        source="", tokenizer=run.data.tokenizer, template=layout, seq=run.data.seq
    )
    return dataclasses.replace(run, data=data, objective=reward.Config())


def export_run(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
    model_type: str | None = None,
    with_tokenizer: bool = True,
    which: trained_weights.Which = "last",
) -> str:
    """Writes a run directory as a checkpoint that transformers loads; returns its model_type. A run
    on conversations brings their template and the ends of its turns. Matrices in few bits are
    written in few bits (`quantised/packed_export.py`).

    Raises: FileExistsError for a target that is not empty; ValueError for a Config that no
    architecture can express, before the weights are read, and for a tokenizer without a file there.
    """
    source, target = staging.local(source), pathlib.Path(target)
    refuse_existing(target)
    run = directory.load(source)
    kind, record = write.architecture(run.model, model_type or was(source))
    generation = trained_weights.generation(source)
    if not generation and with_tokenizer:
        generation = tokenizer_files.special(run.data.tokenizer)
    if isinstance(run.data, preferences.Preferences) and isinstance(run.objective, reward.Config):
        written = template.load(run.data.template, run.data.tokenizer)
        pad = classifier.pad(directory.tokenizer(source, run), written, run.model.vocab)
        record = classifier.config(kind, record, pad)
    layout = None
    if with_tokenizer:
        directory.tokenizer(source, run)  # still the one that the weights were trained with
    if with_tokenizer and not isinstance(run.data, pretraining.Data):
        layout = template.load(run.data.template, run.data.tokenizer)
        ends = template.stops(layout, directory.tokenizer(source, run))
        generation = generation | {"eos_token_id": list(ends)}
    with atomic.folder(target) as folder:
        if with_tokenizer:
            tokenizer_files.give(run.data.tokenizer, folder)
        if layout is not None:
            io.write(folder / "chat_template.jinja", template.portable(layout))
        saved = trained_weights.load(source, which)
        if program.packed(source) is None:
            write.weights(folder, kind, run.model, saved.params, dtype, shard_bytes)
        else:
            record |= packed_export.weights(
                folder, kind, run.model, saved.params, dtype, shard_bytes
            )
        write.configs(folder, record, generation, dtype)
    return kind


def was(folder: str | os.PathLike[str]) -> str | None:
    """The model_type a run directory was imported as; None for one that was trained here. Its
    checkpoint records it, or env.json. Raises: json_file.Damaged."""
    folder = staging.local(folder)
    sealed = directory.proof(folder)
    if sealed is not None:
        return sealed.get("model_type")
    try:
        return json_file.read_object(pathlib.Path(folder, "env.json")).get("model_type")
    except FileNotFoundError:
        return None


def refuse_existing(target: str | os.PathLike[str]) -> None:
    """Raises: FileExistsError unless the target is absent or an empty directory; ValueError for a
    URL."""
    objects.refuse(target)
    target = pathlib.Path(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not empty; name a new directory")


def _json(path: pathlib.Path, record: dict) -> None:
    io.write(path, json.dumps(record, indent=1) + "\n")
