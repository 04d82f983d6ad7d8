"""Commands that are killed, stopped and damaged at random, and started again.

    python -m tests.train.interruptions.disturbances --cases 100 --seed 0

Each case disturbs one command, then gives the same command again (after damage to something that
is finished, the command that reads it). That must end as the undisturbed one did, or name a damaged
file in one line, with exit code 2; never with a traceback, never with another result.

Processes are forked from this one, which has imported all there is and touched no device.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

WORDS = ("a", "model", "reads", "the", "text", "and", "learns", "what", "follows", "each", "word")
CONFIG = """
from jaxlm.data import pretraining
from jaxlm.models import llama
from jaxlm.train.optim import optimizer
from jaxlm.train.run.run import Checkpoint, Run

MODEL = llama.Config(vocab=259, embed=16, layers=1, heads=2, kv=1, head=8, ffn=24, context=64)


def config():
    return Run(
        name="run", model=MODEL, steps=12, log_every=3, eval_every=4, eval_batches=2,
        data=pretraining.Data(source="corpus.jsonl", seq=32, batch=4, holdout=0.2),
        optim=optimizer.Optim(lr=1e-2, warmup=2), checkpoint=Checkpoint(every=3, keep_last=2),
    )


def shards():
    import dataclasses
    run = config()
    data = dataclasses.replace(run.data, source="shards")
    return dataclasses.replace(run, name="on-shards", data=data, steps=3, checkpoint=Checkpoint())
"""
SWEEP = """
from jaxlm.data import pretraining
from jaxlm.models import llama
from jaxlm.scaling.study import analysis
from jaxlm.train.run import run
from jaxlm.train.sweep import sweep_cells as sweeps


def size(n):
    return llama.Config(vocab=259, embed=8 * n, layers=1, heads=n, kv=n, head=8, ffn=16 * n)


def sweep():
    data = pretraining.Data(source="corpus.jsonl", seq=32, packing="concat", holdout=0.2)
    base = run.Run(name="base", model=size(1), data=data, log_every=50)
    sizes = [size(n) for n in (1, 2, 3)]
    return sweeps.Sweep(
        name="sweep", base=base, cells=sweeps.isoflop({1e8: sizes, 2e8: sizes}), rule="deepseek",
        speed=sweeps.Speed(1e9, 1e5, 5.0),
        options=analysis.Options(laws=("tied",), law="tied", replicates=20),
    )
"""


class Operation(NamedTuple):
    """A command, the command that reads what it made (None: itself), what it makes (globs), what is
    copied before it runs, and what its result is: a function in a process of its own."""

    command: list[str]
    reads: list[str] | None
    made: tuple[str, ...]
    needs: tuple[str, ...]
    result: Callable[[], Any]


def _weights(folder: str) -> str:
    """A digest of every array of a run's last checkpoint."""
    import jax
    import numpy as np

    from jaxlm.train import loop, step
    from jaxlm.train.run import checkpoint, directory, integrity

    path = pathlib.Path(folder)
    program = loop.build(run := directory.load(path))
    like = checkpoint.items(step.abstract(program.objective, program.tx, run.plan))
    place = path / "checkpoints"
    last = checkpoint.steps(place)[-1]
    if (fault := integrity.fault(place / str(last))) is not None:  # as `jaxlm sample` would
        print(f"jaxlm: {place / str(last)}: {fault}")
        raise SystemExit(2)
    parts = sorted(p.name for p in (place / str(last)).iterdir() if p.name in like)
    found = checkpoint.read(place, last, {name: like[name] for name in parts})
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(found)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def _run(folder: str) -> Any:
    from jaxlm.train.run import metrics

    record = json.loads((pathlib.Path(folder) / "result.json").read_text())
    return [_weights(folder), metrics.deterministic(pathlib.Path(folder) / metrics.FILE), record]


def _files(folder: str) -> Any:
    files = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    return [[str(p), hashlib.sha256(p.read_bytes()).hexdigest()] for p in files]


def _sweep() -> Any:
    table = pathlib.Path("runs/sweep/runs.csv").read_text()
    trials = json.loads(pathlib.Path("runs/sweep/sweep.json").read_text())["trials"]
    return [table, [[t["name"], t["state"], t["loss"]] for t in trials]]


OPERATIONS = {
    "train": Operation(
        ["train", "config.py"],
        None, ("runs/run", "cache/jaxlm/shards"), (), lambda: _run("runs/run"),
    ),
    "import": Operation(
        ["import", "hf", "runs/imported"],
        ["eval", "runs/imported", "--data.source", "corpus.jsonl", "--data.holdout", "0.2"],
        ("runs/imported",),
        ("hf",),
        lambda: _weights("runs/imported"),
    ),
    "tokenize": Operation(
        ["data", "tokenize", "--source", "corpus.jsonl", "--tokenizer", "bytes", "--out", "shards",
         "--holdout", "0.2"],
        ["train", "config.py:shards"],
        ("shards",),
        (),
        lambda: _files("shards"),
    ),
    "sweep": Operation(
        ["sweep", ".", "--engine", "inline"], None, ("runs/sweep/runs", "runs/sweep"), (), _sweep
    ),
    "feedback": Operation(
        ["feedback", "sample", "runs/run", "--prompts", "prompts.jsonl", "--out", "out.jsonl",
         "--count", "2", "--batch", "2", "--unfinished", "keep", "--sampling.max-new", "4"],
        None,
        ("out.jsonl", "runs/run"),
        ("runs", "cache"),
        lambda: pathlib.Path("out.jsonl").read_text(),
    ),
}  # fmt: skip


class Ended(NamedTuple):
    """How a forked process ended: exit code or minus a signal, what it printed, its result."""

    code: int
    printed: str
    result: Any
    seconds: float


def start(home: pathlib.Path, command: list[str], result: Callable[[], Any] | None) -> int:
    """A process that runs a command in a folder, prints into `log` there, and then, if all went
    well, writes its result into `result.json` there; its id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(home)
        os.environ["XDG_CACHE_HOME"] = str(home / "cache")
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from jaxlm.cli import main

        code = main.main(command)
        if code == 0 and result is not None:
            pathlib.Path("result").write_text(json.dumps(result()))
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(home: pathlib.Path, process: int, clock: float) -> Ended:
    """Wait for a process of `start`."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    file = home / "result"
    result = json.loads(file.read_text()) if file.is_file() and code == 0 else None
    file.unlink(missing_ok=True)
    printed = (home / "log").read_text(errors="replace") if (home / "log").is_file() else ""
    return Ended(code, printed, result, time.monotonic() - clock)


def whole(home: pathlib.Path, command: list[str], result: Callable[[], Any] | None) -> Ended:
    """A command from its start to its end."""
    clock = time.monotonic()
    return end(home, start(home, command, result), clock)


def damage(draw: random.Random, home: pathlib.Path, made: tuple[str, ...]) -> str:
    """Damage one file of what a command made; how and which, in words."""
    place = home / draw.choice([m for m in made if (home / m).exists()] or [made[0]])
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    path = draw.choice([p for p in files if p.stat().st_size and "lock" not in p.name])
    how = draw.choice(("truncated", "flipped", "deleted", "emptied"))
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif how == "flipped":
        for _ in range(3):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    elif how == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"")
    return f"{path.relative_to(home)} {how}"


class Case(NamedTuple):
    """What was done, and what came of it; fault is why it is none of the ways that are allowed."""

    operation: str
    kind: str
    what: str
    outcome: str
    fault: str | None


def verdict(again: Ended, right: Any) -> tuple[str, str | None]:
    """(what came of the same command, what is wrong with that)."""
    if re.search(r"Traceback|^\s+File \"", again.printed, re.MULTILINE):
        return "traceback", again.printed[-1500:]
    if again.code == 0:
        same, told = again.result == right, "same result"
        if "metrics.jsonl is" in again.printed:  # its records are named as missing, not made again
            same = [again.result[0], again.result[2]] == [right[0], right[2]]
        # computed from the last whole checkpoint, as the warning and every record say
        if lost := re.search(r"checkpoints/(\d+) is unusable", again.printed):
            steps = re.findall(r'"step": (\d+)', str(again.result))
            same |= bool(steps) and max(map(int, steps)) < int(lost[1])
        if re.search(r"damaged|not what was|is missing|unusable|again$", again.printed):
            told += ", fault named and mended"
        return told, None if same else f"another result: {str(again.result)[:600]} not {right}"
    lines = [line for line in again.printed.splitlines() if line.startswith("jaxlm: ")]
    if again.code == 2 and len(lines) == 1:
        return f"named: {lines[0][7:]}", None
    return f"exit code {again.code}", again.printed[-1500:]


def fresh(base: pathlib.Path, home: pathlib.Path, operation: Operation) -> None:
    """A folder with what a command reads."""
    home.mkdir()
    for name in ("config.py", "sweep.py", "corpus.jsonl", "prompts.jsonl", *operation.needs):
        copy = shutil.copytree if (base / name).is_dir() else shutil.copy
        copy(base / name, home / name)


def case(
    draw: random.Random, base: pathlib.Path, home: pathlib.Path, name: str, rights: dict[str, Ended]
) -> Case:
    """One random disturbance of an operation, and the same command again."""
    operation, right = OPERATIONS[name], rights[name]
    fresh(base, home, operation)
    kind = draw.choice(("killed", "stopped", "damaged", "damaged"))
    command, wanted = operation.command, right.result
    if kind == "damaged":
        part = draw.random() < 0.5 and operation.reads is None
        process, clock = start(home, operation.command, None), time.monotonic()
        if part:
            time.sleep(right.seconds * draw.uniform(0.5, 0.9))
            os.kill(process, signal.SIGKILL)
        end(home, process, clock)
        what = damage(draw, home, operation.made)
        if operation.reads is not None:
            command, wanted = operation.reads, rights[f"{name}, read"].result
    else:
        number = signal.SIGKILL if kind == "killed" else signal.SIGTERM
        process, clock = start(home, operation.command, None), time.monotonic()
        at = draw.uniform(0.1, 1.0)
        time.sleep(right.seconds * at)
        os.kill(process, number)  # a child that has ended is there until it is waited for
        first = end(home, process, clock)
        what = f"after {at:.0%} of its time, exit code {first.code}"
        if "Traceback" in first.printed:
            return Case(name, kind, what, "traceback", first.printed[-1500:])
        if first.code == 0 and operation.reads is not None:
            command, wanted = operation.reads, rights[f"{name}, read"].result
    again = whole(home, command, _result(name, command))
    outcome, fault = verdict(again, wanted)
    return Case(name, kind, what, outcome.replace(str(home), "."), fault)


def _result(name: str, command: list[str]) -> Callable[[], Any]:
    """What the result of a command is: of one that only reads, what it printed last."""
    operation = OPERATIONS[name]
    if command == operation.command:
        return operation.result
    if command[0] == "eval":
        return lambda: pathlib.Path("log").read_text().partition("{")[2]
    return lambda: _run("runs/on-shards")


def prepared(base: pathlib.Path, wanted: set[str]) -> dict[str, Ended]:
    """The inputs of operations in a folder, and how each of the wanted ends undisturbed."""
    draw = random.Random(7)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) + "." for _ in range(120)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (base / "corpus.jsonl").write_text(lines)
    prompts = "".join(json.dumps({"prompt": text[:12]}) + "\n" for text in texts[:8])
    (base / "prompts.jsonl").write_text(prompts)
    (base / "config.py").write_text(CONFIG)
    (base / "sweep.py").write_text(SWEEP)
    for command in (["train", "config.py"], ["export", "runs/run", "hf", "--no-tokenizer"]):
        made = whole(base, command, None)
        assert made.code == 0, made.printed
    rights = {}
    for name, operation in OPERATIONS.items():
        if name not in wanted:
            continue
        home = base / f"right-{name}"
        # the second time as the cases: with all that it compiles in the cache
        for _ in range(1 if name in ("train", "tokenize") else 2):
            shutil.rmtree(home, ignore_errors=True)
            fresh(base, home, operation)
            rights[name] = whole(home, operation.command, operation.result)
            assert rights[name].code == 0, rights[name].printed
        if operation.reads is not None:
            result = _result(name, operation.reads)
            rights[f"{name}, read"] = whole(home, operation.reads, result)
            assert rights[f"{name}, read"].code == 0, rights[f"{name}, read"].printed
    return rights


def matrix(cases: int, seed: int, say: Callable[[str], None]) -> list[Case]:
    """Random cases over all operations in turn; sweeps cost most, and are four in a hundred."""
    draw, found = random.Random(seed), []
    cheap = [name for name in OPERATIONS if name != "sweep"]
    names = ["sweep" if n % 25 == 24 else cheap[n % len(cheap)] for n in range(cases)]
    with tempfile.TemporaryDirectory() as folder:
        rights = prepared(base := pathlib.Path(folder), set(names))
        for number, name in enumerate(names):
            home = base / f"case-{number}"
            found.append(case(draw, base, home, name, rights))
            say(f"{number + 1}/{cases} {' | '.join(map(str, found[-1][:4]))}")
            if found[-1].fault:
                say(f"FAULT {found[-1].fault}")
            shutil.rmtree(home)
    return found


def table(found: list[Case]) -> str:
    """A Markdown table of what came of the cases, by operation and kind."""
    counts: dict[tuple[str, str], collections.Counter[str]] = {}
    for one in found:
        outcome = "fault" if one.fault else one.outcome.partition(":")[0]
        counts.setdefault((one.operation, one.kind), collections.Counter())[outcome] += 1
    ways = ("same result", "same result, fault named and mended", "named", "fault")
    lines = ["| command | disturbed | cases | " + " | ".join(ways) + " |", "|---" * 7 + "|"]
    for (operation, kind), seen in sorted(counts.items()):
        cells = [str(seen[way] or "") for way in ways]
        lines.append(f"| {operation} | {kind} | {sum(seen.values())} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The exit code: 0 if no case had a fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import grain  # noqa: F401
    import matplotlib.figure  # noqa: F401

    import jaxlm.cli.commands.tokenize  # noqa: F401
    from jaxlm.train import loop  # noqa: F401

    found = matrix(args.cases, args.seed, lambda line: print(line, flush=True))
    print(table(found))
    return int(any(one.fault for one in found))


if __name__ == "__main__":
    raise SystemExit(main())
