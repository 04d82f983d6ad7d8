"""Run a command on a Google Cloud VM, and send it SIGTERM when the VM is about to be taken away.

    python3 scripts/tpu/notices.py -- .venv/bin/jaxlm train configs/demo.py --out gs://bucket/runs

The VM's metadata server announces a maintenance of its host that ends the VM
(instance/maintenance-event is TERMINATE_ON_HOST_MAINTENANCE) and its preemption
(instance/preempted is TRUE). jaxlm answers SIGTERM with a checkpoint of the step that it is in, on
all hosts of a pod after the same step, whichever of them was told.

A notice is passed on once, when it appears: a command that is started again while it still stands
goes on until the VM is gone. A server that does not answer is asked again. The exit code is the
command's, 128 + n where signal n ended it.
"""

import argparse
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence

SERVER = "http://metadata.google.internal/computeMetadata/v1/instance"
# The values of each key that say that nothing is about to end the VM; a migration does not.
HARMLESS = {
    "maintenance-event": ("NONE", "MIGRATE_ON_HOST_MAINTENANCE"),
    "preempted": ("FALSE",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command in a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", default=SERVER, help="the URL of the VM's own metadata")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks")
    parser.add_argument("command", nargs="+", help="the command and its arguments, after --")
    args = parser.parse_args(argv)
    # known before the command runs: of what it began with it is told nothing
    before = notices(args.server)
    child = subprocess.Popen(args.command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    ended = threading.Event()
    watch = (child, args.server, args.every, before, ended)
    threading.Thread(target=_watch, args=watch, daemon=True).start()
    code = child.wait()
    ended.set()
    return code if code >= 0 else 128 - code


def notices(server: str) -> dict[str, str]:
    """{key: value} of what is about to end the VM; nothing of a server that does not answer."""
    found = {}
    for key, harmless in HARMLESS.items():
        request = urllib.request.Request(f"{server}/{key}", headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                value = answer.read().decode().strip()
        except (urllib.error.URLError, OSError, UnicodeDecodeError):
            continue
        if value not in harmless:
            found[key] = value
    return found


def _watch(
    child: subprocess.Popen,
    server: str,
    every: float,
    before: dict[str, str],
    ended: threading.Event,
) -> None:
    """Look until the command has ended, and pass on each notice that appears."""
    while not ended.wait(every):
        now = notices(server)
        new = {key: value for key, value in now.items() if before.get(key) != value}
        if new:
            text = ", ".join(f"{key} is {value}" for key, value in new.items())
            print(
                f"notices.py: {text}: SIGTERM, so that the run saves", file=sys.stderr, flush=True
            )
            child.send_signal(signal.SIGTERM)
        before = now


if __name__ == "__main__":
    sys.exit(main())
