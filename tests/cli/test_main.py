"""The command line: what it prints, how it fails, what reaches the process."""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import types

import pytest

from jaxlm.cli import commands, launch, main
from jaxlm.parallel import multihost

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = '''
"""A run of seconds."""

from jaxlm.data.pretraining import Data
from jaxlm.models import gpt, llama
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Run

TINY = dict(vocab=259, embed=16, layers=1, heads=2)


def config():
    return Run(
        name="tiny",
        model=llama.Config(**TINY, kv=1, head=8, ffn=32),
        data=Data(source="text", seq=16, batch=4, holdout=0.3),
        optim=Optim(warmup=1),
        steps=4,
        log_every=2,
    )


def old():
    return Run(name="old", model=gpt.Config(**TINY, context=16), steps=2)


def wrong():
    return 3
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a config and a text, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pathlib.Path("tiny.py").write_text(CONFIG)
    pathlib.Path("text").mkdir()
    for i in range(20):
        pathlib.Path(f"text/{i}.txt").write_text(f"Document {i} says {'ab' * i}.")
    return tmp_path


def failure(capsys, *args):
    """The one line an erroneous command prints."""
    assert main.main(args) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("jaxlm: ")
    return err


def refusal(capsys, *args):
    """What the parser of overrides prints before it exits."""
    with pytest.raises(SystemExit) as end:
        main.main(args)
    assert end.value.code == 2
    err = capsys.readouterr().err
    # the frame around the message breaks lines
    return re.sub(r"[\s│─╭╮╰╯]+", " ", err)


# --- Speed of the first answer ---------------------------------------------------------------


def test_help_imports_nothing_slow():
    code = "import sys, jaxlm.cli.main; jaxlm.cli.main.main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "jaxlm train CONFIG" in done.stdout
    assert not modules & {"jax", "numpy", "tyro", "rich", "jaxlm.train.loop"}


def test_help_answers_in_a_third_of_a_second():
    def seconds():
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "jaxlm", "--help"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - begun

    def bare():
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return time.perf_counter() - begun

    # beyond the interpreter's own start, which a busy machine slows alike
    assert min(seconds() for _ in range(3)) - statistics.median(bare() for _ in range(3)) < 0.3


def test_every_command_is_listed(capsys):
    assert main.main([]) == main.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"jaxlm {name}" in out for name in commands.COMMANDS)
    assert main.main(["--version"]) == 0
    assert re.fullmatch(r"jaxlm \d+\.\d+\.\d+\n", capsys.readouterr().out)


# --- Overrides -------------------------------------------------------------------------------


def test_help_of_a_config_lists_every_field_with_meaning_and_default(place, capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["train", "tiny.py", "--help"])
    assert end.value.code == 0
    out = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "--optim.lr FLOAT Peak learning rate. (default: 0.0003)" in out
    assert "--model.kv INT" in out
    assert "(default: tiny)" in out
    assert "--checkpoint.keep-last INT" in out


def test_the_model_is_the_configs_own_family(place, capsys):
    with pytest.raises(SystemExit):
        main.main(["train", "tiny.py:old", "--help"])
    out = capsys.readouterr().out
    assert "--model.dropout" in out
    assert "--model.theta" not in out
    # a field of another family
    assert "--model.theta" in refusal(capsys, "train", "tiny.py:old", "--model.theta", "1e4")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.heads", "3", "--model.kv", "2"], "model.kv: 2 does not divide model.heads=3"),
        (["--plan.data", "0"], "plan.data: 0 given; it must be at least 1"),
        (["stray"], "stray"),
    ],
)
def test_wrong_overrides_name_the_field(place, capsys, args, expected):
    assert expected in refusal(capsys, "train", "tiny.py", *args)


# --- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["train", "tinny.py"], "no config file 'tinny.py'"),
        (["train", "tiny.py:confg"], "no function 'confg'; it has ['config', 'old', 'wrong']"),
        (["train", "tiny.py:wrong"], "config() returned int, a Run is needed"),
        (["train", "--steps", "3"], "--steps given where"),
        (
            ["train", "tiny.py", "--optim.lrr", "3"],
            "no option --optim.lrr; did you mean --optim.lr?",
        ),
        (["train", "tiny.py", "--lr=3"], "no option --lr; did you mean --optim.lr?"),
        (["train", "tiny.py", "--data.corrupt.mena", "3"], "did you mean --data.corrupt.mean?"),
        (["plan", "llama3-8b", "--plan.fsd", "3"], "did you mean --plan.fsdp?"),
        (["train", "tiny.py", "--data.source", "nowhere.txt"], "nowhere.txt"),
        (["train", "tiny.py", "--data.tokenizer", "none.model"], "none.model"),
        (["train", "tiny.py", "--model.vocab", "100"], "model.vocab: 100 given"),
        (["train", "tiny.py", "--data.batch", "3", "--plan.microbatches", "2"], "data.batch: 3"),
        (["sample", "runs/none"], "runs/none is no run directory"),
        (["eval", "runs/none"], "runs/none is no run directory"),
        (["plot", "runs/none"], "runs/none is no run directory"),
        (["plan", "llama3-9b"], "no preset 'llama3-9b'; did you mean 'llama3-8b'?"),
        (["plan", "mine"], "no preset 'mine'; `jaxlm list` prints all"),
        (["plan", "llama3-8b", "--plan.tensor", "3"], "does not divide over tensor=3"),
        (["tokenizer", "trian"], "no action 'trian'; there is 'train'"),
        (["tokenizer", "train", "--kind", "bpee", "--vocab", "300", "--out", "t"], "'bpe'"),
        (["data", "tokenize", "--tokenizer", "bytes", "--source", "x.md", "--out", "o"], "x.md"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(place, capsys, args, expected):
    text = failure(capsys, *args)
    assert expected in text
    assert "Traceback" not in text
    assert not pathlib.Path("runs").exists()


def test_tracebacks_are_shown_on_request(place, monkeypatch):
    monkeypatch.setenv("JAXLM_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main.main(["train", "tinny.py"])


# --- Plan and list ---------------------------------------------------------------------------


def test_plan_of_known_models(capsys):
    assert main.main(["plan", "llama3-8b", "--data.seq", "4096"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  total +8,030,261,248$", out, re.MULTILINE)
    assert re.search(r"^  4,096 tokens +0\.50 GiB$", out, re.MULTILINE)
    assert re.search(r"^  4,096 tokens, int8 +0\.26 GiB$", out, re.MULTILINE)
    assert re.search(r"^  20 tokens per parameter +160\.6B tokens", out, re.MULTILINE)
    assert "causal attention" in out
    assert "full attention" in out
    assert main.main(["plan", "llama2-70b"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  4,096 tokens +1\.25 GiB$", out, re.MULTILINE)
    assert "FLOPs per token at 4,096 tokens" in out  # a preset's own length


@pytest.mark.parametrize(
    "preset, says",
    [
        ("t5-base", "FLOPs per token at 512 tokens"),
        ("bert-base", "continues none"),
        ("mixtral-8x7b", "12,879,925,248"),
    ],
)
def test_plan_of_every_kind_of_model(capsys, preset, says):
    assert main.main(["plan", preset]) == 0
    assert says in capsys.readouterr().out


def test_plan_needs_none_of_the_devices_it_plans_for(capsys):
    assert main.main(["plan", "llama3-405b"]) == 0
    (undivided,) = re.findall(r"weights, float32 +([\d.]+) TiB", capsys.readouterr().out)
    args = ["--plan.data", "2", "--plan.fsdp", "128", "--plan.tensor", "8", "--data.batch", "256"]
    assert main.main(["plan", "llama3-405b", *args]) == 0
    (part,) = re.findall(r"weights, float32 +([\d.]+) GiB", capsys.readouterr().out)
    # norm scales are not cut by tensor
    assert float(part) == pytest.approx(float(undivided) * 1024 / 1024, rel=0.01)


def test_plan_of_a_config(place, capsys):
    assert main.main(["plan", "tiny.py", "--steps", "100"]) == 0
    out = capsys.readouterr().out
    assert "layers: attn" in out
    assert "6.4k tokens, 100 steps" in out


# --- A run, end to end -----------------------------------------------------------------------


def test_train_sample_eval_plot_list(place, capsys):
    assert main.main(["train", "tiny.py", "--optim.lr", "1e-3", "--steps", "3"]) == 0
    saved = json.loads(pathlib.Path("runs/tiny/config.json").read_text())
    assert (saved["optim"]["lr"], saved["steps"], saved["model"]["kind"]) == (1e-3, 3, "llama")
    capsys.readouterr()

    assert main.main(["train", "tiny.py", "--optim.lr", "1e-3", "--steps", "3"]) == 0
    assert "finished" in capsys.readouterr().out
    assert "optim.lr" in failure(capsys, "train", "tiny.py", "--steps", "3")

    assert main.main(["eval", "runs/tiny"]) == 0
    score = json.loads(capsys.readouterr().out)
    val = json.loads(pathlib.Path("runs/tiny/result.json").read_text())["val"]
    assert score["bits_per_byte"] == pytest.approx(val["bits_per_byte"], rel=1e-6)
    assert score["step"] == 3

    args = ["--prompt", "Doc", "A", "--max-new", "5", "--seed", "3"]
    assert main.main(["sample", "runs/tiny", *args]) == 0
    first = capsys.readouterr().out
    assert re.search(r"^Doc", first)
    assert main.main(["sample", "runs/tiny", *args]) == 0
    assert capsys.readouterr().out == first

    pathlib.Path("runs/tiny/loss.png").unlink()
    assert main.main(["plot", "runs/tiny"]) == 0
    assert pathlib.Path(capsys.readouterr().out.strip()).read_bytes()[:4] == b"\x89PNG"

    assert main.main(["list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"runs/tiny +finished, 3 steps, \d\.\d+ bits per byte", out)
    assert re.search(r"llama3-8b +8,030,261,248", out)


def test_tokenizer_and_shards(place, capsys):
    args = ["--kind", "byte_bpe", "--vocab", "270", "--source", "text", "--out", "tok"]
    assert main.main(["tokenizer", "train", *args]) == 0
    assert "270 ids" in capsys.readouterr().out
    assert "exists" in failure(capsys, "tokenizer", "train", *args)
    arguments = ["--source", "text", "--tokenizer", "tok", "--holdout", "0.3", "--out", "shards"]
    assert main.main(["data", "tokenize", *arguments]) == 0
    assert "shards/train:" in capsys.readouterr().out
    # shards of another tokenizer are refused before a step is taken
    text = failure(capsys, "train", "tiny.py", "--data.source", "shards")
    assert "tokenizer" in text


# --- Launch ----------------------------------------------------------------------------------


def test_restart_asks_for_large_pages_once(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    cpu = {"JAX_PLATFORMS": "cpu"}
    first = launch.restart(cpu)
    assert first == cpu | {"GLIBC_TUNABLES": launch.PAGES}
    assert launch.restart(first) is None
    assert launch.restart(cpu | {"JAXLM_HUGEPAGES": "0"}) is None
    assert launch.restart(cpu | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) is None
    kept = launch.restart(cpu | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"})
    assert kept["GLIBC_TUNABLES"] == f"glibc.malloc.arena_max=1:{launch.PAGES}"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert launch.restart(cpu) is None


def test_no_restart_where_there_may_be_an_accelerator(monkeypatch, tmp_path):
    """An installed libtpu, which also compiles for TPUs that are elsewhere, once passed for one."""
    plugins = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "plugins")])
    specs = {"libtpu": object()}
    monkeypatch.setattr(launch.importlib.util, "find_spec", specs.get)
    nodes = tmp_path / "dev"
    (nodes / "vfio").mkdir(parents=True)
    for name in ("null", "nvidiactl", "vfio/vfio", "nvidia0"):
        (nodes / name).touch()
    assert not launch.accelerated({}, nodes)  # a GPU, and nothing that would start on it
    assert launch.accelerated({"JAX_PLATFORMS": "tpu"}, nodes)
    (nodes / "vfio" / "0").touch()
    assert launch.accelerated({}, nodes)
    assert not launch.accelerated({"JAX_PLATFORMS": "cpu"}, nodes)
    (nodes / "vfio" / "0").rename(nodes / "accel0")
    assert launch.accelerated({}, nodes)
    specs |= {"libtpu": None, "jax_plugins": plugins}
    assert not launch.accelerated({}, nodes)
    (tmp_path / "plugins" / "xla_cuda13").mkdir(parents=True)
    (tmp_path / "plugins" / "xla_cuda13" / "__init__.py").touch()
    assert launch.accelerated({}, nodes)
    (nodes / "nvidia0").unlink()
    assert not launch.accelerated({}, nodes)
    (tmp_path / "plugins" / "other.py").touch()  # of unknown devices
    assert launch.accelerated({}, nodes)
    assert launch.restart({"JAX_PLATFORMS": "cuda,cpu"}) is None


@pytest.mark.parametrize(
    "value, expected",
    [
        ("1", "HOST:PORT/COUNT/INDEX is needed"),
        ("localhost/2/0", "HOST:PORT/COUNT/INDEX is needed"),
        ("localhost:1/2/2", "process 2 of 2 given"),
    ],
)
def test_wrong_peers_are_named(value, expected):
    with pytest.raises(ValueError, match=f"JAXLM_DISTRIBUTED: .*{expected}"):
        multihost.join({"JAXLM_DISTRIBUTED": value})


def test_a_process_is_alone_unless_configured():
    assert multihost.join({}) == 1


def test_settings_reach_the_process(place):
    """A config prints what its process was started with; the number of devices follows the plan."""
    spy = (
        "import os, jax\n"
        "def config():\n"
        "    print('TUNABLES', os.environ.get('GLIBC_TUNABLES'))\n"
        "    jax.config.update('jax_platforms', 'cpu')\n"
        "    import atexit\n"
        "    show = lambda: print('DEVICES', len(jax.devices()), os.environ['XLA_FLAGS'])\n"
        "    atexit.register(show)\n"
        "    import sys; sys.path.insert(0, '.'); import tiny\n"
        "    return tiny.config()\n"
    )
    pathlib.Path("spy.py").write_text(spy)
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "GLIBC_TUNABLES")}
    environ = kept | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    overrides = ["--plan.data", "2", "--data.batch", "3"]  # refused, so that nothing is compiled
    done = subprocess.run(
        [sys.executable, "-m", "jaxlm", "train", "spy.py", *overrides],
        env=environ, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "data.batch: 3 given; it must be a multiple of 2" in done.stderr
    wanted = launch.PAGES if sys.platform.startswith("linux") else "None"
    assert f"TUNABLES {wanted}" in done.stdout
    flags = re.search(r"^DEVICES 2 (.*)", done.stdout, re.MULTILINE)
    assert flags is not None and launch.THREADS in flags[1].split()


def test_a_missing_file_is_a_sentence(capsys):
    """The operating system's text began with [Errno 2]."""
    assert main.main(["plan-ahead", "--law", "nothing.json", "--flops", "1e20"]) == 2
    assert capsys.readouterr().err == "jaxlm: nothing.json: no such file or directory\n"
