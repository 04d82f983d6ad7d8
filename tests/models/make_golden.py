"""Writes golden/parity.npz: what transformers computes for tiny random models of every case.

    python -m tests.models.make_golden

Needs torch and transformers (`pip install 'jaxlm[parity]'`). The fast suite then checks our models
against the file without either; the live suite checks that they still compute it.
"""

import json
import pathlib

import numpy as np
import torch
import transformers

from jaxlm.core import config, param
from tests.models import oracle

FILE = pathlib.Path(__file__).parent / "golden" / "parity.npz"
ROWS, LENGTH = 2, 12


def main() -> None:
    """Write the file."""
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[str, dict] = {}
    for name, (cfg, _) in oracle.CASES.items():
        theirs = oracle.model(name)
        ids = oracle.tokens(name, ROWS, LENGTH)
        logits, nll, gradient = oracle.outputs(theirs, ids)
        arrays |= {
            f"{name}:ids": ids.astype(np.int32),
            f"{name}:logits": logits,
            f"{name}:nll": nll,
            f"{name}:gradient": gradient,
        }
        for path, w in param.flatten(oracle.weights(name, theirs)).items():
            arrays[f"{name}:w:{path}"] = w
        kinds[name] = {"kind": config.kind(type(cfg)), **config.to_dict(cfg)}
    facts = {
        "configs": kinds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    arrays["facts"] = np.array(json.dumps(facts))
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {len(kinds)} models, {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
