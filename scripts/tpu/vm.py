"""A TPU VM, one host or a pod's many: create it, set it up, run jaxlm on it, watch it, delete it.

    python scripts/tpu/vm.py babysit pod --zone us-east5-a --type v5p-32 --spot -- \
        train configs/demo.py --out gs://bucket/runs --plan.fsdp 16

Every action takes the same arguments, does nothing where there is nothing left to do, and may be
given again at any time:

    create    the VM, if there is none of this name
    setup     this checkout (HEAD) and its environment, on every host; again after a new commit
    run       start the command on every host, unless it runs there already; returns at once
    status    the VM's state, how the command ended on each host, the last lines of its log
    babysit   all of these, until the command is done: a VM that was preempted is deleted, created
              and set up again, and the same command resumes the run from its store
    delete    the VM, if there is one

The command runs detached from the connection: this machine may sleep. It gets SIGTERM, and saves,
when a host is announced to be preempted or maintained (notices.py). It has JAXLM_DISTRIBUTED set,
and `--out` should be a store that outlives the VM. --dry-run prints what would be run. Needs
gcloud, with a login and a project, and no library.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
ACTIONS = ("create", "setup", "run", "status", "babysit", "delete")
# The system image of each kind of TPU.
IMAGES = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
}
# Exit codes of jaxlm that the same command would only give again: a loss that is not finite; a
# mistake, which shows within these seconds (later it is a store that did not answer).
DIVERGED, MISTAKE, SOON = 3, 2, 300
# Polls in a row that may fail before a VM counts as broken.
SILENT = 5


class Failed(Exception):
    """gcloud failed, or the command did. The message says how."""


class Vm(NamedTuple):
    """The VM, and how commands are given to it."""

    name: str
    zone: str
    kind: str
    image: str
    spot: bool
    project: str | None
    extras: str
    dry: bool


# What runs on every host. A home directory has jaxlm/, its environment, and run/: the command's
# process id, its log and, once it ended, its exit code.
SETUP = """set -e
if [ "$(cat jaxlm/.revision 2>/dev/null)" = {revision} ]; then exit 0; fi
mkdir -p jaxlm run
tar xzf {archive} -C jaxlm
python3 -m pip install --user --quiet uv
cd jaxlm
[ -d .venv ] || "$HOME/.local/bin/uv" venv --quiet --python 3.12 .venv
"$HOME/.local/bin/uv" pip install --quiet --python .venv 'jax[tpu]' -e '.[{extras}]'
echo {revision} > .revision
"""
START = """cd "$HOME/jaxlm" || exit 1
if kill -0 "$(cat ../run/pid 2>/dev/null)" 2>/dev/null; then echo running already; exit 0; fi
rm -f ../run/code
JAXLM_DISTRIBUTED=cluster nohup setsid sh -c {command} > ../run/log 2>&1 < /dev/null &
echo $! > ../run/pid
"""
# Sends jaxlm SIGTERM when the VM is about to be taken away.
NOTICES = "python3 scripts/tpu/notices.py"
POLL = """if [ -f run/code ]; then echo "ended $(cat run/code)"
elif kill -0 "$(cat run/pid 2>/dev/null)" 2>/dev/null; then echo running
else echo absent; fi"""


def main(argv: Sequence[str] | None = None, wait: Callable[[float], None] = time.sleep) -> int:
    """The exit code of a command line. wait: sleeps for some seconds."""
    args = arguments(argv)
    kind = args.type.partition("-")[0]
    image = args.version or IMAGES.get(kind)
    if image is None:
        print(f"vm.py: --version is needed for --type {args.type}; known: {sorted(IMAGES)}")
        return 2
    if args.action in ("run", "babysit") and not args.command:
        print(f"vm.py: {args.action} needs a command after --, such as: -- train configs/demo.py")
        return 2
    vm = Vm(
        args.name,
        args.zone,
        args.type,
        image,
        args.spot,
        args.project,
        args.extras,
        args.dry_run,
    )
    try:
        if args.action == "babysit":
            return babysit(vm, args.command, args.tries, args.every, args.delete, wait)
        act: dict[str, Callable[[], None]] = {
            "create": lambda: create(vm),
            "setup": lambda: setup(vm),
            "run": lambda: run(vm, args.command),
            "status": lambda: status(vm),
            "delete": lambda: delete(vm),
        }
        act[args.action]()
    except Failed as error:
        print(f"vm.py: {error}", file=sys.stderr)
        return 1
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("name", help="the VM's name")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--type", required=True, help="such as v5p-32, v6e-8, v5litepod-16")
    parser.add_argument("--version", help="the system image; by default that of the type")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
    parser.add_argument("--project", help="by default gcloud's own")
    parser.add_argument("--extras", default="gcs", help="of jaxlm, such as gcs,wandb")
    parser.add_argument("--tries", type=int, default=20, help="starts that babysit makes")
    parser.add_argument("--every", type=float, default=60, help="seconds between its looks")
    parser.add_argument("--delete", action="store_true", help="babysit deletes the VM at the end")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:at])
    args.command = given[at + 1 :]  # jaxlm's own
    return args


# --- gcloud ----------------------------------------------------------------------------------


def gcloud(vm: Vm, verb: str, *args: str) -> str:
    """What gcloud prints for a verb on the VM. Raises: Failed with its last line."""
    words = ["gcloud", "compute", "tpus", "tpu-vm", verb]
    if verb != "scp":
        words.append(vm.name)
    words += [*args, f"--zone={vm.zone}"]
    if vm.project is not None:
        words.append(f"--project={vm.project}")
    if vm.dry:
        print(shlex.join(words))
        return ""
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Failed("gcloud is not installed: https://cloud.google.com/sdk") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Failed(f"gcloud {verb} {vm.name}: {' '.join(lines[-3:])}")
    return done.stdout


def everywhere(vm: Vm, script: str) -> str:
    """What a shell script prints on all hosts."""
    return gcloud(vm, "ssh", "--worker=all", f"--command={script}")


def state(vm: Vm) -> str:
    """The VM's state, such as READY or PREEMPTED; ABSENT if there is none."""
    try:
        return gcloud(vm, "describe", "--format=value(state)").strip() or "ABSENT"
    except Failed as error:
        if "NOT_FOUND" in str(error):
            return "ABSENT"
        raise


# --- Actions ---------------------------------------------------------------------------------


def create(vm: Vm) -> None:
    """Create the VM, if there is none; one that was preempted is deleted first."""
    now = state(vm)
    if now in ("READY", "CREATING", "STARTING", "RESTARTING", "REPAIRING"):
        print(f"{vm.name} is there: {now}")
        return
    if now != "ABSENT":
        print(f"{vm.name} is {now}: deleted and created again")
        delete(vm)
    given = [f"--accelerator-type={vm.kind}", f"--version={vm.image}"]
    gcloud(vm, "create", *given, *(["--spot"] if vm.spot else []))


def setup(vm: Vm) -> None:
    """Bring this checkout's HEAD to every host, and make its environment."""
    revision = _git("rev-parse", "HEAD").strip()
    name = f"jaxlm-{revision[:12]}.tar.gz"
    with tempfile.TemporaryDirectory() as folder:
        archive = str(pathlib.Path(folder, name))
        _git("archive", "--format=tar.gz", f"--output={archive}", "HEAD")
        gcloud(vm, "scp", archive, f"{vm.name}:", "--worker=all")
    everywhere(vm, SETUP.format(revision=revision, archive=name, extras=vm.extras))


def _git(*args: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *args], check=True, capture_output=True, text=True
    ).stdout


def run(vm: Vm, command: Sequence[str]) -> None:
    """Start jaxlm with a command on every host, unless it runs there."""
    line = f"{NOTICES} -- .venv/bin/jaxlm {shlex.join(command)}; echo $? > ../run/code"
    everywhere(vm, START.format(command=shlex.quote(line)))


def poll(vm: Vm) -> list[str]:
    """How the command is on each host: "running", "ended CODE", "absent"."""
    return [line.strip() for line in everywhere(vm, POLL).splitlines() if line.strip()]


def status(vm: Vm) -> None:
    """Print the VM's state, and how the command is."""
    now = state(vm)
    print(f"{vm.name} is {now}")
    if now == "READY" or vm.dry:
        print(*poll(vm), sep="\n")
        print(gcloud(vm, "ssh", "--worker=0", "--command=tail -n 5 run/log"), end="")


def delete(vm: Vm) -> None:
    """Delete the VM, if there is one."""
    if vm.dry or state(vm) != "ABSENT":
        gcloud(vm, "delete", "--quiet")


# --- Until it is done ------------------------------------------------------------------------


def babysit(
    vm: Vm,
    command: Sequence[str],
    tries: int,
    every: float,
    remove: bool,
    wait: Callable[[float], None],
) -> int:
    """The exit code of the command once it is done: 0, or one that another start would not change.
    Whatever else ends it, or the VM, is followed by another start, `tries` of them at most.

    Raises: Failed after the last.
    """
    for number in range(1, tries + 1):
        try:
            create(vm)
            setup(vm)
            code = _watched(vm, command, every, wait)
        except Failed as error:
            code, reason = None, str(error)
        else:
            reason = "the VM is gone" if code is None else f"exit code {code}"
        if code in (0, DIVERGED, MISTAKE):
            print(f"{vm.name}: done, {reason}")
            if remove:
                delete(vm)
            return code
        print(f"{vm.name}: start {number} of {tries} ended ({reason})", file=sys.stderr)
        wait(every)
    raise Failed(f"{vm.name}: not done after {tries} starts; the same command goes on")


def _watched(
    vm: Vm, command: Sequence[str], every: float, wait: Callable[[float], None]
) -> int | None:
    """The exit code of the command, started if it does not run; None if the VM was lost."""
    if not any(line.startswith("running") for line in poll(vm)):
        run(vm, command)
    if vm.dry:
        return 0
    seconds, silent = 0.0, 0
    while True:
        wait(every)
        seconds += every
        try:
            hosts = poll(vm)
        except Failed:
            silent += 1
            if silent >= SILENT or state(vm) != "READY":
                return None
            continue
        silent = 0
        codes = [int(line.split()[1]) for line in hosts if line.startswith("ended")]
        if len(codes) == len(hosts) and hosts:
            return _verdict(codes, seconds)
        if "absent" in hosts:
            return None  # a host that was restarted


def _verdict(codes: list[int], seconds: float) -> int:
    """The exit code of the run, by those of its hosts: of a loss that is not finite or a mistake
    that of its host, as the others were then lost."""
    if DIVERGED in codes:
        return DIVERGED
    if MISTAKE in codes:
        return MISTAKE if seconds <= SOON else 128
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
