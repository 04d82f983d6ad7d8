"""Eight CPU devices, exact matrix products and quick compiles for every test, before jax starts;
then which worker runs a test, and in which order."""

import gc
import importlib.metadata
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
JAXLIB = importlib.metadata.version("jaxlib")
HOME = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")

# Tests compile much the same in every worker, the slow ones what the fast ones did, and another
# clone what this one did: what was compiled once is read from the disk (of one file of tests, 81 s
# of CPU became 36). JAX's keys hold the program, its flags and jaxlib's version; the folder is
# named after the version so that an old one can be deleted.
KEPT = {
    "JAX_COMPILATION_CACHE_DIR": str(HOME / "jaxlm" / f"tests-{JAXLIB}"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
# OpenMP's threads wait busily for one another, here over arrays of a few kilobytes: of two live
# comparisons of greedy decoding, 30.4 s of CPU became 16.8 (PyTorch 2.13, 2 cores).
THREADS = {"OMP_NUM_THREADS": "1"}
for name, value in (KEPT | THREADS).items():
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
if JAXLIB.startswith("0.10."):
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

# Longest first: the last to end is then a short one. What starts processes of its own and waits
# for them comes before all.
ORDER = (
    "test_mutants.py", "experiments", "train", "objectives", "test_laws.py", "decode", "convert",
    "scaling",
)  # fmt: skip


# What `make test-newest` runs: what depends on the versions of Python, JAX and NumPy, once each. By
# path, words of which a test's name has one; all its tests, where there are none. Newer compilers
# have no quick setting, so that a test costs three times as much.
NEWEST: dict[str, tuple[str, ...]] = {
    "core": (),
    "ops/kernels": (),
    "ops/test_attention.py": (),
    "ops/test_linear.py": (),
    "ops/quant": (),
    "ops/test_penalties.py": (),
    "ops/test_sampling.py": (),
    "parallel/test_collective_counts.py": (),
    "parallel/test_collectives.py": (),
    "parallel/test_context_parallel.py": ("[everything]", "[gathered]"),
    "parallel/test_devices.py": (),
    "parallel/test_expert_parallel.py": ("[none]", "[spread]"),
    "parallel/test_mesh_layouts.py": (),
    "parallel/test_pipeline_parallel.py": ("in_order",),
    "parallel/test_plan.py": (),
    "parallel/test_rules.py": (),
    "parallel/test_topology.py": (),
    "models/test_flax_modules.py": ("nnx", "greedy", "dropout", "weights", "keeps"),
    "objectives/test_objective_laws.py": ("[ppo]",),
    "objectives/test_lora.py": ("at_first",),
    "test_laws.py": ("llama-all", "t5-xla", "test_9_with_dropout", "adding_a_weight"),
    "cli/test_field_overrides.py": (),
    "cli/test_schema.py": (),
    "data/test_pack.py": ("segments",),
    "decode/test_sampling_loop.py": ("[llama]", "finds_copies", "another_program"),
    "eval": (),
    "train/test_step.py": ("llama-all", "overflow", "muon", "level"),
    "train/test_loop.py": ("complete_directory", "same_run"),
    "train/optim": ("optax", "muon", "scale", "rate"),
    "train/run/test_checkpoint.py": (),
    "convert/test_golden.py": ("[gpt_oss]", "[deepseek-v3]", "[bert]"),
    "scaling/laws/test_fitting.py": (),
}


def is_newest(item: pytest.Item) -> bool:
    """Whether NEWEST has a test."""
    path = item.path.relative_to(ROOT / "tests").as_posix()
    words = [w for start, w in NEWEST.items() if path == start or path.startswith(f"{start}/")]
    return any(not some or any(word in item.name for word in some) for some in words)


def place(path: pathlib.Path) -> int:
    """The place of a test file's folder in ORDER, or after it."""
    first = path.relative_to(ROOT / "tests").parts[0]
    return ORDER.index(first) if first in ORDER else len(ORDER)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of a file are one group, which one worker runs, unless they say another: what they
    share is then traced once."""
    for item in items:
        if is_newest(item):
            item.add_marker(pytest.mark.newest)
        if item.get_closest_marker("xdist_group") is None:
            group = item.path.relative_to(ROOT).as_posix()
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: place(item.path))
    if config.getoption("loadgroup", False):
        for item in items:
            name_group(item)


def name_group(item: pytest.Item) -> None:
    """Put a test's group at the end of its name, where `--dist loadgroup` reads it. pytest-xdist
    3.8 does so in an attribute that pytest 9.2 no longer has, and every test is a group."""
    group = item.get_closest_marker("xdist_group")
    if "@" not in item.nodeid and group is not None:
        item._id = type(item.id).parse(f"{item.nodeid}@{group.args[0]}")


# Compiled programs hold mappings of memory, and at the kernel's limit for a process (65,530
# unless vm.max_map_count says another) the compiler ends in a segmentation fault: one worker of
# `make slow parity` came there after 800 tests (jaxlib 0.10.2).
MAPPINGS = 30_000


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After a file's last test, give the programs of earlier files up where there are too many."""
    if nextitem is None or nextitem.path == item.path:
        return
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


def pytest_sessionfinish() -> None:
    """pytest then looks five times through all that lives: the programs of a whole worker."""
    gc.freeze()
