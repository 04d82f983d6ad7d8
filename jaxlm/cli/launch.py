"""Set-up of a process before JAX starts: devices on the CPU, and large pages.

On a CPU the devices of a plan are threads of this machine, so `--plan.data 2` splits a batch over
two cores with the same sharding code as a pod.
"""

import importlib.util
import os
import pathlib
import pkgutil
import re
import sys

THREADS = "--xla_cpu_multi_thread_eigen=false"
PAGES = "glibc.malloc.hugetlb=1"
NODES = pathlib.Path("/dev")
# Accelerators' entries in /dev: a TPU's chips, NVIDIA's and AMD's GPUs, those of WSL.
DEVICES = {
    "tpu": ("accel[0-9]*", "vfio/[0-9]*"),
    "cuda": ("nvidia[0-9]*", "dxg"),
    "rocm": ("kfd", "dxg"),
}


def restart(environ: dict[str, str]) -> dict[str, str] | None:
    """The environment in which this process should be started once more; None if it need not.

    XLA's CPU client takes its buffers from malloc, and most of a small step is the page faults of
    fresh ones. glibc hands out large pages when set so before the process starts. Only on Linux,
    without an accelerator. JAXLM_HUGEPAGES=0, or any own choice of glibc.malloc.hugetlb in
    GLIBC_TUNABLES, leaves the process as it is.
    """
    tunables = environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or environ.get("JAXLM_HUGEPAGES") == "0":
        return None
    if "glibc.malloc.hugetlb" in tunables or accelerated(environ):
        return None
    return environ | {"GLIBC_TUNABLES": f"{tunables}:{PAGES}".lstrip(":")}


def accelerated(environ: dict[str, str], nodes: pathlib.Path = NODES) -> bool:
    """Whether JAX may start on a GPU or TPU: JAX_PLATFORMS names one, or a plugin is installed and
    the machine has a device for it under `nodes`.

    A plugin alone is no device: libtpu is also what compiles for TPUs elsewhere. A plugin of
    another maker counts, since its devices are not known here.
    """
    named = [name for name in environ.get("JAX_PLATFORMS", "").split(",") if name]
    if named:
        return named != ["cpu"]
    plugins = {"tpu"} if importlib.util.find_spec("libtpu") else set()
    if (spec := importlib.util.find_spec("jax_plugins")) is not None:
        modules = pkgutil.iter_modules(spec.submodule_search_locations)
        plugins |= {re.sub(r"^xla_|\d+$", "", module.name) for module in modules}
    return any(any(nodes.glob(p)) for name in plugins for p in DEVICES.get(name, ("*",)))


def prepare() -> None:
    """Start this process once more with `restart`'s environment, if it gives one; the process id,
    files and terminal stay. Call it before anything slow is imported."""
    environ = restart(dict(os.environ))
    if environ is not None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def devices(count: int) -> None:
    """Let the CPU client have `count` devices, a thread each. Call it before JAX's first device
    call; it has no effect on other platforms, or where XLA_FLAGS already sets their number."""
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if count < 2 or "xla_force_host_platform_device_count" in flags:
        return
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {THREADS}".strip()
    jax.config.update("jax_num_cpu_devices", count)
