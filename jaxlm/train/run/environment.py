"""The machine under a run: the compilation cache, and a record of everything that ran it."""

import datetime
import importlib.metadata
import logging
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp

import jaxlm
from jaxlm.core import target
from jaxlm.scaling.cost import flops
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def quiet() -> None:
    """Let orbax's threads and their tasks not print tracebacks: what they raise is raised here
    again, in words."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # "Task exception was never retrieved", of the writes along with one that a full disk refused
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


def kernels(run: Run) -> dict[str, str]:
    """The implementation chosen for each op that has several."""
    linear = "flat_custom_vjp" if target.platform() == "cpu" else "xla_einsum"
    return {"attention": run.plan.attention, "linear": linear, "loss": "chunked"}


def describe(run: Run, corpus: dict[str, Any]) -> dict[str, Any]:
    """Everything about this start that config.json does not hold, ready for JSON. corpus: what is
    known of the data."""
    devices = jax.devices()
    return {
        "jaxlm": jaxlm.__version__,
        "revision": revision(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "config_digest": runs.digest(run),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "environment": {
            k: v for k, v in os.environ.items() if k.startswith(("XLA_", "JAX_", "LIBTPU_"))
        },
        "backend": jax.default_backend(),
        "devices": [d.device_kind for d in devices],
        "processes": jax.process_count(),
        "dtype": jnp.dtype(run.plan.dtype).name,
        "kernels": kernels(run),
        "parameters": runs.parameters(run),
        "flops_per_token": {
            "causal": flops.per_token(run.model, run.data.seq).training,
            "full": flops.per_token(run.model, run.data.seq, causal=False).training,
        },
        "corpus": corpus,
    }


def revision() -> str | None:
    """The git commit this package runs from, "+changed" if files differ from it; None if it was
    not started from a checkout or there is no git."""
    package = pathlib.Path(jaxlm.__file__).parent

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *command], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Installed into an environment that is in some other checkout, git would name that one.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".")
    return f"{commit}+changed" if status else commit


# Peak bf16 FLOP/s per device, dense, from the makers' datasheets. A device that is not here has
# its FLOP/s reported without a utilisation.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H200": 989.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops() -> float | None:
    """Peak FLOP/s of one device, None where no datasheet figure is known (CPUs)."""
    return PEAK_FLOPS.get(jax.devices()[0].device_kind)


def peak_memory() -> dict[str, int]:
    """The most bytes held so far: of the first local device, or of this process on CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"device_peak_bytes": stats["peak_bytes_in_use"]}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def headline(run: Run, described: dict[str, Any], begun: int) -> str:
    """Lines on a run that starts after step `begun`, by what `describe` gave."""
    kinds = sorted(set(described["devices"]))
    kernels = " ".join(f"{op}={name}" for op, name in described["kernels"].items())
    start = f"resuming at step {begun} of" if begun else "training for"
    return (
        f"{runs.folder(run)}: {described['parameters']:,} parameters, {start} {run.steps} steps\n"
        f"{described['backend']} x{len(described['devices'])} ({', '.join(kinds)}), using "
        f"{run.plan.devices}; {described['dtype']}; {kernels}"
    )
