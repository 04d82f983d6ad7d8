"""`jaxlm train` and `jaxlm plan`: a config's run, and its cost before it."""

import os
import pathlib
from collections.abc import Sequence

import jax

from jaxlm import models, objectives
from jaxlm.cli import arguments, field_overrides, launch
from jaxlm.core import config, json_file
from jaxlm.core import target as devices_elsewhere
from jaxlm.data import pretraining
from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.parallel import multihost, topology
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import cost_report
from jaxlm.train import loop, program
from jaxlm.train.optim import optimizer
from jaxlm.train.preflight import compiled_step, layout_search, memory_check, step_report
from jaxlm.train.run import certificate
from jaxlm.train.run.run import Run

PLAN_OPTIONS = """
--memory GIB: of each device; without it the plan is held against this machine
--topology NAME: compile the step for a TPU slice, such as v5p:4x4x8 (extra [tpu]), and predict its
  time; of GPUs, such as h100:8, predict it by the closed form
--search N: compare layouts, remat and micro-batches for that topology by the closed form, compile
  the best N, and report the best of them
--tokens N: the budget whose days and chip-hours are printed with --topology, such as 15e12"""


def train(args: Sequence[str]) -> int:
    """jaxlm train CONFIG [--field value ...]; CONFIG may be a run's config.json"""
    if not args or args[0] in ("-h", "--help"):
        print(arguments.usage("train"))
        print("\nThe fields of every config, with the defaults of a LLaMA-style model:\n")
        field_overrides.apply(
            Run(name="NAME", model=llama.Config()), ["--help"], "jaxlm train CONFIG"
        )
    target, overrides = arguments.target("train", args)
    run = field_overrides.apply(_run(target), overrides, f"jaxlm train {target}")
    environ = dict(os.environ)
    with multihost.watched(environ):
        processes = multihost.join(environ)
        if processes is not None:
            launch.devices(run.plan.devices // processes)
        return loop.run(run).exit_code


def plan(args: Sequence[str]) -> int:
    """jaxlm plan CONFIG-or-PRESET [--topology NAME [--tokens N]] [--memory GIB] [--field value]"""
    if not args or args[0] in ("-h", "--help"):
        print(arguments.usage("plan"))
        print(PLAN_OPTIONS)
        print(f"\npresets: {', '.join(models.presets())}")
        return 0
    target, overrides = arguments.target("plan", args)
    if help_only := bool({"-h", "--help"} & set(overrides)):
        print(PLAN_OPTIONS)
    overrides, device_gib = _number(overrides, "--memory", "the GiB of a device", "80")
    overrides, tokens = _number(overrides, "--tokens", "a number of tokens", "15e12")
    overrides, count = _number(overrides, "--search", "a number of layouts", "3")
    overrides, name = _option(overrides, "--topology")
    if name is not None and not help_only:
        print(cost_report.text(_elsewhere(target, overrides, name, tokens, count)))
        return 0
    for option, value in (("--tokens", tokens), ("--search", count)):
        if value is not None and not help_only:
            raise ValueError(f"{option} given without --topology, which it is about")
    run = _chosen("plan", target, overrides)
    built = program.build(run, run.plan)[1]
    tx = optimizer.build(run.optim, built.spec, run.steps, fp16=False)
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
    return 0


def certify(args: Sequence[str]) -> int:
    """jaxlm certify CONFIG-or-PRESET [--field value ...], on CPU devices whatever there are"""
    if not args or args[0] in ("-h", "--help"):
        print(arguments.usage("certify"))
        print("\nUnder the plan, and on one device: --plan.fsdp 2 --plan.context 4, say")
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
    """The Run of a config or preset with overrides."""
    preset = models.presets().get(target)
    if preset is None:
        run = _loaded(config.load(target), target)
    else:
        # A published model has no run: one row of its context, on an accelerator.
        data = Data(seq=preset.context, batch=1)
        objective = objectives.OBJECTIVES[objectives.fitting(models.build(preset))].Config()
        plan = Plan(compute="bfloat16")
        run = Run(name=target, model=preset, data=data, objective=objective, plan=plan)
    return field_overrides.apply(run, overrides, f"jaxlm {command} {target}")


def _elsewhere(
    target: str, overrides: list[str], name: str, tokens: float | None, count: float | None
) -> list[cost_report.Row]:
    """The report of a step on a topology: compiled for TPUs, by the closed form for GPUs; with
    `count`, of the best of so many layouts, after a line for each."""
    described = topology.describe(name)
    if described.chip.platform == "tpu":
        described = topology.load(name)
    with devices_elsewhere.compiling_for(described.chip.platform, described.devices):
        run = _chosen("plan", target, overrides)
        built = program.build(run, run.plan)[1]
        if count is None:
            compiled = compiled_step.compile_step(run, described) if described.devices else None
            return step_report.rows(run, built, described, compiled, tokens)
        best = layout_search.best(run, built, described, int(count))
        steps = layout_search.compiled(best, described)
        run, compiled = steps[0]
        built = program.build(run, run.plan)[1]
        report = step_report.rows(run, built, described, compiled, tokens)
        return [*layout_search.rows(steps, described), *report]


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
    record = json_file.read_object(pathlib.Path(target))
    try:
        return config.from_dict(Run, record)
    except ValueError as error:
        raise ValueError(f"{target}: {error}") from error


def _loaded(value: object, target: str) -> Run:
    """The result of a config file, if it is a Run. Raises: ValueError if not."""
    if not isinstance(value, Run):
        raise ValueError(f"{target}: config() returned {type(value).__name__}, a Run is needed")
    return value
