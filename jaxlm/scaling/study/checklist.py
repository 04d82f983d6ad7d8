"""The checklist of a study: every item that a reader needs to repeat its fit."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxlm.scaling import study_parts, study_record, table


def make(
    about: study_record.About,
    t: table.Table,
    options: study_record.Options,
    source: study_parts.Source,
    forms: Mapping[str, study_parts.Form],
    backtest: study_parts.Backtest,
) -> study_record.Checklist:
    """The checklist of the table that was fitted."""
    per_run = np.unique(t.run, return_counts=True)[1]
    sizes = np.unique(t.params)
    return study_record.Checklist(
        study_record.Hypothesis(
            forms={name: form.source for name, form in forms.items()},
            variables=f"N parameters ({t.counting.params}), D training tokens, "
            f"C training FLOPs ({t.counting.flops})",
            predicted=f"loss in {about.loss_unit} on {about.loss_set}",
        ),
        study_record.Setup(
            runs=len(per_run),
            sizes=len(sizes),
            size_range=(sizes[0], sizes[-1]),
            tokens_range=(t.tokens.min(), t.tokens.max()),
            flops_range=(t.flops.min(), t.flops.max()),
            architecture=about.architecture,
            corpus=about.corpus,
            tokenizer=about.tokenizer,
            optimiser=about.optimiser,
            schedule=about.schedule,
            batch=about.batch,
            tuning=about.tuning,
        ),
        study_record.Extraction(
            points=len(t.loss),
            points_per_run=(int(per_run.min()), int(per_run.max())),
            checkpoints=about.checkpoints,
            dropped=source.dropped,
            smoothing=about.smoothing,
            loss_set=about.loss_set,
            counting=t.counting,
        ),
        study_record.Fitting(
            objective=f"sum of Huber(log L - log fit), delta {options.delta:g}",
            optimiser="variable projection seeds, then Newton with exact Huber curvature "
            "(jaxlm.scaling.laws.fitting), float64",
            reached={name: form.reached for name, form in forms.items()},
            gradient={name: form.gradient for name, form in forms.items()},
            selection="least objective of all starts; other optima within 1 % are listed",
            validation=backtest,
            confidence=f"{options.bootstrap} bootstrap, {options.replicates} "
            f"replicates, seed {options.seed}, percentiles at level {options.level:g}",
        ),
    )


def not_stated(checklist: study_record.Checklist) -> list[str]:
    """The items that are not stated, as heading.item."""
    return [
        f"{heading}.{item}"
        for heading, items in dataclasses.asdict(checklist).items()
        for item, value in items.items()
        if isinstance(value, str) and study_record.NOT_STATED in value
    ]
