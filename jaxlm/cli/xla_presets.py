"""XLA flags by name, for TPUs and GPUs: a choice of how a program is compiled, not of what.

    jaxlm train CONFIG --xla-preset NAME
    jaxlm plan CONFIG --topology v6e:16x16 --xla-preset NAME

Each TPU preset changes a compiled step, and is compiled ahead of time by a test. What it gains has
to be measured on the device.
"""

from collections.abc import MutableMapping
from typing import NamedTuple

from jaxlm.core import check

Flags = dict[str, str | bool]


class Preset(NamedTuple):
    """The flags of a platform's compiler, "tpu" or "gpu"."""

    platform: str
    flags: Flags


PRESETS: dict[str, Preset] = {
    # MaxText, benchmarks/xla_flags_library.py, continuation fusion for all-gathers: products run
    # while weights arrive. Off by default on v6e with libtpu 0.0.42.
    "tpu_gather_overlap": Preset(
        "tpu",
        {
            "xla_tpu_enable_async_collective_fusion": True,
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
            "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
            "xla_tpu_overlap_compute_collective_tc": True,
            "xla_enable_async_all_gather": True,
        },
    ),
    # JAX-Toolbox, GPU_performance.md, FSDP: collectives of the next layer while this one computes.
    "gpu_overlap": Preset(
        "gpu",
        {
            "xla_gpu_enable_latency_hiding_scheduler": True,
            "xla_gpu_enable_pipelined_all_gather": True,
            "xla_gpu_enable_pipelined_reduce_scatter": True,
            "xla_gpu_enable_while_loop_double_buffering": True,
        },
    ),
}

# The variables from which the compilers read flags when a process first uses a device.
VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}


def named(name: str, platform: str | None = None) -> Preset:
    """The preset of a name. Raises: ValueError for another, and for one of another platform than
    the given."""
    fits = [key for key, preset in PRESETS.items() if platform in (None, preset.platform)]
    where = "" if platform is None else f" for {platform}"
    check.field("--xla-preset", name, name in fits, f"one of {fits}{where}")
    return PRESETS[name]


def apply(name: str, environ: MutableMapping[str, str]) -> None:
    """Set a preset's flags for this process; its environment record has them. Call it before JAX's
    first device call. Raises: ValueError for another name, and where a flag is set already."""
    preset = named(name)
    variable = VARIABLES[preset.platform]
    given = environ.get(variable, "")
    both = [flag for flag in preset.flags if f"--{flag}=" in given]
    fits = f"without {both}, which {variable} sets"
    check.field("--xla-preset", name, not both, fits)
    words = [f"--{flag}={str(value).lower()}" for flag, value in preset.flags.items()]
    environ[variable] = " ".join([*given.split(), *words])
