"""The subcommands of `jaxlm`, an entry each; their modules are imported when they are called."""

from collections.abc import Mapping
from typing import NamedTuple

Class = tuple[str, str]  # module, name


class Command(NamedTuple):
    """One subcommand.

    place: "module:function" of this package; function(arguments) -> exit code. options: by action
    ("" where a command has none), the function or class of that module whose parameters they are;
    empty where the fields of a config are. chosen: by action, the classes of parameters whose type
    is not known before the command runs.
    """

    place: str
    usage: str
    help: str
    options: Mapping[str, str] = {}
    chosen: Mapping[str, Mapping[str, Class]] = {}


# Actions of `jaxlm feedback`: modules with `Settings` and `run`.
FEEDBACK = {
    "revise": "jaxlm.feedback.critique",
    "label": "jaxlm.feedback.preference_labels",
    "sample": "jaxlm.feedback.best_of_n",
    "instruct": "jaxlm.feedback.self_instruct",
}

COMMANDS = {
    "train": Command(
        "train_run:train",
        "train CONFIG [--retries N] [--field value ...]",
        "train, or go on after a stop",
    ),
    "sample": Command(
        "sample:sample", "sample RUN --prompt TEXT ...", "continue a text", {"": "_command"}
    ),
    "chat": Command("sample:chat", "chat RUN", "talk to a model", {"": "_chat"}),
    "serve": Command("serve:serve", "serve RUN", "answer requests over HTTP", {"": "_command"}),
    "eval": Command(
        "evaluate:evaluate",
        "eval RUN",
        "score held-out data",
        {"": "evaluate.command"},
        {"": {"data": ("jaxlm.data.kinds", "AnyData")}},
    ),
    "score": Command(
        "evaluate:score",
        "score RUN --response TEXT",
        "rewards of texts, by a reward model",
        {"": "score.command"},
    ),
    "feedback": Command(
        "feedback:feedback",
        "feedback ACTION RUN ...",
        "revise, compare, write instructions",
        {action: "Call" for action in FEEDBACK},
        {action: {"settings": (FEEDBACK[action], "Settings")} for action in FEEDBACK},
    ),
    "tokenizer": Command(
        "tokenize:tokenizer",
        "tokenizer train ...",
        "train a tokenizer",
        {"train": "tokenizer.command"},
    ),
    "data": Command(
        "tokenize:data",
        "data ACTION ...",
        "tokenize, curate, why, report, seen: text before and after a run",
        {name: f"_{name}" for name in ("tokenize", "curate", "why", "report", "seen")},
    ),
    "list": Command(
        "listing:listing",
        "list",
        "configs, presets, corpora, tokenizers, runs",
        {"": "listing.command"},
    ),
    "fit": Command(
        "fit:fit",
        "fit RUNS [--target FLOPS] ...",
        "scaling laws of a table of runs",
        {"": "fit.command"},
    ),
    "plan": Command(
        "train_run:plan", "plan CONFIG-or-PRESET", "parameters, FLOPs, bytes; does it fit?"
    ),
    "certify": Command(
        "train_run:certify",
        "certify CONFIG-or-PRESET",
        "is a plan's step that of one device? in float64",
    ),
    "sweep": Command(
        "sweep:sweep",
        "sweep FOLDER",
        "train many sizes, fit the law, predict a larger run",
        {"": "Options"},
    ),
    "ablate": Command(
        "ablate:ablate",
        "ablate FILE",
        "does a change help? paired runs, tested",
        {"": "ablate.command"},
    ),
    "plan-ahead": Command(
        "plan_ahead:plan_ahead",
        "plan-ahead --law STUDY ...",
        "the next run, from a law",
        {"": "plan_ahead.command"},
    ),
    "import": Command(
        "import_export:import_",
        "import HF_DIR RUN",
        "a run directory from transformers' files",
        {"": "import_.command"},
    ),
    "export": Command(
        "import_export:export",
        "export RUN HF_DIR",
        "a trained model as transformers' files",
        {"": "export.command"},
    ),
    "quantize": Command(
        "quantize:quantize",
        "quantize RUN OUT --scheme int4",
        "a trained model with its matrices in few bits",
        {"": "quantize.command"},
    ),
    "adapter": Command(
        "adapter:adapter",
        "adapter export|import|merge ...",
        "LoRA as peft's files, merged",
        {"export": "_export", "import": "_import", "merge": "_merge"},
    ),
    "plot": Command("listing:plot", "plot RUN", "draw the loss curves", {"": "plot.command"}),
}
