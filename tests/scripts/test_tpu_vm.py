"""TPU VMs by scripts/tpu/vm.py, with a gcloud that plays the cloud, and runs what it is given on
hosts that are folders."""

import json
import os
import subprocess
import sys

import pytest

from scripts.tpu import vm

# state/vm has the VM's state; state/events what comes to pass at the n-th ssh, one line each.
GCLOUD = """#!/bin/sh
cd {state}
printf '%s\\n' "$*" >> calls
verb=$4
case $verb in
describe)
    if [ -f vm ]; then cat vm; else echo 'ERROR: NOT_FOUND: no such node' >&2; exit 1; fi;;
create) if [ -f full ]; then rm full; echo 'no more capacity' >&2; exit 1; fi; echo READY > vm;;
delete) rm vm;;
ssh)
    [ "$(cat vm 2>/dev/null)" = READY ] || {{ echo 'not ready' >&2; exit 1; }}
    case $* in
    *run/code*\\ ]*) if [ -s answers ]; then head -n 1 answers | tr '|' '\\n'
              case $(head -n 1 answers) in PREEMPTED) echo PREEMPTED > vm; sed -i 1d answers
              echo 'connection lost' >&2; exit 255;; esac
              sed -i 1d answers; fi;;
    esac;;
esac
"""
HERE = ["pod", "--zone", "z", "--type", "v5p-32"]
COMMAND = ["--", "train", "configs/demo.py", "--name", "a b"]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder with the state of the cloud; gcloud's calls as a function."""
    state = tmp_path / "state"
    state.mkdir()
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(GCLOUD.format(state=state))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(vm, "_git", lambda *args: "0123456789abcdef\n")
    return state


def verbs(cloud):
    """The verbs that gcloud was called with, without looks."""
    calls = [line.split() for line in (cloud / "calls").read_text().splitlines()]
    return [c[3] for c in calls if c[:3] == ["compute", "tpus", "tpu-vm"] and c[3] != "describe"]


def babysit(*more):
    waited = []
    return vm.main(["babysit", *HERE, "--spot", *more, *COMMAND], waited.append), waited


def test_the_same_command_creates_once_and_deletes_once(cloud):
    for action in ("create", "create", "delete", "delete"):
        assert vm.main([action, *HERE, "--project", "p", "--spot"]) == 0
    assert verbs(cloud) == ["create", "delete"]
    created = (cloud / "calls").read_text().splitlines()[1]
    assert created == (
        "compute tpus tpu-vm create pod --accelerator-type=v5p-32 --version=v2-alpha-tpuv5 --spot "
        "--zone=z --project=p"
    )


def test_a_run_that_is_preempted_twice_is_done(cloud, capsys):
    (cloud / "answers").write_text(
        "absent|absent\nrunning|running\nPREEMPTED\n"  # first start
        "absent|absent\nrunning|running\nended 4|ended 137\n"  # a host was lost
        "ended 4|ended 137\nrunning|running\nended 0|ended 0\n"
    )
    code, waited = babysit("--every", "7", "--delete")
    assert code == 0 and set(waited) == {7.0}
    assert verbs(cloud).count("create") == 2 and not (cloud / "vm").exists()
    printed = capsys.readouterr()
    assert "pod is PREEMPTED: deleted and created again" in printed.out
    assert "start 1 of 20 ended (the VM is gone)" in printed.err
    assert "start 2 of 20 ended (exit code 137)" in printed.err
    starts = (cloud / "calls").read_text().count("nohup setsid")
    assert starts == 3


@pytest.mark.parametrize(
    "answer, every, code", [("ended 3|ended 4", 60, 3), ("ended 2|ended 2", 60, 2)]
)
def test_what_another_start_would_not_change_ends_it(cloud, answer, every, code):
    (cloud / "answers").write_text(f"absent|absent\n{answer}\n")
    assert babysit()[0] == code
    assert (cloud / "vm").exists()


def test_a_store_that_fails_in_mid_run_is_tried_again(cloud):
    """jaxlm ends with the exit code of a mistake where its store does not answer."""
    (cloud / "answers").write_text(
        "absent\n" + "running\n" * 9 + "ended 2\nended 2\nrunning\nended 0\n"
    )
    assert babysit()[0] == 0


def test_a_run_that_goes_on_already_is_not_started_again(cloud):
    (cloud / "vm").write_text("READY\n")
    (cloud / "answers").write_text("running|running\nended 0|ended 0\n")
    assert babysit()[0] == 0
    assert "nohup" not in (cloud / "calls").read_text() and "create" not in verbs(cloud)


def test_it_ends_after_so_many_starts(cloud, capsys):
    (cloud / "full").write_text("")
    (cloud / "answers").write_text("absent\nended 1\n")
    assert babysit("--tries", "2")[0] == 1
    printed = capsys.readouterr().err
    assert "start 1 of 2 ended (gcloud create pod: no more capacity)" in printed
    assert "not done after 2 starts; the same command goes on" in printed


def test_a_dry_run_prints_and_does_nothing(cloud, capsys):
    assert babysit("--dry-run", "--delete")[0] == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (cloud / "calls").exists()
    printed = [line.split()[4] for line in lines if line.startswith("gcloud compute")]
    assert printed == ["describe", "create", "scp", "ssh", "ssh", "ssh", "delete"]


def test_mistakes_are_named(cloud, capsys, monkeypatch):
    assert vm.main(["run", *HERE]) == 2 and "needs a command after --" in capsys.readouterr().out
    assert vm.main(["create", "pod", "--zone", "z", "--type", "v9-8"]) == 2
    assert "--version is needed for --type v9-8" in capsys.readouterr().out
    monkeypatch.setenv("PATH", "/nowhere")
    assert vm.main(["create", *HERE]) == 1
    assert "gcloud is not installed" in capsys.readouterr().err


def test_the_command_runs_detached_and_once(tmp_path):
    """The scripts of the hosts, by sh: started, polled, ended with its code, quotes kept."""
    program = tmp_path / "jaxlm" / ".venv" / "bin" / "jaxlm"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\ntime.sleep(0.5)\n"
        "print(json.dumps([os.environ['JAXLM_DISTRIBUTED'], *sys.argv[1:]]))\nsys.exit(5)\n"
    )
    program.chmod(0o755)
    notices = tmp_path / "jaxlm" / "scripts" / "tpu" / "notices.py"
    notices.parent.mkdir(parents=True)
    # no metadata server is here
    text = (vm.ROOT / "scripts" / "tpu" / "notices.py").read_text()
    notices.write_text(text.replace("metadata.google.internal", "127.0.0.1:9"))
    (tmp_path / "run").mkdir()
    scripts = []

    def shell(script):
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.stdout.strip()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vm, "everywhere", lambda _, script: scripts.append(script))
        vm.run(None, ["train", "it's a.py", "--name", "a b"])
    assert shell(vm.POLL) == "absent"
    assert shell(scripts[0]) == ""
    assert shell(vm.POLL) == "running" and shell(scripts[0]) == "running already"
    while shell(vm.POLL) == "running":
        pass
    assert shell(vm.POLL) == "ended 5"
    log = json.loads((tmp_path / "run" / "log").read_text())
    assert log == ["cluster", "train", "it's a.py", "--name", "a b"]
