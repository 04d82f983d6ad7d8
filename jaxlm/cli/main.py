"""The command line: one function per subcommand, which imports what it needs.

Nothing slow is imported here, so that `jaxlm --help` answers at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxlm.train.run.run import Run

# Errors that a user can mend: value, file, missing extra. Any other is shown with its traceback.
USER_ERRORS = (ValueError, OSError, ImportError)


class Command(NamedTuple):
    """run(args) -> exit code."""

    run: Callable[[Sequence[str]], int]
    usage: str
    help: str


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line: `usage` lists them.

    JAXLM_TRACEBACK=1 shows where an error came from.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] == "--version":
        import jaxlm

        print(f"jaxlm {jaxlm.__version__}")
        return 0
    command = COMMANDS.get(args[0])
    if command is None:
        from jaxlm.core import config

        return fail(f"no command {args[0]!r}{config.near(args[0], COMMANDS)}; see jaxlm --help")
    if argv is None and command.run in (train, evaluate):
        from jaxlm.cli import launch

        launch.prepare()
    if argv is None and command.run in (fit, plan_ahead):
        # float64 of few numbers: an accelerator would only be started for it, and threads of the
        # linear algebra only wait for one another
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if argv is None and command.run is train:
        from jaxlm.train.run import interrupts

        interrupts.at_start()
    from jaxlm.cli import arguments
    from jaxlm.parallel import devices

    try:
        arguments.check(args)
        devices.correct()
        return command.run(args[1:])
    except KeyboardInterrupt:
        print("jaxlm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except USER_ERRORS as error:
        if os.environ.get("JAXLM_TRACEBACK") == "1":
            raise
        return fail(_sentence(error))


def usage() -> str:
    """The text of `jaxlm --help`."""
    width = max(len(c.usage) for c in COMMANDS.values()) + 2
    lines = [f"  jaxlm {c.usage:<{width}}{c.help}" for c in COMMANDS.values()]
    return "\n".join(
        [
            "usage: jaxlm COMMAND ...",
            "",
            *lines,
            "",
            "jaxlm COMMAND --help explains its arguments.",
            "",
            "exit codes: 0 done, 2 a mistake that can be mended, 3 a loss that is not finite,",
            "4 another process of the run is lost, 128 + n stopped by signal n",
        ]
    )


def _sentence(error: BaseException) -> str:
    """The error as a sentence; of the operating system's own the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error) or repr(error)


def fail(text: str) -> int:
    """Print an error and return the exit code of a mistake that the user can mend."""
    print(f"jaxlm: {text}", file=sys.stderr)
    return 2


def train(args: Sequence[str]) -> int:
    """jaxlm train CONFIG [--field value ...]; CONFIG may be a run's config.json"""
    from jaxlm.cli import field_overrides, launch
    from jaxlm.models import llama
    from jaxlm.parallel import multihost
    from jaxlm.train import loop
    from jaxlm.train.run.run import Run

    if not args or args[0] in ("-h", "--help"):
        print(_line("train"))
        print("\nThe fields of every config, with the defaults of a LLaMA-style model:\n")
        field_overrides.apply(
            Run(name="NAME", model=llama.Config()), ["--help"], "jaxlm train CONFIG"
        )
    target, overrides = _target("train", args)
    run = field_overrides.apply(_run(target), overrides, f"jaxlm train {target}")
    environ = dict(os.environ)
    with multihost.watched(environ):
        processes = multihost.join(environ)
        if processes is not None:
            launch.devices(run.plan.devices // processes)
        return loop.run(run).exit_code


def sample(args: Sequence[str]) -> int:
    """jaxlm sample RUN --prompt TEXT ..."""
    from jaxlm.cli.commands import sample as command

    return command.sample(args)


def evaluate(args: Sequence[str]) -> int:
    """jaxlm eval RUN [--data.source ...]"""
    from jaxlm.cli.commands import evaluate

    if not args or args[0] in ("-h", "--help"):
        return evaluate.evaluate(["--help"], None)
    target, rest = _target("eval", args)
    return evaluate.evaluate(rest, target)


def score(args: Sequence[str]) -> int:
    """jaxlm score RUN --prompt TEXT --response TEXT ..."""
    from jaxlm.cli.commands import evaluate

    return evaluate.score(args)


def tokenizer(args: Sequence[str]) -> int:
    """jaxlm tokenizer train --kind KIND --vocab N --out DIR"""
    from jaxlm.cli.commands import tokenize

    return tokenize.tokenizer(_action("tokenizer", "train", args))


def data(args: Sequence[str]) -> int:
    """jaxlm data tokenize --tokenizer DIR --out DIR"""
    from jaxlm.cli.commands import tokenize

    return tokenize.data(_action("data", "tokenize", args))


def import_(args: Sequence[str]) -> int:
    """jaxlm import HF_DIR RUN"""
    from jaxlm.cli.commands import import_export

    return import_export.import_(args)


def export(args: Sequence[str]) -> int:
    """jaxlm export RUN HF_DIR"""
    from jaxlm.cli.commands import import_export

    return import_export.export(args)


def listing(args: Sequence[str]) -> int:
    """jaxlm list [FOLDER]"""
    import pathlib

    import tyro

    from jaxlm.cli.commands import listing

    def command(folder: tyro.conf.Positional[pathlib.Path] = pathlib.Path()) -> int:
        """Show configs, presets, corpora, tokenizer kinds and runs.

        Args:
            folder: Where configs/ and runs/ are.
        """
        print(listing.text(folder))
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm list")


def plan(args: Sequence[str]) -> int:
    """jaxlm plan CONFIG-or-PRESET [--memory GIB] [--field value ...]"""
    from jaxlm import models, objectives
    from jaxlm.cli import field_overrides
    from jaxlm.core import config
    from jaxlm.data import pretraining
    from jaxlm.data.pretraining import Data
    from jaxlm.parallel.plan import Plan
    from jaxlm.scaling.cost import cost_report
    from jaxlm.train import preflight, program
    from jaxlm.train.optim import optimizer
    from jaxlm.train.run.run import Run

    if not args or args[0] in ("-h", "--help"):
        print(_line("plan"))
        print("\n--memory GIB: of each device; without it the plan is held against this machine")
        print(f"\npresets: {', '.join(models.presets())}")
        return 0
    target, overrides = _target("plan", args)
    overrides, there = _memory(overrides)
    preset = models.presets().get(target)
    if preset is not None:
        # A published model has no run: one row of its context, on an accelerator.
        read = Data(seq=preset.context, batch=1)
        asked = objectives.OBJECTIVES[objectives.fitting(models.build(preset))].Config()
        plan = Plan(compute="bfloat16")
        run = Run(name=target, model=preset, data=read, objective=asked, plan=plan)
    else:
        run = _loaded(config.load(target), target)
    run = field_overrides.apply(run, overrides, f"jaxlm plan {target}")
    objective = program.build(run, run.plan)[1]
    tx = optimizer.build(run.optim, objective.spec, run.steps, fp16=False)
    steps = None if preset is not None else run.steps
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
    print(cost_report.text([*rows, *preflight.rows(run, objective, there)]))
    return 0


def sweep(args: Sequence[str]) -> int:
    """jaxlm sweep TARGET [--workers N ...] [--data.source ...]"""
    from jaxlm.cli.commands import sweep as command

    return command.sweep(args)


def ablate(args: Sequence[str]) -> int:
    """jaxlm ablate FILE"""
    from jaxlm.cli.commands import ablate as command

    return command.ablate(args)


def plan_ahead(args: Sequence[str]) -> int:
    """jaxlm plan-ahead --law STUDY --flops C ..."""
    from jaxlm.cli.commands import plan_ahead

    return plan_ahead.plan_ahead(args)


def fit(args: Sequence[str]) -> int:
    """jaxlm fit RUNS [--target FLOPS] ..."""
    from jaxlm.cli import blas

    return blas.fit(args)


def feedback(args: Sequence[str]) -> int:
    """jaxlm feedback ACTION RUN ..."""
    from jaxlm.cli.commands import feedback

    return feedback.feedback(args)


def adapter(args: Sequence[str]) -> int:
    """jaxlm adapter export | import | merge ..."""
    from jaxlm.cli.commands import adapter

    return adapter.adapter(args)


def draw(args: Sequence[str]) -> int:
    """jaxlm plot RUN"""
    import pathlib

    import tyro

    from jaxlm.train.run import directory, plot

    def command(run: tyro.conf.Positional[pathlib.Path]) -> int:
        """Draw a run's loss curves to loss.png in its directory.

        Args:
            run: The run directory, such as runs/demo.
        """
        directory.load(run)
        directory.warn_of_lost_records(run)
        path = plot.loss(run)
        if path is None:
            raise ValueError(f"{run} has no metrics to draw yet")
        print(path)
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm plot")


def _target(command: str, args: Sequence[str]) -> tuple[str, list[str]]:
    """(the file, run or preset that a command works on, the rest of its arguments)."""
    if args[0].startswith("-"):
        raise ValueError(f"{args[0]} stands where {COMMANDS[command].usage!r} has its first name")
    return args[0], list(args[1:])


def _action(command: str, action: str, args: Sequence[str]) -> list[str]:
    """The arguments after a command's one action."""
    if args and args[0] not in (action, "-h", "--help"):
        raise ValueError(f"jaxlm {command}: no action {args[0]!r}; there is {action!r}")
    return list(args[1:]) if args and args[0] == action else ["--help"]


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


def _run(target: str) -> "Run":
    """The Run of a config file, or of a run's config.json."""
    import pathlib

    from jaxlm.core import config, json_file
    from jaxlm.train.run.run import Run

    if not target.endswith(".json"):
        return _loaded(config.load(target), target)
    record = json_file.read_object(pathlib.Path(target))
    try:
        return config.from_dict(Run, record)
    except ValueError as error:
        raise ValueError(f"{target}: {error}") from error


def _loaded(found: object, target: str) -> "Run":
    """The result of a config file, if it is a Run. Raises: ValueError if not."""
    from jaxlm.train.run.run import Run

    if not isinstance(found, Run):
        raise ValueError(f"{target}: config() returned {type(found).__name__}, a Run is needed")
    return found


def _line(command: str) -> str:
    return f"usage: jaxlm {COMMANDS[command].usage}"


COMMANDS: dict[str, Command] = {
    "train": Command(train, "train CONFIG [--field value ...]", "train, or go on after a stop"),
    "sample": Command(sample, "sample RUN --prompt TEXT ...", "continue a text"),
    "eval": Command(evaluate, "eval RUN", "score held-out data"),
    "score": Command(score, "score RUN --response TEXT", "what a reward model says of texts"),
    "feedback": Command(feedback, "feedback ACTION RUN ...", "revise, compare, write instructions"),
    "tokenizer": Command(tokenizer, "tokenizer train ...", "train a tokenizer"),
    "data": Command(data, "data tokenize ...", "turn text into shards"),
    "list": Command(listing, "list", "configs, presets, corpora, tokenizers, runs"),
    "fit": Command(fit, "fit RUNS [--target FLOPS] ...", "scaling laws of a table of runs"),
    "plan": Command(plan, "plan CONFIG-or-PRESET", "parameters, FLOPs, bytes; does it fit?"),
    "sweep": Command(sweep, "sweep FOLDER", "train many sizes, fit the law, predict a larger run"),
    "ablate": Command(ablate, "ablate FILE", "does a change help? paired runs, tested"),
    "plan-ahead": Command(plan_ahead, "plan-ahead --law STUDY ...", "the next run, from a law"),
    "import": Command(import_, "import HF_DIR RUN", "a run directory from transformers' files"),
    "export": Command(export, "export RUN HF_DIR", "a trained model as transformers' files"),
    "adapter": Command(adapter, "adapter export|import|merge ...", "LoRA as peft's files, merged"),
    "plot": Command(draw, "plot RUN", "draw the loss curves"),
}


if __name__ == "__main__":
    sys.exit(main())
