"""Runs of several processes of which one is killed, stopped or asked to end, and started again.

    python -m tests.train.interruptions.lost_processes --cases 100 --seed 0

Each case trains a tiny run with 2 or 4 processes and sends one of them SIGKILL, SIGSTOP or SIGTERM
at a random moment. All others have to end by themselves, and to name the process unless they had
finished or saved with it; then the same command on all has to end with the weights, metrics and
result of the undisturbed run, bit for bit.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.train.interruptions import disturbances

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}
# Seconds without a sign of life after which a process is lost; and for all to end.
HEARTBEAT, LIMIT = 8, 60
# Seconds for all to join: one that is killed before it has joined is not waited for any longer.
JOIN = 40
NOT_JOINED = f"not all processes of this run joined within {JOIN} s"
LOST = 4


class Group(NamedTuple):
    """The processes of one start, their folder, and when they started."""

    home: pathlib.Path
    processes: list[int]
    clock: float


class Case(NamedTuple):
    """A disturbance: the signal, the number of processes, which of them, when; seconds until all
    others had ended; how they did; and the fault, None if all is well."""

    name: str
    count: int
    victim: int
    after: float
    seconds: float
    outcome: str
    fault: str | None


def fork(home: pathlib.Path, log: str, environ: dict[str, str], act: Callable[[], int]) -> int:
    """The id of a process that acts in a folder, and prints into a file there."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(home)
        os.environ.update(environ, XDG_CACHE_HOME=str(home.parent / "cache"))
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        code = act()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(home: pathlib.Path, count: int) -> Group:
    """The run in a folder, by so many processes of one device each."""
    from jaxlm.cli import main

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = ["train", "config.py", "--plan.data", str(count)]

    def train() -> int:
        import jax

        code = main.main(command)
        if code in (0, 128 + signal.SIGTERM):
            jax.distributed.shutdown()  # as at the end of a process that is not forked
        return code

    processes = []
    for index in range(count):
        peer = {"JAXLM_DISTRIBUTED": f"localhost:{port}/{count}/{index}"}
        peer["JAXLM_TIMEOUT"] = str(JOIN)
        processes.append(fork(home, f"log-{index}", peer, train))
    return Group(home, processes, time.monotonic())


def finish(group: Group, seconds: float, but: int | None = None) -> list[int | None]:
    """Exit codes of the processes, but of one; None of those that had not ended by then."""
    codes: list[int | None] = [None] * len(group.processes)
    waiting = [i for i in range(len(codes)) if i != but]
    while waiting and time.monotonic() - group.clock < seconds:
        for i in list(waiting):
            process, status = os.waitpid(group.processes[i], os.WNOHANG)
            if process:
                codes[i] = os.waitstatus_to_exitcode(status)
                waiting.remove(i)
        time.sleep(0.02)
    for i in waiting:
        os.kill(group.processes[i], signal.SIGKILL)
        os.waitpid(group.processes[i], 0)
    return codes


def printed(home: pathlib.Path, count: int) -> list[str]:
    """What each process of the last start printed."""
    return [(home / f"log-{i}").read_text(errors="replace") for i in range(count)]


def result(home: pathlib.Path, count: int) -> Any:
    """The run's weights, metrics and result, read by one process with all its devices."""

    def read() -> int:
        from jaxlm.cli import launch

        launch.devices(count)
        pathlib.Path("read.json").write_text(json.dumps(disturbances._run("runs/run")))
        return 0

    group = Group(home, [fork(home, "log-read", {}, read)], time.monotonic())
    if finish(group, 120) != [0]:
        return (home / "log-read").read_text()
    return json.loads((home / "read.json").read_text())


def fresh(base: pathlib.Path, name: str) -> pathlib.Path:
    """A folder with what the run reads."""
    home = base / name
    home.mkdir()
    for file in ("config.py", "corpus.jsonl"):
        shutil.copy(base / file, home / file)
    return home


def undisturbed(base: pathlib.Path, count: int) -> tuple[Any, float]:
    """(result, seconds) of the run with so many processes, its programs compiled before."""
    for turn in range(2):
        home = fresh(base, f"right-{count}-{turn}")
        group = start(home, count)
        codes = finish(group, 300)
        seconds = time.monotonic() - group.clock
        assert codes == [0] * count, printed(home, count)
    return result(home, count), seconds


def case(
    draw: random.Random, base: pathlib.Path, number: int, name: str, count: int, right: Any
) -> Case:
    """One disturbance, and the same command again. right: as `undisturbed` gives it."""
    home = fresh(base, f"case-{number}")
    victim, at = draw.randrange(count), right[1] * draw.uniform(0.15, 1.0)
    group = start(home, count)
    time.sleep(at)
    os.kill(group.processes[victim], SIGNALS[name])  # one that has ended waits to be waited for
    clock = time.monotonic()
    codes = finish(group._replace(clock=clock), LIMIT, victim)
    seconds = time.monotonic() - clock
    if name == "SIGSTOP":
        os.kill(group.processes[victim], signal.SIGKILL)
    (codes[victim],) = finish(Group(home, [group.processes[victim]], time.monotonic()), LIMIT)
    texts, ways = printed(home, count), []
    for i in range(count):
        ended = (i == victim and name != "SIGTERM") or codes[i] in (0, 128 + signal.SIGTERM)
        ended |= i == victim and codes[i] == -signal.SIGTERM  # before it listened
        last = [line for line in texts[i].splitlines() if line.startswith("jaxlm: ")]
        told = any(text in last[0] for text in (f"process {victim}", NOT_JOINED) if last)
        named = codes[i] == LOST and len(last) == 1 and told
        ways += [] if i == victim else [f"exit code {codes[i]}"]
        if not (ended or named) or "Traceback" in texts[i]:
            fault = f"process {i} ended with {codes[i]}: {texts[i][-1500:]}"
            return Case(name, count, victim, at, seconds, "no good end", fault)
    again = start(home, count)
    codes = finish(again, 300)
    outcome, fault = ", ".join(sorted(set(ways))), None
    if codes != [0] * count:
        fault = f"again: {codes}: {printed(home, count)}"
    elif (there := result(home, count)) != right[0]:
        fault = f"another result: {str(there)[:600]} not {str(right[0])[:600]}"
    return Case(name, count, victim, at, seconds, outcome, fault)


def matrix(cases: int, seed: int, counts: list[int], say: Callable[[str], None]) -> list[Case]:
    """Random cases over all signals and numbers of processes in turn."""
    draw, done = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        texts = [
            " ".join(draw.choices(disturbances.WORDS, k=draw.randint(3, 40))) for _ in "x" * 99
        ]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (base / "corpus.jsonl").write_text(lines)
        (base / "config.py").write_text(disturbances.CONFIG)
        used = counts[:cases]
        rights = {count: undisturbed(base, count) for count in used}
        say(f"undisturbed: { {c: round(s, 1) for c, (_, s) in rights.items()} } seconds")
        for number in range(cases):
            name = [*SIGNALS][number // len(used) % len(SIGNALS)]
            count = used[number % len(used)]
            one = case(draw, base, number, name, count, rights[count])
            done.append(one)
            say(
                f"{number + 1}/{cases} {name} process {one.victim} of {count} after "
                f"{one.after:.1f} s: others ended after {one.seconds:.1f} s ({one.outcome})"
            )
            if one.fault:
                say(f"FAULT {one.fault}")
            shutil.rmtree(base / f"case-{number}")
    return done


def table(done: list[Case]) -> str:
    """A Markdown table of the cases by signal and number of processes."""
    by: dict[tuple[str, int], list[Case]] = collections.defaultdict(list)
    for one in done:
        by[one.name, one.count].append(one)
    lines = [
        "| signal | processes | cases | recovered, same bits | seconds to the end: median | most |",
        "|---" * 6 + "|",
    ]
    for (name, count), seen in sorted(by.items()):
        well, seconds = sum(one.fault is None for one in seen), [one.seconds for one in seen]
        middle, most = statistics.median(seconds), max(seconds)
        lines.append(f"| {name} | {count} | {len(seen)} | {well} | {middle:.1f} | {most:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The exit code: 0 if no case had a fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    args = parser.parse_args()
    # before JAX is imported: programs compile as those of tests do, and all are kept
    from tests import conftest

    flags = {k: v for k, v in conftest.FLAGS.items() if "device_count" not in k}
    os.environ["XLA_FLAGS"] = " ".join(f"{name}={value}" for name, value in flags.items())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    import matplotlib.figure  # noqa: F401
    import orbax.checkpoint  # noqa: F401

    from jaxlm.parallel import multihost
    from jaxlm.train import loop  # noqa: F401

    multihost.HEARTBEAT = HEARTBEAT
    done = matrix(args.cases, args.seed, args.processes, lambda line: print(line, flush=True))
    print(table(done))
    return int(any(one.fault for one in done))


if __name__ == "__main__":
    raise SystemExit(main())
