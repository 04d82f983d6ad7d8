"""Does a reward that is checked, and nothing else, teach a small model to add?

    python -m experiments.reasoning.reason            minutes, on 2 cores
    python -m experiments.reasoning.reason --quick    tiny, to see that it runs

The task is a + b with one digit each: 100 prompts "3+4=", of which 80 are trained on and 20 are in
no training at all. A model imitates records of which 65 % have a sum drawn at random, and so is
right about 4 times in 10. Then GRPO: 8 responses to each of 16 prompts an iteration, 1 for the
right answer, 0 for any other. Three ways:

    answer      "7"
    thought     "4567=7": count b up from a, last digits only, then the sum
    permuted    as `answer`, but the record's answer is that of another prompt: a policy that learns
                from its reward alone must follow it there, and away from the truth
"""

import argparse
import functools
import json
import pathlib
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import spread, workers
from jaxlm.cli import launch

HERE = pathlib.Path(__file__).parent
WAYS = ("answer", "thought", "permuted")
NOISE, HELD = 0.65, 20


class Size(NamedTuple):
    """One scale of the experiment."""

    seeds: int
    layers: int
    records: int  # to imitate
    imitate: int
    learn: int
    samples: int


FULL = Size(3, 2, 4000, 400, 200, 32)
QUICK = Size(1, 1, 160, 4, 2, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every way and seed, and print the table."""
    parser = argparse.ArgumentParser(description="GRPO with a checked reward, on sums.")
    parser.add_argument("--quick", action="store_true", help="tiny settings; numbers mean nothing")
    parser.add_argument("--out", type=pathlib.Path, help="where runs and results go")
    parser.add_argument("--record", action="store_true", help="keep the results beside this file")
    args = parser.parse_args(argv)
    size = QUICK if args.quick else FULL
    out = args.out or pathlib.Path("runs") / f"reasoning{'_quick' if args.quick else ''}"
    begun = time.perf_counter()
    results = experiment(size, out, 0 if args.quick else 2)
    results["seconds"] = round(time.perf_counter() - begun)
    for folder in (out, HERE) if args.record else (out,):
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (folder / "results.md").write_text(table(results), "utf-8")
        draw(results, folder / "results.png")
    print("\n" + table(results))


def experiment(size: Size, out: pathlib.Path, processes: int) -> dict[str, Any]:
    """Every number of the experiment, JSON-ready, from so many processes."""
    groups = (("answer", "permuted"), ("thought",))  # a group begins from the same weights
    with workers.pool(processes) as pool:
        running = [
            pool.submit(group, size, str(out), ways, seed)
            for seed in range(size.seeds)
            for ways in groups
        ]
        found = [task.result() for task in running]
    return {way: [part[way] for part in found if way in part] for way in WAYS}


# --- The task --------------------------------------------------------------------------------


class Sum(NamedTuple):
    """a + b, and the answer that is rewarded."""

    a: int
    b: int
    answer: int

    @property
    def prompt(self) -> str:
        """How it is asked."""
        return f"{self.a}+{self.b}="


def sums(seed: int, permuted: bool) -> tuple[list[Sum], list[Sum]]:
    """(80 to train on, 20 that are in no training). permuted: prompts with the same a exchange
    their answers, so that what is rewarded is among what the policy does at first, and is right
    for no prompt but by chance."""
    draw, order = random.Random(seed), list(range(100))
    draw.shuffle(order)  # of the seed alone: what is held out is the same in every way
    found = []
    for a in range(10):
        others = list(range(10))
        if permuted:
            draw.shuffle(others)
        found += [Sum(a, b, a + c) for b, c in enumerate(others)]
    return [found[i] for i in order[HELD:]], [found[i] for i in order[:HELD]]


def response(a: int, c: int, thought: bool) -> str:
    """The answer a + c, after counting c up from a where there is a thought."""
    return ("".join(str((a + i) % 10) for i in range(1, c + 1)) + "=" if thought else "") + str(
        a + c
    )


def imitated(asked: list[Sum], seed: int, thought: bool, count: int = 4000) -> list[dict[str, str]]:
    """Records to imitate: a share NOISE of them adds another number than b."""
    draw = random.Random(1000 + seed)
    found = []
    for number in range(count):
        s = asked[number % len(asked)]
        c = draw.randrange(10) if draw.random() < NOISE else s.b
        found.append({"prompt": s.prompt, "completion": response(s.a, c, thought)})
    return found


# --- One way, one seed -----------------------------------------------------------------------


def group(size: Size, out: str, ways: tuple[str, ...], seed: int) -> dict[str, dict[str, Any]]:
    """What `learnt` gives of each way, from one imitation."""
    start = imitation(size, out, "thought" in ways, seed)
    return {way: learnt(size, out, start, way, seed) for way in ways}


def run(size: Size, out: str, name: str, steps: int, **more: Any) -> Any:
    """A Run of the one model."""
    from jaxlm.models import llama
    from jaxlm.train.run.run import Checkpoint, Run

    model = llama.Config(
        vocab=259, embed=64, layers=size.layers, heads=4, kv=4, head=16, ffn=176, qk_norm=True
    )
    every = Checkpoint(every=steps)
    return Run(
        name=name, out=out, model=model, steps=steps, eval_every=None, checkpoint=every, **more
    )


def whole(result: Any) -> str:
    """The run directory of a run that came to its end. Raises: SystemExit if it was stopped."""
    if result.signal:
        raise SystemExit(f"{result.folder} was stopped; the same command goes on from there")
    return result.folder


def imitation(size: Size, out: str, thought: bool, seed: int) -> str:
    """The run directory of what imitates records of which most are wrong."""
    from jaxlm.data.records.chats import Chats
    from jaxlm.objectives import sft
    from jaxlm.train import loop
    from jaxlm.train.optim.optimizer import Optim

    asked, _ = sums(seed, False)
    source = (
        pathlib.Path(out) / "data" / f"imitate_{'thought' if thought else 'answer'}{seed}.jsonl"
    )
    write(source, imitated(asked, seed, thought, size.records))
    data = Chats(source=str(source), seq=20, batch=64, packing="single", holdout=0.0, seed=seed)
    made = run(
        size, out, source.stem, size.imitate, data=data, objective=sft.Config(), seed=seed,
        optim=Optim(lr=3e-3, warmup=size.imitate // 10),
    )  # fmt: skip
    return whole(loop.run(made))


def learnt(size: Size, out: str, start: str, way: str, seed: int) -> dict[str, Any]:
    """What is right before and after, on sums trained on and on others, and on the way."""
    from jaxlm.data.records.prompts import Prompts
    from jaxlm.objectives.rl import grpo
    from jaxlm.train import loop
    from jaxlm.train.optim.optimizer import Optim
    from jaxlm.train.rl.rollout import Rollout
    from jaxlm.train.run import metrics

    thought = way == "thought"
    asked, held = sums(seed, way == "permuted")
    source = pathlib.Path(out) / "data" / f"ask_{way}{seed}.jsonl"
    write(source, [{"prompt": s.prompt, "answer": s.answer} for s in asked])
    learning = run(
        size,
        out,
        f"learn_{way}{seed}",
        size.learn,
        start=start,
        seed=seed,
        objective=grpo.Config(clip_high=0.28),
        data=Prompts(source=str(source), seq=8, batch=16, holdout=0.0, seed=seed),
        rollout=Rollout(samples=8, max_new=16, rewards=("number",), save=16, save_every=50),
        optim=Optim(lr=1e-3, warmup=size.learn // 20, weight_decay=0.0),
        log_every=1,
    )
    folder = whole(loop.run(learning))
    seen = [
        r for r in metrics.records(pathlib.Path(folder) / metrics.FILE) if r["split"] == "train"
    ]
    keys = ("score", "length", "entropy", "ratio_gap", "sampler_gap")
    found = {"curve": [round(r["score"], 4) for r in seen], "last": {k: seen[-1][k] for k in keys}}
    found["gap"] = max(r["sampler_gap"] for r in seen)
    found["seconds"] = {
        k: sum(r["timing"].get(k, 0) for r in seen) for k in ("generate_seconds", "learn_seconds")
    }
    for name, where in (("before", start), ("after", folder)):
        for part, those in (("trained", asked), ("held", held)):
            found[f"{name}_{part}"] = tried(where, those, thought, size.samples, seed)
    return found


def write(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
    """Write records, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def tried(folder: str, asked: list[Sum], thought: bool, times: int, seed: int) -> dict[str, float]:
    """Of `times` responses sampled to each prompt: the share whose last number is the true sum; is
    the answer that was rewarded; the share whose thought is that of its answer."""
    import jax
    import numpy as np

    from jaxlm.data import tokenizers
    from jaxlm.data.records import prompts
    from jaxlm.data.templates import template
    from jaxlm.train import trained_weights
    from jaxlm.train.rl import policy_sampling, reward_functions

    found = trained_weights.load(pathlib.Path(folder))
    tokenizer = tokenizers.load("bytes")
    layout = template.load("plain", "bytes")
    tokens = [
        template.prompt(layout, tokenizer, [template.Message("user", s.prompt)]) for s in asked
    ]
    batch = policy_sampling.repeated(prompts.packed(tokens, 8), times)
    run = sampler(found.run.model, found.run.objective, template.stops(layout, tokenizer))
    key = np.asarray(jax.random.key_data(jax.random.key(10_000 + seed)))
    made = jax.device_get(run(found.params, {}, batch, key, 1.0))
    said = [tokenizer.decode(row[w > 0]) for row, w in zip(made.targets, made.weight, strict=True)]
    each = [s for s in asked for _ in range(times)]
    right = {"true": lambda s: s.a + s.b, "rewarded": lambda s: s.answer}
    told = {}
    for name, answer in right.items():
        samples = [
            reward_functions.Sample(s.prompt, text, {"answer": answer(s)}, True)
            for s, text in zip(each, said, strict=True)
        ]
        told[name] = float(np.mean(reward_functions.number(samples)))
    counted = [_counted(s, text) for s, text in zip(each, said, strict=True)]
    told["counted"] = sum(counted) / len(said)
    return told


@functools.cache
def sampler(model: Any, objective: Any, stop: tuple[int, ...]) -> Any:
    """The compiled sampler of what has these configs."""
    from jaxlm import models, objectives
    from jaxlm.train.rl import policy_sampling

    built = models.build(model)
    return policy_sampling.program(built, objectives.build(objective, built), max_new=16, stop=stop)


def _counted(s: Sum, text: str) -> bool:
    """Whether a response counts up from s.a to the sum that it says."""
    last = text.rpartition("=")[2]
    # of what is no sum of two digits no count is made up: it might be billions long
    found = int(last) - s.a if last.isdecimal() and len(last) < 3 else -1
    return 0 <= found < 10 and text == response(s.a, found, True)


# --- Results ---------------------------------------------------------------------------------

ROWS = {
    "trained, true": ("trained", "true"),
    "held out, true": ("held", "true"),
    "trained, as rewarded": ("trained", "rewarded"),
}


def interval(values: list[float]) -> str:
    """The mean and its 95 % interval."""
    return "{:.3f} ± {:.3f}".format(*spread.interval(values))


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    heads = [f"{way}: {when}" for way in WAYS for when in ("before", "after")]
    lines = ["| sampled accuracy | " + " | ".join(heads) + " |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    for name, (part, which) in ROWS.items():
        cells = [
            interval([one_[f"{when}_{part}"][which] for one_ in results[way]])
            for way in WAYS
            for when in ("before", "after")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    counted = [
        interval([one_[f"{when}_{part}"]["counted"] for one_ in results["thought"]])
        for part in ("trained", "held")
        for when in ("before", "after")
    ]
    lines += ["", "Thoughts that count up to their answer: trained on, before and after, "]
    lines[-1] += f"{counted[0]} and {counted[1]}; held out, {counted[2]} and {counted[3]}."
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """A picture: the reward of every run as it learns."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(7, 4), layout="constrained")
    panel = picture.subplots()
    for way, color in zip(WAYS, ("C0", "C1", "C3"), strict=True):
        for number, one_ in enumerate(results[way]):
            smooth = [
                sum(part) / len(part)
                for i in range(len(one_["curve"]))
                for part in [one_["curve"][max(0, i - 4) : i + 1]]
            ]
            panel.plot(smooth, color=color, linewidth=1, label=None if number else way)
    panel.set(xlabel="iteration", ylabel="share of responses rewarded", ylim=(0, 1))
    panel.legend()
    picture.savefig(path, dpi=100)


if __name__ == "__main__":
    launch.prepare()
    main()
