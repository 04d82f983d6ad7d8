"""The golden file: what transformers computes for one tiny model of every model_type.

    python -m tests.convert.golden

writes it, and needs torch and transformers (`pip install 'jaxlm[parity]'`); the fast suite checks
our models against it without either, the live suite that transformers still says the same. The
weights are not in it: they follow from the names and shapes of the tensors (tests/convert/cases).
"""

import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm import convert, models
from jaxlm.convert import read
from jaxlm.convert.config_json import Fields
from jaxlm.core import param
from tests.convert import cases

FILE = pathlib.Path(__file__).parent / "golden.npz"
ROWS, LENGTH = 1, 16
# Cases whose loss and its gradient in the embedding table are stored too, by model_type.
GRADIENTS = ("openai-gpt", "gpt2", "llama", "qwen3")


def records(stored: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The config.json of every case in the file, by case."""
    return json.loads(str(stored["configs"]))


def ours(case: str, record: dict[str, Any]) -> tuple[models.AnyConfig, param.Tree]:
    """(Config, float32 NumPy weights) of a case's config.json: the drawn tensors, read by the
    rows of its table as a checkpoint's are."""
    architecture = convert.ARCHITECTURES[record["model_type"]]
    cfg = read.understood(Fields(record), record["model_type"])
    flat = param.flatten(models.spec(cfg))
    weights: dict[str, np.ndarray] = {
        p: np.full(q.shape, np.nan, np.float32) for p, q in flat.items()
    }
    for job in read.jobs(architecture.names(cfg), flat):
        shapes = job.row.shapes(job.params)
        theirs = [cases.draw(case, n, tuple(s)) for n, s in zip(job.theirs, shapes, strict=True)]
        arrays = job.row.read(theirs, job.params)
        for path, array in zip(job.ours, arrays, strict=True):
            weights[path][... if job.layer is None else job.layer] = array
    return cfg, param.nested(weights)


def main() -> None:
    """Write the file."""
    import torch
    import transformers

    from tests.convert import oracle

    arrays: dict[str, np.ndarray] = {}
    configs = {}
    for kind, case in sorted(cases.FIRST.items()):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            theirs = oracle.save(case, folder)
            configs[case] = json.loads((folder / "config.json").read_text("utf-8"))
        ids = cases.tokens(case, ROWS, LENGTH, theirs.config.vocab_size)
        arrays |= {f"{case}:ids": ids, f"{case}:logits": oracle.logits(theirs, ids)}
        if kind in GRADIENTS:
            loss = oracle.nll(theirs, ids)
            loss.backward()
            gradient = theirs.get_input_embeddings().weight.grad
            arrays |= {
                f"{case}:nll": loss.detach().numpy(),
                f"{case}:gradient": gradient.numpy().copy(),
            }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    arrays |= {"configs": np.array(json.dumps(configs)), "versions": np.array(json.dumps(versions))}
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {len(configs)} models, {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
