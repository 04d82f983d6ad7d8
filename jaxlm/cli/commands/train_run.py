"""`jaxlm train` and `jaxlm plan`: a config's run, and its cost before it."""

import os
import pathlib
from collections.abc import Sequence

import jax

from jaxlm import models, objectives
from jaxlm.cli import arguments, field_overrides, launch
from jaxlm.core import config, json_file
from jaxlm.core.remote import staging
from jaxlm.data import pretraining
from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.parallel import multihost
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import cost_report
from jaxlm.train import loop, preflight, program
from jaxlm.train.optim import optimizer
from jaxlm.train.run import certificate
from jaxlm.train.run.run import Run


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
    """jaxlm plan CONFIG-or-PRESET [--memory GIB] [--field value ...]"""
    if not args or args[0] in ("-h", "--help"):
        print(arguments.usage("plan"))
        print("\n--memory GIB: of each device; without it the plan is held against this machine")
        print(f"\npresets: {', '.join(models.presets())}")
        return 0
    target, overrides = arguments.target("plan", args)
    overrides, device_gib = _memory(overrides)
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
    print(cost_report.text([*rows, *preflight.rows(run, built, device_gib)]))
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


def _memory(args: list[str]) -> tuple[list[str], float | None]:
    """(the arguments without `--memory GIB`, its value if it is given)."""
    if "--memory" not in args:
        return args, None
    at = args.index("--memory")
    value = "".join(args[at + 1 : at + 2])
    try:
        gib = float(value)
    except ValueError:
        gib = 0.0
    if not gib > 0:
        raise ValueError(f"--memory: {value!r} given; the GiB of a device are needed, such as 80")
    return args[:at] + args[at + 2 :], gib


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
