"""Runs trained by one process or by several of this machine, each with devices of its own:

python -m tests.train.process_group 2 RUN.json ...
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[2]


def start(
    files: Sequence[pathlib.Path],
    processes: int,
    devices: int,
    environ: Mapping[str, str],
    code: str = "",
) -> list[subprocess.Popen[str]]:
    """Processes that train the runs in these files one after the other, with so many devices each.
    code: Python that each executes before."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    started = []
    for index in range(processes):
        peer = {"JAXLM_DISTRIBUTED": f"localhost:{port}/{processes}/{index}"}
        command = [sys.executable, "-m", "tests.train.process_group", str(devices), code]
        started.append(
            subprocess.Popen(
                [*command, *map(str, files)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
                env=os.environ
                | {"XLA_FLAGS": " ".join(flags), **environ}
                | (peer if processes > 1 else {}),
            )
        )
    return started


def finish(started: Sequence[subprocess.Popen[str]], seconds: float = 300) -> list[str]:
    """What each process printed, once all have ended well."""
    printed = [process.communicate(timeout=seconds)[0] for process in started]
    codes = [process.returncode for process in started]
    assert codes == [0] * len(codes), "\n---\n".join(printed)
    return printed


def _main(devices: int, code: str, files: Sequence[str]) -> int:
    from jaxlm.cli import launch
    from jaxlm.core import config
    from jaxlm.parallel import devices as corrected
    from jaxlm.parallel import multihost

    corrected.correct()
    environ = dict(os.environ)
    with multihost.watched(environ):
        multihost.join(environ)
        launch.devices(devices)
        from jaxlm.train import loop
        from jaxlm.train.run.run import Run

        exec(code, {})
        codes = []
        for file in files:
            record = json.loads(pathlib.Path(file).read_text())
            codes.append(loop.run(config.from_dict(Run, record)).exit_code)
        return max(codes)


if __name__ == "__main__":
    raise SystemExit(_main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
