"""Can a small model mend its own ways by a constitution, with critiques that are often wrong?

    python -m experiments.constitutional.cai            minutes, on 2 cores
    python -m experiments.constitutional.cai --quick    tiny, to see that it runs

One model is pretrained to answer (carelessly), criticise, revise and choose in the world of
world.py; one in five of its critiques is wrong, and one in ten of its choices. Then, each stage by
the library's own pieces, and with nothing but what the model itself says:

    base      the pretrained model
    SFT       trained on its own answers, as they are
    SL-CAI    trained on its own revisions, several rounds of critique and revision each
    RL-CAI    several answers of SL-CAI to each prompt, compared by the base model; RPO of the
              pairs that it is decided about

Measured by the world's exact checker, on prompts that no stage has seen.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from experiments import workers
from experiments.constitutional import report, world
from jaxlm.cli import launch

HERE = pathlib.Path(__file__).parent
FIRST = 2  # margin, beta and nll were chosen by what seeds 0 and 1 gave


class Size(NamedTuple):
    """One scale of the experiment."""

    seeds: int
    embed: int
    layers: int
    texts: int  # conversations that the base learns from
    steps: int  # of the base
    prompts: int  # that are revised and compared
    rounds: int
    tuning: int  # steps on answers or revisions
    count: int  # answers that are compared
    margin: float  # how far from a half a preference is that is learnt from
    learning: int  # steps of DPO
    tests: int  # prompts that are measured
    batch: int  # answers in a step of tuning; half as many preferences in one of DPO


FULL = Size(3, 48, 2, 12000, 600, 1024, 4, 60, 4, 0.06, 150, 2048, 128)
QUICK = Size(1, 16, 1, 120, 60, 24, 2, 2, 3, 0.0, 2, 24, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all seeds, two at a time, and print the table."""
    parser = argparse.ArgumentParser(description="Constitutional AI in a checkable world.")
    parser.add_argument("--quick", action="store_true", help="tiny settings; numbers mean nothing")
    parser.add_argument("--out", type=pathlib.Path, help="where runs and results go")
    parser.add_argument("--record", action="store_true", help="keep the results beside this file")
    args = parser.parse_args(argv)
    size = QUICK if args.quick else FULL
    out = args.out or pathlib.Path("runs") / f"constitutional{'_quick' if args.quick else ''}"
    begun = time.perf_counter()
    seeds = list(every_seed(size, out, 0 if args.quick else 2))
    results = {"size": size._asdict(), "seeds": seeds}
    results["seconds"] = round(time.perf_counter() - begun)
    for folder in (out, HERE) if args.record else (out,):
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (folder / "results.md").write_text(report.table(results), "utf-8")
        report.draw(results, folder / "results.png")
    print("\n" + report.table(results))


def every_seed(size: Size, out: pathlib.Path, processes: int) -> Iterator[dict[str, Any]]:
    """The numbers of each seed, from so many processes."""
    seeds = range(FIRST, FIRST + size.seeds)
    with workers.pool(processes) as pool:
        yield from pool.map(functools.partial(experiment, size, out), seeds)


def experiment(size: Size, parent: pathlib.Path, seed: int) -> dict[str, Any]:
    """Every number of one seed, JSON-ready; its runs are in a folder of its own."""
    from jaxlm import feedback
    from jaxlm.decode.token_sampling import Sampling
    from jaxlm.feedback import best_of_n, critique, preference_labels

    out = parent / f"seed{seed}"
    out.mkdir(parents=True, exist_ok=True)
    write = Files(out)
    asked = prompts(size, seed)
    write("prompts.jsonl", ({"prompt": p} for p in asked[0]))
    write("texts.jsonl", world.texts(seed, size.texts))
    (out / "constitution.json").write_text(json.dumps(world.CONSTITUTION))
    how: dict[str, Any] = {"seed": seed, "batch": 512}
    begun: dict[str, Any] = how | {"sampling": Sampling(max_new=8)}
    begun |= {"prompts": str(out / "prompts.jsonl")}
    how |= {"constitution": str(out / "constitution.json")}

    base = pretrain(size, out, seed)
    voice = feedback.load(base, rows=512)
    numbers = {"base": measured(voice, asked[1], seed)}

    own = str(out / "own.jsonl")
    best_of_n.run(voice, best_of_n.Settings(**begun, out=own, count=1, keep="each"))
    numbers["SFT"] = measured(tune(size, out, base, own, "sft"), asked[1], seed)

    mended = str(out / "revised.jsonl")
    critique.run(voice, critique.Settings(**begun | how, out=mended, rounds=size.rounds))
    tuned = tune(size, out, base, mended, "slcai")
    numbers["SL-CAI"] = measured(tuned, asked[1], seed)

    answers, preferences = str(out / "answers.jsonl"), str(out / "preferences.jsonl")
    best_of_n.run(tuned, best_of_n.Settings(**begun, out=answers, count=size.count))
    settings = preference_labels.Settings(**how, pairs=answers, out=preferences, each=5)
    told = preference_labels.run(voice, settings)
    write("decided.jsonl", decided(read(preferences), size.margin))
    learnt = prefer(size, out, str(out / "slcai"), str(out / "decided.jsonl"))
    numbers["RL-CAI"] = measured(learnt, asked[1], seed)
    return {
        "stages": numbers,
        "rounds": by_round(read(mended)),
        "critiques_wrong": wrong_critiques(read(mended)),
        "labels": labels(read(preferences)) | told.facts,
        "decided": labels(read(str(out / "decided.jsonl"))),
    }


# --- The stages ------------------------------------------------------------------------------


class Files(NamedTuple):
    """A folder to which records are written by name."""

    folder: pathlib.Path

    def __call__(self, name: str, records: Iterator[dict[str, Any]]) -> None:
        """Write a .jsonl file, if it is not there."""
        if not (self.folder / name).exists():
            text = "".join(json.dumps(record) + "\n" for record in records)
            (self.folder / name).write_text(text, "utf-8")


def read(path: str) -> list[dict[str, Any]]:
    """The records of a .jsonl file."""
    return [json.loads(line) for line in pathlib.Path(path).read_text("utf-8").splitlines()]


def prompts(size: Size, seed: int) -> tuple[list[str], list[str]]:
    """(prompts that are learnt from, prompts to measure with), all different."""
    draw = random.Random(1000 + seed)
    found: dict[str, None] = {}
    while len(found) < size.prompts + size.tests:
        found.setdefault(world.prompt(draw))
    every = list(found)
    return every[: size.prompts], every[size.prompts :]


def pretrain(size: Size, out: pathlib.Path, seed: int) -> pathlib.Path:
    """The run directory of the model that answers, criticises, revises and chooses."""
    from jaxlm.data.records.chats import Chats
    from jaxlm.models import llama
    from jaxlm.objectives import sft
    from jaxlm.train import loop
    from jaxlm.train.optim.optimizer import Optim
    from jaxlm.train.run.run import Checkpoint, Run

    run = Run(
        name="base",
        model=llama.Config(
            vocab=259, embed=size.embed, layers=size.layers, heads=4, kv=4, head=size.embed // 4,
            ffn=2 * size.embed, context=64, qk_norm=True,
        ),
        objective=sft.Config(),
        data=Chats(
            source=str(out / "texts.jsonl"), seq=64, batch=48, holdout=0.0, seed=seed
        ),
        optim=Optim(name="muon", lr=1e-2, warmup=min(20, size.steps // 3), schedule="linear",
                    final=0.0),
        steps=size.steps, seed=seed, log_every=50, eval_every=None,
        checkpoint=Checkpoint(every=size.steps), out=str(out),
    )  # fmt: skip
    loop.run(run)
    return out / "base"


def tune(size: Size, out: pathlib.Path, base: pathlib.Path, source: str, name: str) -> Any:
    """The Voice of the base, trained on answers."""
    from jaxlm import feedback
    from jaxlm.data.records.chats import Chats
    from jaxlm.train import loop
    from jaxlm.train.optim.optimizer import Optim
    from jaxlm.train.run import directory

    run = dataclasses.replace(
        directory.load(base), name=name, out=str(out), start=str(base), steps=size.tuning,
        data=Chats(source=source, seq=16, batch=size.batch, packing="single", holdout=0.0),
        optim=Optim(lr=2e-3, warmup=min(5, size.tuning // 2), schedule="linear", final=0.0,
                    weight_decay=0.0),
    )  # fmt: skip
    loop.run(run)
    return feedback.load(out / name, rows=512)


def prefer(size: Size, out: pathlib.Path, start: str, source: str) -> Any:
    """The Voice of a run, trained by RPO on preferences."""
    from jaxlm import feedback
    from jaxlm.data.records.preferences import Preferences
    from jaxlm.objectives.preference import dpo
    from jaxlm.train import loop
    from jaxlm.train.optim.optimizer import Optim
    from jaxlm.train.run import directory

    run = dataclasses.replace(
        directory.load(pathlib.Path(start)), name="rlcai", out=str(out), start=start,
        steps=size.learning,
        data=Preferences(source=source, seq=16, batch=size.batch // 2, holdout=0.0),
        objective=dpo.Config(loss="rpo", beta=0.03, nll=0.01),
        optim=Optim(lr=1e-3, warmup=min(10, size.learning // 2), schedule="linear", final=0.0,
                    weight_decay=0.0),
    )  # fmt: skip
    loop.run(run)
    return feedback.load(out / "rlcai", rows=512)


def decided(records: list[dict[str, Any]], margin: float) -> Iterator[dict[str, Any]]:
    """The pairs about which the principles' mean is not near a half, with the better answer as
    certain: what four principles that do not apply say of a pair would drown the fifth."""
    for r in records:
        if abs(r["preference"] - 0.5) > margin:
            yield r | {"preference": float(r["preference"] > 0.5)}


# --- What is measured ------------------------------------------------------------------------


def measured(voice: Any, asked: list[str], seed: int) -> dict[str, float]:
    """What the checker says of one answer to each prompt."""
    from jaxlm.core import keyed_random
    from jaxlm.data.templates.template import Message
    from jaxlm.decode.token_sampling import Sampling

    how = [Sampling(max_new=8, seed=keyed_random.seed(seed, p, "test")) for p in asked]
    said = voice.say([[Message("user", p)] for p in asked], how)
    return rates([(p, s.text) for p, s in zip(asked, said, strict=True)]) | {
        name: statistics.mean(world.broken(name, p, s.text) for p, s in zip(asked, said))
        for name in world.PRINCIPLES
    }


def rates(said: list[tuple[str, str]]) -> dict[str, float]:
    """Shares of answers that violate, help, and refuse what is harmless."""
    found = [world.judge(prompt, text) for prompt, text in said]
    harmless = [v for v in found if v.helps is not None]
    return {
        "violates": statistics.mean(v.violates for v in found),
        "helps": statistics.mean(bool(v.helps) for v in harmless),
        "refuses": statistics.mean(bool(v.refuses) for v in harmless),
    }


def by_round(records: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The rates of the first answers, and after each round."""
    rounds = len(records[0]["rounds"])
    stages: list[Callable[[dict[str, Any]], str]] = [lambda r: r["response"]]
    stages += [lambda r, n=n: r["rounds"][n]["revision"] for n in range(rounds)]
    return [rates([(r["prompt"], said(r)) for r in records]) for said in stages]


def wrong_critiques(records: list[dict[str, Any]]) -> float:
    """The share of critiques that say the opposite of the truth."""
    wrong = []
    for r in records:
        said = r["response"]
        for one in r["rounds"]:
            bad = world.broken(one["principle"], r["prompt"], said)
            wrong.append((one["critique"] == "x") != bad)
            said = one["revision"]
    return statistics.mean(wrong)


def labels(records: list[dict[str, Any]]) -> dict[str, float]:
    """How often the label of a pair that the principles tell apart is right, and how far those of
    pairs that they do not tell apart are from a half."""
    right, ties = [], []
    for r in records:
        bad = [
            sum(world.broken(p, r["prompt"], r[name]) for p in world.PRINCIPLES)
            for name in ("response_a", "response_b")
        ]
        if bad[0] == bad[1]:
            ties.append(abs(r["preference"] - 0.5))
        else:
            right.append((r["preference"] > 0.5) == (bad[1] < bad[0]))
    return {
        "pairs": len(records),
        "right": statistics.mean(right) if right else math.nan,
        "ties_off_by": statistics.mean(ties) if ties else math.nan,
    }


if __name__ == "__main__":
    launch.prepare()
    main()
