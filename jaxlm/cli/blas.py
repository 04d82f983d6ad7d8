"""Threads of NumPy's linear algebra, set before NumPy is imported."""

import os
import sys
from collections.abc import Sequence


def one_thread() -> None:
    """Keep BLAS to one thread, unless NumPy was imported or the user set a number: on matrices of a
    few hundred rows a second thread only waits, and burns a core while it does."""
    if "numpy" not in sys.modules:
        for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, os.environ.get("OMP_NUM_THREADS", "1"))


def fit(args: Sequence[str]) -> int:
    """jaxlm fit, on one thread."""
    one_thread()
    from jaxlm.cli.commands import fit

    return fit.fit(args)
