"""Eight CPU devices, exact matrix products and quick compiles for every test, before jax starts."""

import gc
import importlib.metadata
import os
import pathlib

# Tests compile much the same in every worker, and the slow ones what the fast ones did: what was
# compiled once is read from the disk (of one file of tests, 81 s of CPU became 36).
KEPT = {
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
for name, value in KEPT.items():
    os.environ.setdefault(name, value)

# A test runs a program of a few kilobytes once, so compiling is what costs. LLVM's optimiser and
# the MLIR emitters of fused loops are nearly all of it: without both, the init and one step of a
# three-layer model compile in 2.0 s of CPU instead of 13.6 (jaxlib 0.10.2).
FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    # Every part of a program that LLVM compiles apart costs a copy of the module: in one part, the
    # three programs of a family's laws compile in 18.9 s of CPU in place of 23.5.
    "--xla_cpu_parallel_codegen_split_count": "1",
}
# Later releases have no other emitters, and end the process at a flag they do not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
    # What the library sets for every program of that line (jaxlm.parallel.devices).
    FLAGS["--xla_cpu_experimental_ynn_fusion_type"] = "-reduce"

given = os.environ.get("XLA_FLAGS", "")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
# What the caller asks for wins: `XLA_FLAGS=--xla_backend_optimization_level=3 pytest`.
os.environ["XLA_FLAGS"] = " ".join(
    [given, *(f"{name}={value}" for name, value in FLAGS.items() if name not in given)]
).strip()

# Tracing makes many small objects that live on with the programs of a worker; not to look through
# them after every 700 takes 7 % off the CPU time of 268 tests.
gc.set_threshold(200_000, 20, 20)
