"""docs/safety.md: configs and rewards run as code; checkpoints, templates and data never do."""

import ast
import json
import pathlib
import pickle

import numpy as np
import pytest

from jaxlm.cli import launch, main
from jaxlm.convert import read
from jaxlm.core import config, io, json_file
from jaxlm.data import tokenizers
from jaxlm.data.records import records
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message, Template
from jaxlm.train import precompute
from jaxlm.train.run import directory
from tests.convert.test_checkpoint import FILE, refusal, save, settings

ROOT = pathlib.Path(__file__).parents[1]
# Calls that run what a file holds, and the files of jaxlm that may: configs, and rewards.
RUNS = {"exec_module", "import_module", "eval", "exec", "compile", "__import__", "run_path"}
RUNS |= {"run_module", "spec_from_file_location", "system", "popen"}
PICKLES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch", "transformers"}
ALLOWED = {
    # of names in tables of the library
    "jaxlm/__init__.py": {"import_module"},
    "jaxlm/cli/main.py": {"import_module"},
    "jaxlm/cli/commands/feedback.py": {"import_module"},
    "jaxlm/core/config.py": {"exec_module", "spec_from_file_location"},
    # of what the user gave in Python, or named in JAXLM_FACTORIES
    "jaxlm/models/flax_modules/__init__.py": {"import_module"},
    "jaxlm/models/flax_modules/from_flax.py": {"eval"},  # an nnx.Module's method
    "jaxlm/train/preflight/scheduled_step.py": {"compile"},  # a traced program, by XLA
    "jaxlm/train/rl/sandbox.py": {"exec_module", "spec_from_file_location", "import_module"},
}


def called(node):
    """The name of what is called: `f` of f(...) and of x.f(...)."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def of_text(node):
    """Whether a call is of a regular expression, or names a module in the source itself."""
    of = node.func.value if isinstance(node.func, ast.Attribute) else None
    literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
    return (isinstance(of, ast.Name) and of.id == "re") or (
        called(node) == "import_module" and literal
    )


def test_only_configs_and_rewards_are_run():
    wrong = []
    for path in sorted((ROOT / "jaxlm").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                wrong += [f"{name}: {m}" for m in modules if m.partition(".")[0] in PICKLES]
            if not isinstance(node, ast.Call):
                continue
            if called(node) in RUNS - ALLOWED.get(name, set()) and not of_text(node):
                wrong.append(f"{name}:{node.lineno}: {called(node)}")
            for keyword in node.keywords:
                if keyword.arg in ("trust_remote_code", "allow_pickle"):
                    wrong.append(f"{name}:{node.lineno}: {keyword.arg}")
                if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
                    wrong.append(f"{name}:{node.lineno}: shell")
    assert not wrong


class Marks:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.fixture
def mark(tmp_path):
    """A file that is there once somebody ran what only was to be read."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def test_the_code_of_a_checkpoint_is_ignored_and_its_pickles_refused(
    tmp_path, mark, monkeypatch, capsys
):
    monkeypatch.setattr(launch, "devices", lambda count: None)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hf"
    folder.mkdir()
    save(folder)
    line = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
    for name in ("modeling_llama.py", "configuration_llama.py", "tokenization_llama.py"):
        (folder / name).write_text(line)
    named = {"AutoConfig": "configuration_llama.C", "AutoModel": "modeling_llama.M"}
    settings(folder, auto_map=named | {"AutoTokenizer": ["tokenization_llama.T", None]})
    tokenizers.train("byte_bpe", ["words"] * 9, 262, str(tmp_path / "made"))
    (tmp_path / "made" / "tokenizer.json").rename(folder / "tokenizer.json")
    tokenizer_config = {
        "eos_token": "<|eos|>",
        "auto_map": {"AutoTokenizer": ["tokenization_llama.T", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    for name in ("training_args.bin", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Marks(mark)))
    settings(folder, vocab_size=48)
    assert read.load(folder)
    assert main.main(["import", str(folder), "run"]) == 0
    assert "the tokenizer has 262 ids, the model 48" in capsys.readouterr().err
    assert not [*(tmp_path / "run").rglob("*.py")] and not [*(tmp_path / "run").rglob("*.bin")]
    (folder / FILE).unlink()
    assert "a pickle, which may run any code" in refusal(folder, FileNotFoundError)


def test_arrays_and_data_are_read_without_pickles(tmp_path, mark):
    np.save(tmp_path / "x.npy", np.array([Marks(mark)], object), allow_pickle=True)
    sums = {"files": {"x.npy": io.sha256(tmp_path / "x.npy")}}
    (tmp_path / precompute.SUMS).write_text(json_file.sealed(sums), "utf-8")
    assert "Python objects in dtype" in str(precompute._fault(tmp_path, 1))
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(Marks(mark)))
    with pytest.raises(ValueError, match="data.pkl: records are read from .jsonl"):
        list(records.read(str(tmp_path / "data.pkl")))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''.format.__globals__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ open('/etc/passwd') }}",
        "{{ self.__init__ }}",
    ],
)
def test_a_template_reaches_no_file_and_no_private_attribute(source):
    talk = [Message("user", "Hi"), Message("assistant", "Yes")]
    with pytest.raises(ValueError, match="template 'hostile'"):
        template.encode(Template("hostile", source), tokenizers.load("bytes"), talk)


def test_a_run_directory_is_read_without_running_the_reward_that_it_names(tmp_path, mark):
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n")
    run = config.to_dict(config.load(str(ROOT / "configs" / "grpo.py")))
    run["rollout"]["rewards"] = [f"{tmp_path / 'evil.py'}:score"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(run))
    assert directory.load(tmp_path / "run").rollout is not None
    assert main.main(["list", str(tmp_path)]) == 0
