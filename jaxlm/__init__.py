"""jaxlm: the whole life of a language model as pure functions in JAX.

    run = jaxlm.Run(name="first", model=jaxlm.models.llama.Config(), data=jaxlm.Data(), steps=60)
    result = jaxlm.train(run)
    saved = jaxlm.load("runs/first")
    jaxlm.generate(saved, ["Once upon"])
    jaxlm.evaluate(saved)

Names and sub-packages are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlm import (
        convert,
        data,
        decode,
        eval,
        feedback,
        models,
        objectives,
        ops,
        parallel,
        scaling,
        train,
    )
    from jaxlm.api import evaluate, generate, generate_file
    from jaxlm.data.pretraining import Data
    from jaxlm.data.rows.mix_parts import Part
    from jaxlm.decode.constraints import Constraint
    from jaxlm.decode.sampling_settings import Sampling
    from jaxlm.decode.search.beam_search import Beams
    from jaxlm.decode.search.contrastive_search import Contrastive
    from jaxlm.decode.speculate.speculative_sampling import Speculate
    from jaxlm.parallel.plan import Plan
    from jaxlm.train.optim.optimizer import Optim
    from jaxlm.train.run.run import Run
    from jaxlm.train.trained_weights import load

__version__ = "0.1.0"
__all__ = ["Beams", "Constraint", "Contrastive", "Data", "Optim", "Part", "Plan", "Run"]
__all__ += ["Sampling", "Speculate", "evaluate", "generate", "generate_file", "load"]
__all__ += ["convert", "data", "decode", "eval", "feedback", "models", "objectives", "ops"]
__all__ += ["parallel", "scaling", "train"]

# Where the names above are defined.
_HOMES = {
    "Beams": "jaxlm.decode.search.beam_search",
    "Constraint": "jaxlm.decode.constraints",
    "Contrastive": "jaxlm.decode.search.contrastive_search",
    "Data": "jaxlm.data.pretraining",
    "Optim": "jaxlm.train.optim.optimizer",
    "Part": "jaxlm.data.rows.mix_parts",
    "Plan": "jaxlm.parallel.plan",
    "Run": "jaxlm.train.run.run",
    "Sampling": "jaxlm.decode.sampling_settings",
    "Speculate": "jaxlm.decode.speculate.speculative_sampling",
    "evaluate": "jaxlm.api",
    "generate": "jaxlm.api",
    "generate_file": "jaxlm.api",
    "load": "jaxlm.train.trained_weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"jaxlm.{name}")
    raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
