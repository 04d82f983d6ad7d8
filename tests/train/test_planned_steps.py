"""`jaxlm plan --topology`: what is printed adds up, and what cannot be planned is named."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jaxlm import models
from jaxlm.cli import main
from jaxlm.core import param, target
from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.parallel import collectives, devices, hlo, topology
from jaxlm.parallel.collectives import Collective
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import cost_report, flops, roofline
from jaxlm.train import program
from jaxlm.train.preflight import compiled_step, scheduled_step, step_report
from jaxlm.train.preflight.compiled_step import Bytes, Compiled, Refused
from jaxlm.train.run.run import Run

GIB = 2**30
V5E = topology.describe("v5e:4x4")
CFG = llama.Config(vocab=259, embed=512, layers=8, heads=4, kv=2, head=128, ffn=2048)
RUN = Run(
    name="run",
    model=CFG,
    data=Data(source="markov", seq=1024, batch=16),
    plan=Plan(fsdp=16, remat="full", compute="bfloat16"),
    steps=1000,
)
LEDGER = [
    Collective("all-gather", ("fsdp",), 16, 32, 3 * 10**11),
    Collective("all-reduce", ("fsdp",), 16, 2, 10**11),
]


def report(compiled, run=RUN, tokens=None):
    rows = step_report.rows(run, program.build(run, run.plan)[1], V5E, compiled, tokens)
    return cost_report.text(rows)


def number(text, name):
    return float(re.search(rf"^ *{re.escape(name)} +([\d.,]+)", text, re.M)[1].replace(",", ""))


def test_the_closed_form_is_marked_so():
    text = report(None)
    assert text.startswith("closed form, not compiled: v5e:4x4, fsdp=16")
    each = flops.per_token(CFG, 1024).training
    seconds = number(text, "seconds a step")
    rate = each * 16 * 1024 / 16 / 197e12
    assert number(text, "MFU") / 100 == pytest.approx(rate / seconds, rel=0.02)
    parts = sum(number(text, name) for name in ("products", "scores", "memory"))
    assert seconds == pytest.approx(max(parts, number(text, "links")), abs=0.002)


def test_a_budget_in_days_and_chip_hours():
    text = report(None, tokens=1e12)
    speed = number(text, "tokens/s")
    days, hours = re.search(r"to 1T tokens +([\d.,]+) days, ([\d,]+) chip-hours", text).groups()
    assert float(days.replace(",", "")) == pytest.approx(1e12 / speed / 86400, rel=1e-3)
    assert float(hours.replace(",", "")) == pytest.approx(1e12 / speed / 3600 * 16, rel=1e-3)
    assert "to 16.38M tokens" in report(None)  # those of the run's steps


def test_a_compiled_step_is_reported_by_its_collectives():
    """4e11 bytes at half of two links both ways, 1e11 bytes/s, are longer than all products."""
    bytes_ = Bytes(2 * GIB, 4 * GIB, 0, 2 * GIB, 3 * GIB, GIB)
    text = report(Compiled(bytes_, LEDGER, {"fsdp": 3}, frozenset({"splash_mha_fwd"}), 35.0))
    assert "compiled for v5e:4x4 in 35 s: fsdp=16" in text
    assert "it fits: 12.00 GiB of 16.00 GiB a device; the largest part is optimiser" in text
    assert re.search(r"worst hop of a ring, in links +fsdp 3", text)
    assert re.search(r"kernels +splash_mha_fwd", text)
    assert re.search(r"all-gather over fsdp \(16\) +32 times, 0.27 TiB sent, 3.000 s", text)
    assert number(text, "seconds a step") == number(text, "links") == pytest.approx(4.0)
    assert re.search(r"what binds +ICI", text)


def test_a_refused_step_says_by_how_much():
    text = report(Refused(31.5, 15.75, 40.0))
    assert "refused by the compiler in 40 s" in text
    assert "no: 31.50 GiB of 15.75 GiB; the largest part is activations" in text
    assert "seconds a step" not in text


def test_the_change_that_is_named_makes_tokens_cheaper():
    text = step_report.smallest_change(RUN, program.build(RUN, RUN.plan)[1], V5E)
    assert re.fullmatch(r"--plan.remat dots: \d+% less time a token by the closed form", text)


@pytest.mark.parametrize(
    "message",
    [
        "Used 31.22G of 15.75G hbm. Exceeded hbm capacity by 15.47G.",
        "Ran out of memory on HBM, the total memory required for HLO temporaries (31.22G) exceeds "
        "available HBM (15.75G).",
    ],
)
def test_an_error_of_the_compiler_other_than_memory_is_raised(message):
    """XLA's two forms, after memory is assigned and before; libtpu 0.0.42.1 gives the second."""
    error = jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")
    assert compiled_step.refused(error, 1.0) == Refused(31.22, 15.75, 1.0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compiled_step.refused(jax.errors.JaxRuntimeError("INTERNAL: a bug"), 1.0)


def test_activations_are_what_the_largest_loop_keeps_for_each_layer():
    w = jax.ShapeDtypeStruct((5, 8, 8), jnp.float32)
    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)

    def loss(w, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, w)[0])

    text = jax.jit(jax.grad(loss)).lower(w, x).compile().as_text()
    assert compiled_step.stacked(hlo.parse(text), {(5, 8, 8)}) == 5 * 4 * 8 * 4


@pytest.mark.parametrize(
    "args, expected",
    [
        (["--topology", "v9:2x2"], "--topology: 'v9:2x2' given; it must be a kind of"),
        (
            ["--topology", "2xh100:8", "--plan.fsdp", "16"],
            "plan.slices: 1 given; it must be 2, the ",
        ),
        (["--tokens", "1e12"], "--tokens given without --topology"),
        (["--topology", "cpu:8", "--tokens", "1e12"], "absent with --topology cpu:8, for which no"),
        (["--topology", "cpu:8", "--search", "2"], "--search: 2.0 given; it must be absent with"),
        (["--search", "2"], "--search given without --topology"),
        (["--topology", "h100:8", "--tokens", "many"], "--tokens: 'many' given; a number of tok"),
    ],
)
def test_wrong_options_are_named(capsys, args, expected):
    assert main.main(["plan", "llama3-8b", *args]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", [["plan"], ["plan", "--topology", "h100:8"], ["certify"]])
def test_replicas_of_a_run_without_any_are_refused_everywhere(capsys, command):
    """`train` refused plan.replica without diloco; `plan` and `certify` reported on devices that
    would have computed the same rows."""
    name, *rest = command
    assert main.main([name, "llama3-8b", "--plan.replica", "8", *rest]) == 2
    assert "plan.replica: 8 given; it must be 1 with diloco=None" in capsys.readouterr().err


def test_gpus_are_planned_by_the_closed_form(capsys):
    args = ["--plan.fsdp", "8", "--data.batch", "8", "--plan.remat", "full"]
    assert main.main(["plan", "llama3-8b", "--topology", "h100:8", *args]) == 0
    text = capsys.readouterr().out
    assert text.startswith("closed form, not compiled: h100:8, fsdp=8")
    assert roofline.RATES.products < 1


def test_nodes_are_planned_with_their_network(capsys):
    """Gradients over the network between two nodes; a search has a copy of the weights in each."""
    args = ["plan", "llama3-8b", "--topology", "2xh100:8", "--data.batch", "16", "--plan.remat"]
    assert main.main([*args, "full", "--layout", "hybrid:2x8"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("closed form, not compiled: 2xh100:8, data=2 x fsdp=8")
    sent = models.presets()["llama3-8b"]
    held = param.count(models.spec(sent)) / 8
    assert number(text, "  network") == pytest.approx(4 * held / 25e9, rel=0.01)
    assert main.main([*args, "full", "--data.seq", "2048", "--search", "1"]) == 0
    assert "  data=2 x " in capsys.readouterr().out


def test_a_search_puts_the_fastest_layout_that_fits_first(capsys):
    """8B on 8 GPUs: without recomputation one row a device does not fit into 80 GiB."""
    args = ["--data.batch", "8", "--data.seq", "4096", "--plan.attention", "cudnn"]
    assert main.main(["plan", "llama3-8b", "--topology", "h100:8", "--search", "3", *args]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "layouts of h100:8, best first"
    times = [float(re.search(r"  ([\d.]+) s, ", line)[1]) for line in lines[1:4]]
    assert times == sorted(times) and len(times) == 3
    assert all(float(re.search(r"([\d.]+) GiB", line)[1]) <= 80 for line in lines[1:4])
    assert main.main(["plan", "llama3-405b", "--topology", "h100:8", "--search", "3", *args]) == 2
    assert "--search: none of" in capsys.readouterr().err


TINY = dataclasses.replace(
    RUN,
    model=llama.Config(vocab=259, embed=16, layers=2, heads=2, kv=2, head=8, ffn=32),
    data=Data(source="markov", seq=32, batch=8),
    plan=Plan(data=4),
)


def test_a_step_is_compiled_for_cpu_devices(monkeypatch):
    """Weights are copied, so their gradients are summed once, with the loss, its weight and two
    metrics; float32 on a CPU, wherever the planning process computes."""
    slice_ = topology.load("cpu:4")
    with target.compiling_for("tpu"):
        compiled = compiled_step.compile_step(TINY, slice_)
    assert isinstance(compiled, Compiled) and compiled.hops == {}
    count = param.count(llama.spec(TINY.model))
    sums = round(4 * (count + 4) * 2 * 3 / 4)
    assert {(r.kind, r.axes, r.sent) for r in compiled.ledger} == {("all-reduce", ("data",), sums)}
    assert compiled.bytes.weights == 4 * count
    assert 0 <= compiled.bytes.optimiser - 2 * 4 * count < 64  # and some numbers
    with target.compiling_for("cpu", slice_.devices):
        held = scheduled_step.lower(TINY, slice_).compile().memory_analysis()
    # what is neither an argument nor a result in its place is a temporary
    whole = held.argument_size_in_bytes + held.temp_size_in_bytes
    assert sum(compiled.bytes) == pytest.approx(whole, rel=0.01)
    monkeypatch.setattr(devices, "host_memory", lambda: 4 * sum(compiled.bytes) - 1)
    built = program.build(TINY, TINY.plan)[1]
    text = cost_report.text(step_report.rows(TINY, built, slice_, compiled, None))
    assert text.startswith("compiled for cpu:4 in ")
    assert re.search(r"does it fit\? +no: .* by 4 of one machine", text)
    assert re.search(r"all-reduce over data \(4\) +\d+ times, .* sent$", text, re.M)
    each = cost_report.si(flops.per_token(TINY.model, 32).training * 8 * 32)
    assert re.search(rf"FLOPs of a step, model's +{each}FLOPs", text)
    assert "seconds a step  " in text and "not predicted" in text and "MFU" not in text


@pytest.mark.slow
def test_a_step_is_compiled_for_a_tpu():
    """The whole way, where libtpu is installed: parts add up to the compiler's peak, the attention
    that was chosen is in the program, and a compilation that goes on to machine code, which took
    nine tenths of 200 s for a step of 8B parameters, has the same peak and collectives."""
    pytest.importorskip("libtpu")
    run = dataclasses.replace(
        RUN,
        model=llama.Config(vocab=512, embed=256, layers=2, heads=2, kv=2, head=128, ffn=512),
        data=Data(source="markov", seq=512, batch=4),
        plan=Plan(fsdp=4, remat="full", attention="splash", compute="bfloat16"),
    )
    slice_ = topology.load("v5e:2x2")
    compiled = compiled_step.compile_step(run, slice_)
    assert isinstance(compiled, Compiled)
    assert all(size >= 0 for size in compiled.bytes)
    assert any(name.startswith("splash") for name in compiled.kernels)
    assert {row.axes for row in compiled.ledger} == {("fsdp",)}
    assert compiled.hops == {"fsdp": 1}
    # tests ask for exact products, which splash has not for bfloat16
    with jax.default_matmul_precision("default"):
        whole = scheduled_step.lower(run, slice_).compile()
    with target.compiling_for("tpu", slice_.devices):
        mesh = run.plan.mesh
    assert collectives.ledger(whole.as_text(), mesh) == compiled.ledger
    held = whole.memory_analysis()
    peak = held.peak_memory_in_bytes - held.generated_code_size_in_bytes
    assert 0 <= peak - sum(compiled.bytes) < 2 * 2**20  # of a program of GiB


@pytest.mark.slow
def test_a_step_that_the_compiler_refuses():
    """The error of the compiler's process arrives as memory used and available."""
    pytest.importorskip("libtpu")
    run = dataclasses.replace(
        RUN, plan=Plan(fsdp=4), data=Data(source="markov", seq=8192, batch=64), model=CFG
    )
    compiled = compiled_step.compile_step(run, topology.load("v5e:2x2"))
    assert isinstance(compiled, Refused) and compiled.used > compiled.available == 15.75


@pytest.mark.slow
def test_64_chips_gather_and_scatter():
    """All-reduces of whole, zero-padded weights took the place of gathers, and of gradients that of
    sums that are split, on 64 chips of a v5p: twice the bytes, and an array in full each."""
    pytest.importorskip("libtpu")
    model = llama.Config(vocab=2048, embed=1024, layers=2, heads=8, kv=8, head=128, ffn=2048)
    run = Run(
        name="run",
        model=model,
        data=Data(source="markov", seq=128, batch=64),
        plan=Plan(fsdp=64, remat="full", compute="bfloat16"),
    )
    with jax.default_matmul_precision("default"):
        compiled = compiled_step.compile_step(run, topology.load("v5p:4x4x4"))
    assert isinstance(compiled, Compiled)
    sent = {}
    for row in compiled.ledger:
        sent[row.kind] = sent.get(row.kind, 0) + row.sent
        # both axes at once: scalars, scales of norms and the tokens' numbers
        assert len(row.axes) == 1 or row.sent < 10 * 4 * 64 * 128
    assert sent["all-reduce"] < 0.01 * sum(sent.values())
    # in bfloat16: for the forward and the backward pass, the output matrix once, the table never
    gathered = 2 * (2 * param.count(llama.spec(model)) - 3 * model.vocab * model.embed)
    assert sent["all-gather"] == pytest.approx(gathered * 63 / 64, rel=0.01)
    assert sent["reduce-scatter"] > sent["all-gather"] / 2 * 0.9
    assert {"all-gather", "reduce-scatter", "all-to-all"} <= {*sent}


def test_without_libtpu_the_report_is_the_closed_form_and_says_so(monkeypatch, capsys):
    def load(name):
        raise ImportError("libtpu: pip install 'jaxlm[tpu]'")

    monkeypatch.setattr(topology, "load", load)
    args = ["plan", "llama3-8b", "--topology", "v5e:4x4", "--plan.fsdp", "16", "--data.batch", "16"]
    assert main.main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "closed form alone: libtpu: pip install 'jaxlm[tpu]'"
    assert "closed form, not compiled: v5e:4x4, fsdp=16" in lines
