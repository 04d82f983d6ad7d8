"""Digests of what the library computes, to compare two states of its source bit by bit.

    python -m tests.bits --write before.json      every family, objective, step and import, on CPU
    python -m tests.bits --against before.json    the same again; names what differs, exit code 1

Run both on one machine with one version of JAX: other machines round otherwise.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxlm.core import param
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from tests import programs
from tests.convert import cases, golden
from tests.objectives import test_objective_laws as laws


def digest(tree: Any) -> str:
    """Of every leaf's path, dtype, shape and bytes."""
    total = hashlib.sha256()
    for path, leaf in sorted(param.flatten({"tree": tree}).items()):
        x = np.asarray(leaf)
        total.update(f"{path} {x.dtype} {x.shape}".encode() + x.tobytes())
    return total.hexdigest()[:16]


def computed() -> Iterator[tuple[str, Any]]:
    """(name, tree of arrays) of all that is compared."""
    for family in programs.FAMILIES:
        probe = programs.prober(family, Plan())(programs.weights(family), programs.rows(1))
        yield f"logits, loss and gradient of {family}", probe._asdict()
    for case in laws.FIRST:
        total, weight, sums, grads = laws.gradient(case, Plan())(laws.rows_of(case))
        yield f"objective {case}", {"total": total, "weight": weight, "sums": sums, "grads": grads}
        objective = laws.build(case, Plan())
        tx = optimizer.build(optimizer.Optim(lr=0.02, warmup=1), objective.spec, 10, False)
        state = step.init(objective, tx, Plan(), seed=3)
        params, frozen = laws.weights(case)
        state = state._replace(params=params, frozen=frozen)
        state, metrics = step.make(objective, tx, Plan())(state, laws.rows_of(case))
        yield f"a step of {case}", {"params": state.params, "metrics": metrics}
    with np.load(golden.FILE) as stored:
        records = golden.records(dict(stored))
    for name in sorted(cases.FIRST.values()):
        yield f"import of {name}", golden.ours(name, records[name])[1]


def main() -> int:
    """The exit code: 1 if anything differs."""
    arguments = argparse.ArgumentParser(description=__doc__)
    where = arguments.add_mutually_exclusive_group(required=True)
    where.add_argument("--write", type=pathlib.Path)
    where.add_argument("--against", type=pathlib.Path)
    given = arguments.parse_args()
    digests = {name: digest(jax.tree.map(np.asarray, tree)) for name, tree in computed()}
    if given.write is not None:
        given.write.write_text(json.dumps(digests, indent=1) + "\n", "utf-8")
        print(f"{given.write}: {len(digests)} digests")
        return 0
    before = json.loads(given.against.read_text("utf-8"))
    names = sorted({*before, *digests})
    differ = [name for name in names if before.get(name) != digests.get(name)]
    print("\n".join([f"{len(names) - len(differ)} of {len(names)} are the same", *differ]))
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
