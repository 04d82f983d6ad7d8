"""`jaxlm train` and `jaxlm plan`: a config's run, and its cost before it."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxlm import models, objectives
from jaxlm.cli import arguments, field_overrides, launch, retries, xla_presets
from jaxlm.core import check, config, json_file
from jaxlm.core import target as devices_elsewhere
from jaxlm.core.remote import staging
from jaxlm.data import kinds, pretraining
from jaxlm.data.pretraining import Data
from jaxlm.data.rows import mix_plan
from jaxlm.models import llama
from jaxlm.models.layers import moe, stack
from jaxlm.parallel import mesh_layouts, multihost, topology
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import cost_report, memory
from jaxlm.train import inputs, loop, program
from jaxlm.train.optim import diloco
from jaxlm.train.preflight import compiled_step, layout_search, memory_check, step_report
from jaxlm.train.run import certificate
from jaxlm.train.run.run import Run

PLAN_OPTIONS = """
--memory GIB: of each device; without it the plan is held against this machine
--topology NAME: compile the step for a TPU slice, such as v5p:4x4x8 (extra [tpu]), or for several,
  2xv5p:4x4x8, and predict its time; of GPUs, such as h100:8, predict it by the closed form; for
  CPU devices, such as cpu:8, compile it and predict no time
--search N: compare layouts, remat and micro-batches for that topology by the closed form, compile
  the best N, and report the best of them
--xla-preset NAME: compile with these flags of XLA
--tokens N: the budget whose days and chip-hours are printed with --topology, such as 15e12"""


def train(args: Sequence[str]) -> int:
    """jaxlm train CONFIG [--layout NAME:DEVICES] [--retries N] [--field value ...]; CONFIG may be a
    run's config.json"""
    if not args or args[0] in ("-h", "--help"):
        print(arguments.usage("train"))
        print(f"\n--layout {_layout()}")
        print(retries.HELP)
        print("\nThe fields of every config, with the defaults of a LLaMA-style model:\n")
        field_overrides.apply(
            Run(name="NAME", model=llama.Config()), ["--help"], "jaxlm train CONFIG"
        )
    args, preset = _option(list(args), "--xla-preset")
    if preset is not None:
        xla_presets.apply(preset, os.environ)
    args, limit = retries.option(args)
    target, overrides = arguments.target("train", args)
    if {"-h", "--help"} & {*overrides}:
        print(retries.HELP)
    run = _overridden(_run(target), overrides, f"jaxlm train {target}")
    environ = dict(os.environ)
    if limit is not None:
        return retries.train(run, args, limit, environ)
    with multihost.watched(environ):
        processes = multihost.join(environ)
        if processes is not None:
            launch.devices(run.plan.devices // processes)
        if preset is not None:
            xla_presets.named(preset, jax.default_backend())
        return loop.run(run).exit_code


def plan(args: Sequence[str]) -> int:
    """jaxlm plan CONFIG-or-PRESET [--topology NAME [--tokens N]] [--memory GIB] [--field value]"""
    if not args or args[0] in ("-h", "--help"):
        print(arguments.usage("plan"))
        print(PLAN_OPTIONS)
        print(f"--layout {_layout()}")
        print(f"\npresets: {', '.join(models.presets())}")
        return 0
    target, overrides = arguments.target("plan", args)
    if help_only := bool({"-h", "--help"} & set(overrides)):
        print(PLAN_OPTIONS)
    overrides, device_gib = _number(overrides, "--memory", "the GiB of a device", "80")
    overrides, tokens = _number(overrides, "--tokens", "a number of tokens", "15e12")
    overrides, count = _number(overrides, "--search", "a number of layouts", "3")
    overrides, name = _option(overrides, "--topology")
    overrides, preset = _option(overrides, "--xla-preset")
    if name is not None and not help_only:
        print(cost_report.text(_elsewhere(target, overrides, name, tokens, count, preset)))
        return 0
    for option, value in (("--tokens", tokens), ("--search", count), ("--xla-preset", preset)):
        if value is not None and not help_only:
            raise ValueError(f"{option} given without --topology, which it is about")
    run = _chosen("plan", target, overrides)
    built = program.build(run, run.plan)[1]
    tx = program.optimiser(run, built.spec)
    steps = None if target in models.presets() else run.steps
    rows = cost_report.rows(
        run.model,
        run.plan,
        batch=run.data.batch,
        seq=run.data.seq,
        steps=steps,
        tx=tx,
        dtype=run.plan.dtype,
        targets=pretraining.target_length(run.data) if isinstance(run.data, Data) else None,
    )
    print(cost_report.text([*rows, *memory_check.rows(run, built, device_gib)]))
    if isinstance(run.data, Data) and run.data.mix:
        _print_mixture(run, run.data)
    return 0


def _print_mixture(run: Run, data: Data) -> None:
    """Prints the plan of a run's mixture, which is tokenised now if it was not before. Raises:
    ValueError as training would."""
    check.refuse("", data.problems())
    mixture = inputs.planned(run, inputs.open_text(data, False, run.model.vocab)[0])
    assert mixture is not None
    print("\n".join(["", *mix_plan.table(mixture)]), flush=True)
    check.refuse("this run cannot start:", mix_plan.problems(mixture))


def certify(args: Sequence[str]) -> int:
    """jaxlm certify CONFIG-or-PRESET [--field value ...], on CPU devices whatever there are"""
    if not args or args[0] in ("-h", "--help"):
        print(arguments.usage("certify"))
        print("\nUnder the plan, and on one device: --plan.fsdp 2 --plan.context 4, say")
        print(f"\n--layout {_layout()}")
        print(f"\npresets: {', '.join(models.presets())}")
        return 0
    target, overrides = arguments.target("certify", args)
    run = _chosen("certify", target, overrides)
    jax.config.update("jax_platforms", "cpu")
    launch.devices(run.plan.devices)
    result = certificate.certify(run)
    print("\n".join(certificate.lines(result)))
    return 0 if result.different is None else 1


def _chosen(command: str, target: str, overrides: Sequence[str]) -> Run:
    """The Run of a config or preset with overrides.

    Raises: ValueError for a plan with replicas that the run does not have, as training it does.
    """
    preset = models.presets().get(target)
    if preset is None:
        run = _loaded(config.load(target), target)
    else:
        # A published model has no run: one row of its context, on an accelerator.
        data = Data(seq=preset.context, batch=1)
        objective = objectives.OBJECTIVES[objectives.fitting(models.build(preset))].Config()
        plan = Plan(compute="bfloat16")
        run = Run(name=target, model=preset, data=data, objective=objective, plan=plan)
    run = _overridden(run, overrides, f"jaxlm {command} {target}", command != "certify")
    check.refuse("", diloco.problems(run.diloco, run.plan, run.steps, run.eval_every, run.optim))
    return run


def _overridden(run: Run, args: Sequence[str], prog: str, rows: bool = True) -> Run:
    """The run with overrides, those of its plan on top of `--layout NAME:DEVICES`. rows: whether a
    layout has to divide its batches."""
    if {"-h", "--help"} & {*args}:
        print(f"--layout {_layout()}\n")
    args, value = _option(list(args), "--layout")
    if value is None:
        return field_overrides.apply(run, args, prog)
    match = re.fullmatch(r"(\w+):(?:(\d+)x)?(\d+)", value)
    if match is None:
        raise ValueError(f"--layout: {value!r} given; it must be {_layout()}")
    own = [i for i, arg in enumerate(args) if arg.startswith("--plan.")]
    own += [i + 1 for i in own if "=" not in args[i] and i + 1 < len(args)]
    run = field_overrides.apply(run, [a for i, a in enumerate(args) if i not in own], prog)
    slices = int(match[2] or 1)
    devices = slices * int(match[3])
    suits = functools.partial(_suit, run, rows)
    plan = mesh_layouts.named(match[1], devices, slices, run.plan, suits)
    run = dataclasses.replace(run, plan=plan)
    return field_overrides.apply(run, [args[i] for i in sorted(own)], prog)


def _layout() -> str:
    """The values of `--layout`, in words."""
    names = ", ".join(mesh_layouts.LAYOUTS)
    return (
        f"NAME:DEVICES or NAME:SLICESxDEVICES, of the layouts {names}: the mesh of the plan, which "
        "--plan.FIELD changes further"
    )


def _suit(run: Run, rows: bool, plan: Plan) -> None:
    """Raises: ValueError for a plan that does not divide a run's model or, with rows, its batches,
    and for one that has nothing to divide."""
    spec = models.spec(run.model)
    memory.spec_bytes(spec, memory.mesh(plan), jnp.float32)
    stack.check(spec, plan)
    fits = "1 for a model without experts"
    check.field("plan.expert", plan.expert, plan.expert == 1 or moe.has(spec), fits)
    for stage in kinds.stages(run.data) if rows else ():
        fits = f"a multiple of {plan.multiple} under {plan}"
        check.field("data.batch", stage.batch, stage.batch % plan.multiple == 0, fits)
        fits = f"a multiple of {plan.context} under {plan}"
        check.field("data.seq", stage.seq, stage.seq % plan.context == 0, fits)


def _elsewhere(
    target: str,
    overrides: list[str],
    name: str,
    tokens: float | None,
    count: float | None,
    preset: str | None,
) -> list[cost_report.Row]:
    """The report of a step on a topology: compiled for TPUs and CPUs, by the closed form for GPUs;
    with `count`, of the best of so many layouts, after a line for each."""
    described, hint = topology.describe(name), []
    if described.chip.platform == "cpu":
        for option, value in (("--search", count), ("--tokens", tokens)):
            fits = f"absent with --topology {name}, for which no time is predicted"
            check.field(option, value, value is None, fits)
        jax.config.update("jax_platforms", "cpu")
        launch.devices(described.chips)
        described = topology.load(name)
    if described.chip.platform == "tpu":
        try:
            described = topology.load(name)
        except ImportError as error:  # the report says that it is not compiled
            hint = [cost_report.Row(f"closed form alone: {error}", "")]
    options = {}
    if preset is not None:
        fits = "absent from a report by the closed form, which compiles nothing"
        check.field("--xla-preset", preset, bool(described.devices), fits)
        options = xla_presets.named(preset, described.chip.platform).flags
    with devices_elsewhere.compiling_for(described.chip.platform, described.devices):
        run = _chosen("plan", target, overrides)
        if count is None:
            fits = f"{described.slices}, the slices of --topology {name}"
            check.field("plan.slices", run.plan.slices, run.plan.slices == described.slices, fits)
        built = program.build(run, run.plan)[1]
        if count is None:
            compiled = None
            if described.devices:
                compiled = compiled_step.compile_step(run, described, options)
            return [*hint, *step_report.rows(run, built, described, compiled, tokens)]
        best = layout_search.best(run, built, described, int(count))
        steps = layout_search.compiled(best, described, options)
        run, compiled = steps[0]
        built = program.build(run, run.plan)[1]
        report = step_report.rows(run, built, described, compiled, tokens)
        return [*hint, *layout_search.rows(steps, described), *report]


def _option(args: list[str], name: str) -> tuple[list[str], str | None]:
    """(the arguments without `name VALUE`, the value; None where it is absent)."""
    if name not in args:
        return args, None
    at = args.index(name)
    return args[:at] + args[at + 2 :], "".join(args[at + 1 : at + 2])


def _number(
    args: list[str], name: str, meaning: str, example: str
) -> tuple[list[str], float | None]:
    """`_option`, whose value is a number above 0."""
    rest, value = _option(args, name)
    if value is None:
        return rest, None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise ValueError(f"{name}: {value!r} given; {meaning} is needed, such as {example}")
    return rest, number


def _run(target: str) -> Run:
    """The Run of a config file, or of a run's config.json."""
    if not target.endswith(".json"):
        return _loaded(config.load(target), target)
    file = pathlib.Path(target)
    record = json_file.read_object(staging.local(file.parent) / file.name)
    try:
        return config.from_dict(Run, record)
    except ValueError as error:
        raise ValueError(f"{target}: {error}") from error


def _loaded(value: object, target: str) -> Run:
    """The result of a config file, if it is a Run. Raises: ValueError if not."""
    if not isinstance(value, Run):
        raise ValueError(f"{target}: config() returned {type(value).__name__}, a Run is needed")
    return value
