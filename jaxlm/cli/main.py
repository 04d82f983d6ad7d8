"""The command line: usage, exit codes, and the call of a subcommand.

Nothing slow is imported here, so that `jaxlm --help` answers at once.
"""

import gc
import importlib
import os
import sys
from collections.abc import Sequence

# Errors that a user can mend: value, file, missing extra. Any other is shown with its traceback.
USER_ERRORS = (ValueError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line: `usage` lists them.

    JAXLM_TRACEBACK=1 shows where an error came from.
    """
    from jaxlm.cli import commands

    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] == "--version":
        import jaxlm

        print(f"jaxlm {jaxlm.__version__}")
        return 0
    name = args[0]
    if name not in commands.COMMANDS:
        from jaxlm.core import config

        return fail(f"no command {name!r}{config.near(name, commands.COMMANDS)}; see jaxlm --help")
    if argv is None and name in ("train", "eval"):
        from jaxlm.cli import launch

        launch.prepare()
    if argv is None and name in ("fit", "plan-ahead"):
        # float64 of few numbers: an accelerator would only be started for it, and threads of the
        # linear algebra only wait for one another
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # modules and draws live to the end: to look through them again and again takes 3 % of a fit
        gc.set_threshold(200_000, 20, 20)
    if argv is None and name == "train":
        from jaxlm.train.run import interrupts

        interrupts.at_start()
    from jaxlm.cli import arguments
    from jaxlm.parallel import devices

    try:
        arguments.check(args)
        devices.correct()
        module, _, function = commands.COMMANDS[name].place.partition(":")
        run = vars(importlib.import_module(f"jaxlm.cli.commands.{module}"))[function]
        return run(args[1:])
    except KeyboardInterrupt:
        print("jaxlm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of a pipe (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except USER_ERRORS as error:
        if os.environ.get("JAXLM_TRACEBACK") == "1":
            raise
        return fail(_sentence(error))


def usage() -> str:
    """The text of `jaxlm --help`."""
    from jaxlm.cli.commands import COMMANDS

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
    from jaxlm.core.remote import staging

    print(f"jaxlm: {staging.named(text)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
