"""XLA flags by name: known to the compilers, set once, and each changes a compiled step."""

import jax
import jax.numpy as jnp
import pytest

from jaxlm.cli import main, xla_presets
from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.parallel.plan import Plan
from jaxlm.train.preflight import scheduled_step
from jaxlm.train.run.run import Run


def test_flags_are_set_in_the_platforms_variable():
    environ = {"LIBTPU_INIT_ARGS": "--xla_a=1"}
    xla_presets.apply("tpu_gather_overlap", environ)
    words = environ["LIBTPU_INIT_ARGS"].split()
    flags = xla_presets.PRESETS["tpu_gather_overlap"].flags
    assert words[0] == "--xla_a=1" and len(words) == 1 + len(flags)
    assert "--xla_enable_async_all_gather=true" in words
    with pytest.raises(ValueError, match="which LIBTPU_INIT_ARGS sets"):
        xla_presets.apply("tpu_gather_overlap", environ)


@pytest.mark.parametrize(
    "args, expected",
    [
        (["--topology", "v5e:4x4", "--xla-preset", "fast"], "--xla-preset: 'fast' given; it must "),
        (["--topology", "h100:8", "--xla-preset", "gpu_overlap"], "closed form, which compiles "),
        (["--xla-preset", "gpu_overlap"], "--xla-preset given without --topology"),
    ],
)
def test_wrong_presets_are_named(capsys, args, expected):
    assert main.main(["plan", "llama3-8b", *args]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [name for name, preset in xla_presets.PRESETS.items() if preset.platform == "gpu"]
)
def test_flags_of_gpus_are_known_to_this_jaxlib(name):
    """Presets that others advertised named flags that no longer exist, which end a process."""
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(2))
    lowered.compile(compiler_options=xla_presets.PRESETS[name].flags)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_no_such_flag"):
        lowered.compile(compiler_options={"xla_gpu_no_such_flag": True})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, preset in xla_presets.PRESETS.items() if preset.platform == "tpu"]
)
def test_a_preset_of_tpus_changes_a_compiled_step(name):
    pytest.importorskip("libtpu")
    run = Run(
        name="run",
        model=llama.Config(vocab=4096, embed=512, layers=4, heads=4, kv=2, head=128, ffn=2048),
        data=Data(source="markov", seq=1024, batch=8),
        plan=Plan(fsdp=8, remat="full", attention="splash", compute="bfloat16"),
    )
    flags = xla_presets.PRESETS[name].flags
    texts = [scheduled_step.schedule(run, "v6e:2x4", options).text for options in ({}, flags)]
    fused = [text.count("AsyncCollectiveStart") for text in texts]
    assert fused[0] < fused[1]
