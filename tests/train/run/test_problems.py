"""Settings of every kind with many wrong fields: all are named at once, in one wording."""

import dataclasses
import math

import pytest

from jaxlm import objectives
from jaxlm.core import check
from jaxlm.data import pretraining
from jaxlm.data.corrupt import infill, mask, span
from jaxlm.data.records import chats, preferences, prompts
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import best_of_n, critique, preference_labels, principles, self_instruct
from jaxlm.models import llama
from jaxlm.objectives import lora
from jaxlm.objectives.rl import grpo
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.table import Counting
from jaxlm.train.optim import optimizer
from jaxlm.train.rl import rollout
from jaxlm.train.run import run as runs
from jaxlm.train.sweep import paired_runs, population, sweep_cells

NAN = math.nan
TINY = llama.Config(vocab=259, embed=8, layers=1, heads=1, kv=1, head=8, ffn=16)
BASE = runs.Run(name="x", model=TINY, data=pretraining.Data(source="markov"))
VOICES = principles.load(principles.DEFAULT)


def own(settings):
    return settings.problems()


# (field, value given, what fits), where None is left out of the lines
DATA = [
    ("source", "", "a name or path"),
    ("tokenizer", "", "a name or path"),
    ("holdout", NAN, "in [0, 1)"),
    ("batch", 0, "at least 1"),
    ("seed", -1, "in [0, 4294967296)"),
    ("workers", -1, "at least 0"),
]
FEEDBACK = [
    ("out", "x", "a name that ends in .jsonl"),
    ("sampling", Sampling(seed=1, n=2), None),
]
SEED = [
    "sampling.seed: 1 given; it must be 0 where `seed` decides the seed of every sample",
    "sampling.n: 2 given; it must be 1 where each conversation has one reply",
]
# (where, class, its problems, its wrong fields, further lines)
CASES = {
    "text": (
        "data",
        pretraining.Data,
        own,
        [
            *DATA,
            ("packing", "first_fit", "one of ['concat', 'best_fit']"),
            ("seq", 0, "at least 1"),
            ("field", "", "the name of a field"),
            ("ramp", ((5, 0),), "(first step, value) pairs"),
            ("curriculum", ((4, 1), (4, 2)), "(first step, value) pairs"),
            ("corrupt", mask.Mask(rate=2), "None with data.infill"),
            ("infill", infill.Infill(rate=NAN, spm=-1.0), None),
        ],
        [
            "data.corrupt.rate: 2 given; it must be in (0, 1)",
            "data.infill.rate: nan given; it must be in [0, 1]",
            "data.infill.spm: -1.0 given; it must be in [0, 1]",
            "data.packing: 'first_fit' given; it must be 'best_fit' with data.infill",
            "data.curriculum: ((4, 1), (4, 2)) given; it must be () with data.infill",
        ],
    ),
    "mask": (
        "data.corrupt",
        mask.Mask,
        own,
        [("rate", NAN, "in (0, 1)"), ("random", 1.5, "in [0, 1]"), ("keep", NAN, "in [0, 1]")],
        [],
    ),
    "span": (
        "data.corrupt",
        span.Span,
        own,
        [("rate", NAN, "in (0, 1)"), ("mean", NAN, "at least 1"), ("start", -1, "at least 0")],
        [],
    ),
    "chats": (
        "data",
        chats.Chats,
        own,
        [
            *DATA,
            ("format", "alpacca", "one of ['alpaca', 'dolly', 'sharegpt', 'messages', 'oasst',"),
            ("learn", "some", "one of ['all', 'last']"),
            ("tree", "worst", "one of ['best', 'all']"),
            ("packing", "concat", "one of ['best_fit', 'single']"),
            ("seq", 1, "at least 2"),
        ],
        [],
    ),
    "preferences": (
        "data",
        preferences.Preferences,
        own,
        [*DATA, ("format", "pairs", "one of ['"), ("seq", 1, "at least 2")],
        [],
    ),
    "prompts": (
        "data",
        prompts.Prompts,
        own,
        [
            *DATA,
            ("long", "cut", "one of ['drop', 'refuse']"),
            ("seq", 0, "at least 1"),
            ("field", "", "the name of a field, or None"),
        ],
        [],
    ),
    "optimiser": (
        "optim",
        optimizer.Optim,
        lambda settings: optimizer.problems(settings, 20),
        [
            *((name, NAN, "above 0") for name in ("lr", "eps", "clip")),
            *((name, NAN, "in [0, 1)") for name in ("b1", "b2")),
            ("schedule", "wsd", None),
            ("final", NAN, "in [0, 1]"),
            ("decay", NAN, "in (0, 1]"),
            ("weight_decay", NAN, "at least 0"),
            ("skip", NAN, "above 1"),
            ("ema", NAN, "in (0, 1)"),
            ("warmup", 99, "in [0, 20)"),
        ],
        [],
    ),
    "rollout": (
        "rollout",
        rollout.Rollout,
        lambda settings: rollout.problems(settings, prompts.Prompts("p"), grpo.Config(), Plan()),
        [
            *((name, 0, "at least 1") for name in ("samples", "max_new", "epochs", "minibatches")),
            *((name, -1, "at least 0") for name in ("reward_retries", "resample", "save")),
            ("save_every", 0, "at least 1"),
            ("eval_temperature", NAN, "at least 0"),
            ("reward_seconds", NAN, "above 0"),
            ("reward_model_weight", NAN, "a finite number"),
            ("weights", (NAN,), "a finite number for each of 2 reward functions"),
            ("rewards", ("exact", "exakt"), None),
        ],
        ["rollout.rewards: 'exakt' given; it must be one of ['exact',"],
    ),
    "sweep": (
        "",
        sweep_cells.Sweep,
        sweep_cells.problems,
        [
            ("name", "s", None),
            (
                "base",
                dataclasses.replace(BASE, start="runs/x", out="gs://x", data=chats.Chats("x")),
                None,
            ),
            ("cells", (sweep_cells.Cell(TINY, NAN),), None),
            ("held_out", sweep_cells.Cell(TINY, math.inf), None),
            ("speed", sweep_cells.Speed(NAN, NAN, -1.0), None),
            ("counting", Counting(), "rules that count a Config"),
            ("rule", "mine", "one of ['step law', 'deepseek']"),
            ("lr_factor", NAN, "above 0"),
            ("batch_factor", 0.0, "above 0"),
            ("multiple", 0, "at least 1"),
            ("warmup", NAN, "in (0, 0.5)"),
            ("decay", 0.5, "in (0, 0.5)"),
        ],
        [
            "base.data: chats given; it must be text",
            "base.out: 'gs://x' given; it must be a local directory",
            "base.start: 'runs/x' given; it must be None since every run begins from random",
            "cells: 1 given; it must be at least 2",
            "cells[0].flops: nan given; it must be above 0",
            "held_out.flops: inf given; it must be above 0",
            "speed.flops_per_second: nan given; it must be above 0",
            "speed.flops_overhead: nan given; it must be at least 0",
            "speed.seconds_per_run: -1.0 given; it must be at least 0",
        ],
    ),
    "ablation": (
        "",
        paired_runs.Ablation,
        paired_runs.problems,
        [
            ("name", "a", None),
            ("baseline", BASE, None),
            ("out", "s3://x", "a local directory"),
            ("variants", (), "at least one Run"),
            ("seeds", (1, 1), "different ones"),
            ("looks", (3,), "numbers whose last is that of all 2 pairs"),
            ("alpha", NAN, "in (0, 1)"),
            ("noise", NAN, "above 0"),
            ("matters", -1.0, "above 0"),
            ("lengths", (NAN,), "positive multiples of steps"),
            ("law", "study.json", None),
        ],
        ["lengths: (nan,) given; it must be () with law='study.json'"],
    ),
    "critique": (
        "",
        critique.Settings,
        lambda settings: critique.problems(settings, VOICES),
        [
            *FEEDBACK,
            ("prompts", "p", None),
            ("rounds", 0, "at least 1"),
            ("batch", 0, "at least 1"),
            ("examples", -1, "0 to "),
            ("unfinished", "cut", "one of ['drop', 'keep']"),
        ],
        SEED,
    ),
    "labels": (
        "",
        preference_labels.Settings,
        lambda settings: preference_labels.problems(settings, VOICES),
        [
            *FEEDBACK,
            ("pairs", "p", None),
            ("each", 0, "1 to "),
            ("batch", 0, "at least 1"),
            ("clamp", (NAN, 1.0), "two numbers with 0 <= low <= 0.5 <= high <= 1"),
        ],
        [*SEED, "sampling: Sampling("],
    ),
    "best of n": (
        "",
        best_of_n.Settings,
        best_of_n.problems,
        [
            *FEEDBACK,
            ("prompts", "p", None),
            ("count", 0, "at least 1"),
            ("batch", 0, "at least 1"),
            ("keep", "some", "one of ['all', 'each', 'best', 'above']"),
            ("unfinished", "cut", "one of ['drop', 'keep']"),
            ("threshold", NAN, "a finite number with keep='above'"),
            ("reward_seconds", NAN, "above 0"),
            ("rewards", ("a:b", "a:b"), "different functions"),
            ("weights", (NAN,), "a finite number for each of 2 reward functions"),
        ],
        SEED,
    ),
    "instructions": (
        "",
        self_instruct.Settings,
        lambda settings: self_instruct.problems(settings, ["a"]),
        [
            *FEEDBACK,
            *((name, 0, "at least 1") for name in ("count", "rounds", "requests")),
            ("seeds", "s", None),
            ("shown", 2, "1 to 1, the instructions of s"),
            ("own", 3, "0 to shown=2"),
            ("most_alike", NAN, "in [0, 1]"),
        ],
        SEED,
    ),
    "run": (
        "",
        runs.Run,
        runs.problems,
        [
            *((name, 0, "at least 1") for name in ("steps", "log_every", "eval_every")),
            *((name, 0, "at least 1") for name in ("eval_batches", "sample_tokens", "patience")),
            ("min_delta", -1.0, "at least 0"),
            ("name", "a/b", "a directory's name"),
            ("out", "file:///x", "a local directory"),
            ("wandb", "a/b/c", "PROJECT or ENTITY/PROJECT"),
            ("seed", -1, "in [0, 4294967296)"),
            ("mup", (("wide", 1),), "None with an adapter"),
            ("rollout", rollout.Rollout(), "None with data of kind chats"),
            ("checkpoint", runs.Checkpoint(every=0, keep_last=0, keep_every=0, at=(0,)), None),
            ("data", chats.Chats("no.jsonl", template="chatml", holdout=NAN, workers=-1), None),
            ("model", TINY, None),
            ("objective", objectives.sft.Config(), None),
            ("optim", optimizer.Optim(lr=NAN), None),
            ("adapter", lora.Lora(), None),
            ("plan", Plan(attention="splash"), None),
        ],
        [
            "checkpoint.every: 0 given; it must be at least 1",
            "checkpoint.keep_last: 0 given; it must be at least 1",
            "checkpoint.keep_every: 0 given; it must be at least 1",
            "checkpoint.at: (0,) given; it must be steps of at least 1",
            "data.holdout: nan given; it must be in [0, 1)",
            "data.workers: -1 given; it must be at least 0",
            "data.source: source 'no.jsonl'",
            "data.template: template 'chatml' writes the special tokens",
            "plan.attention: attention kernel 'splash' runs on tpu only",
            "start: None given with an adapter",
            "mup: 'wide' given, but model has no such width",
            "optim.lr: nan given; it must be above 0",
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_all_wrong_fields_are_named_at_once(name):
    """Data and feedback were refused for their first wrong field alone; a `mean` of NaN, an
    infinite `flops` and a `keep` that is none of the choices were accepted."""
    where, kind, problems, fields, more = CASES[name]
    settings = kind(**{field: value for field, value, _ in fields})
    lines = [
        f"{check.path(where, field)}: {value!r} given; it must be {fits}"
        for field, value, fits in fields
        if fits is not None
    ]
    _refused(problems(settings), lines + more)


def test_all_reasons_why_runs_are_no_population_are_named_at_once():
    wrong = {"profile": (1, 2), "samples": ("a",), "plan": Plan(data=2)}
    members = [BASE, dataclasses.replace(BASE, steps=9), dataclasses.replace(BASE, **wrong)]
    lines = [
        "name: runs/x is the directory of several runs; each needs its own",
        "steps: 1000 in run 'x' and 9 in 'x'; members of a population may differ in",
        "samples: ('a',) given; it must be () in a population (run 'x')",
        "profile: (1, 2) given; it must be None in a population (run 'x')",
        "plan: Plan(replica=1, data=2,",
    ]
    _refused(population.problems(members), lines)


def _refused(problems, lines):
    """The problems are refused together, and are these: each begins with a line, one to one."""
    with pytest.raises(ValueError) as error:
        check.refuse("this cannot start:", problems)
    heading, *given = str(error.value).split("\n  ")
    assert heading == "this cannot start:" and len(given) == len(lines), given
    for line in lines:
        assert [text for text in given if text.startswith(line)], line


def test_nothing_is_refused_without_a_problem():
    check.refuse("this cannot start:", BASE.data.problems())
    assert not [*runs.problems(BASE)]


def test_sequences_that_a_plan_cannot_split_are_named_before_compute():
    plan = Plan(context=2, tensor=2, sequence=True)
    model = dataclasses.replace(TINY, vocab=260, heads=2, kv=2)
    data = pretraining.Data(source="markov", seq=30, batch=2)
    lines = ["data.seq: 30 given; it must be a multiple of 4, the parts of a sequence by context=2"]
    _refused(runs.problems(dataclasses.replace(BASE, model=model, data=data, plan=plan)), lines)
    pairs = dataclasses.replace(data, seq=28, corrupt=span.Span())
    lines = ["data.seq=28: tokens of a target: 6 given; it must be a multiple of 4"]
    _refused(runs._sequence(plan, pairs), lines)
    lines = [
        "plan.pipe: 2 given; it must be 1 with a rollout",
        "plan.context: 2 given; it must be 1 with a rollout, whose responses grow",
        "plan.sequence: True given; it must be False with a rollout",
    ]
    roll = rollout.Rollout(rewards=("exact",))
    plan = dataclasses.replace(plan, pipe=2)
    _refused(rollout.problems(roll, prompts.Prompts("x"), grpo.Config(), plan), lines)


def test_what_a_pipeline_does_not_divide_is_named_before_compute():
    data = pretraining.Data(source="markov", seq=8, batch=6)
    three = dataclasses.replace(BASE, data=data, plan=Plan(pipe=3))
    lines = [
        "plan.pipe: 3 given; the longest run of layers repeats a pattern of 1 2 times, which is at",
        "weight embed/table: dimension 'embed' of size 8 does not divide over pipe=3",
    ]
    model = dataclasses.replace(TINY, layers=2)
    _refused(runs.problems(dataclasses.replace(three, model=model)), lines)
    two = dataclasses.replace(three, model=model, plan=Plan(pipe=2), adapter=lora.Lora(dropout=0.1))
    lines = ["data.batch: 6 given", "adapter.dropout: 0.1 given; it must be 0.0 with plan.pipe"]
    _refused(runs.problems(two), [*lines, "start: None given with an adapter"])
    two = dataclasses.replace(three, model=model, plan=Plan(pipe=2))
    lines = ["data.batch: 6 given; it must be a multiple of 4 from step 0 on"]
    _refused(runs.problems(two), lines)


def test_all_that_a_plan_cannot_do_is_named_at_once():
    with pytest.raises(ValueError) as error:
        Plan(data=0, zero=3, sequence=True, context=2, attention="splash", remat="some")
    assert str(error.value).splitlines() == [
        "plan.data: 0 given; it must be at least 1",
        "plan.zero: 3 given; it must be one of [0, 1, 2]",
        "plan.remat: 'some' given; it must be one of ['none', 'dots', 'full']",
        "plan.sequence: True given; it must be False with plan.tensor=1",
        "plan.attention: 'splash' given; it must be 'xla' or 'blockwise' with plan.context, which "
        "computes it block by block",
    ]
    with pytest.raises(ValueError, match="plan.zero: 1 given; it must be 0 with plan.data=1"):
        Plan(zero=1)
    with pytest.raises(ValueError, match="plan.context_keys: 'gathered' given; it must be 'ring' "):
        Plan(context_keys="gathered")
