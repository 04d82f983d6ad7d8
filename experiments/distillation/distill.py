"""Does a student reach what is the best of it, and does a teacher help on text?

    python -m experiments.distillation.distill            minutes, on 2 cores
    python -m experiments.distillation.distill --quick    tiny, to see that it runs

Three parts. In `exact` every sequence of a small language is listed, and the student sees no more
than the current token: the forward KL has its minimum at the teacher's mean distribution after each
token, which is an exact number. In `modes` the student cannot say how two tokens go together: the
forward KL gives the product of the marginals, the reverse keeps to one mode. In `text` a student
of Python's reference documentation learns alone, from a larger teacher, and from what was stored of
it, with the same rows in the same order.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from experiments import spread, workers
from jaxlm.cli import launch

HERE = pathlib.Path(__file__).parent


class Size(NamedTuple):
    """One scale of the experiment."""

    seeds: int
    exact_steps: int
    teacher_steps: int
    student_steps: int


FULL = Size(3, 120, 280, 160)
QUICK = Size(2, 60, 6, 4)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every part and print the table."""
    parser = argparse.ArgumentParser(description="Distillation: what is reached, and what helps.")
    parser.add_argument("--quick", action="store_true", help="tiny settings; numbers mean nothing")
    parser.add_argument("--out", type=pathlib.Path, help="where runs and results go")
    parser.add_argument("--record", action="store_true", help="keep the results beside this file")
    args = parser.parse_args(argv)
    size = QUICK if args.quick else FULL
    out = args.out or pathlib.Path("runs") / f"distillation{'_quick' if args.quick else ''}"
    begun = time.perf_counter()
    results = experiment(size, out, 0 if args.quick else 2)
    results["seconds"] = round(time.perf_counter() - begun)
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, HERE) if args.record else (out,):
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (folder / "results.md").write_text(table(results), "utf-8")
        draw(results, folder / "results.png")
    print("\n" + table(results))


def experiment(size: Size, out: pathlib.Path, processes: int) -> dict[str, Any]:
    """Every number of the experiment, JSON-ready, from so many processes."""
    with workers.pool(processes) as pool:
        teacher = pool.submit(train_teacher, size, str(out))
        exacts = [pool.submit(exact, size, seed) for seed in range(size.seeds)]
        modes_ = pool.submit(modes)

        def students(how: str, seeds: Iterable[int]) -> list[concurrent.futures.Future[float]]:
            return [pool.submit(student, size, str(out), how, seed) for seed in seeds]

        text = {"alone": students("alone", range(size.seeds))}
        bits = teacher.result()
        # the first distillation from stored distributions makes the store, the others read it
        text["stored"] = students("stored", [0])
        text["frozen"] = students("frozen", range(size.seeds))
        text["stored"][0].result()
        text["stored"] += students("stored", range(1, size.seeds))
        found = {how: [task.result() for task in tasks] for how, tasks in text.items()}
        return {
            "exact": [e.result() for e in exacts],
            "modes": modes_.result(),
            "text": {"teacher": bits, **found},
            "steps": size.student_steps,
        }


# --- Every sequence listed -------------------------------------------------------------------

VOCAB, LENGTH = 6, 4


def exact(size: Size, seed: int) -> dict[str, float]:
    """{"reached", "best", "apart"}: the forward KL in nats a token after training, the least that a
    student can have which sees the current token alone, and how far the student's distributions
    are from the best ones (KL, the mean over tokens)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxlm import models, objectives
    from jaxlm.core.batch import Batch
    from jaxlm.models import llama
    from jaxlm.models import model as model_functions
    from jaxlm.objectives import distill
    from jaxlm.ops.attention import At
    from jaxlm.parallel.plan import Plan
    from jaxlm.train import step
    from jaxlm.train.optim import optimizer

    wide = llama.Config(vocab=VOCAB, embed=32, layers=2, heads=2, kv=2, head=16, ffn=64)
    teacher = models.build(wide)
    student = models.build(dataclasses.replace(wide, layers=1, window=1))
    rows = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
    at = At(jnp.ones_like(rows), jnp.broadcast_to(jnp.arange(LENGTH), rows.shape))

    # a teacher that is far from uniform, and a language whose sequences are not equally likely
    theirs = jax.tree.map(lambda x: 2.0 * x, step.param.init(teacher.spec, jax.random.key(seed)))
    log_t = jax.nn.log_softmax(model_functions.logits(teacher, theirs, jnp.asarray(rows), at))
    t = np.exp(np.asarray(log_t, np.float64))
    likely = np.random.default_rng(seed).dirichlet(np.full(len(rows), 0.5))
    weight = np.broadcast_to(likely[:, None], rows.shape)
    best = np.stack(
        [np.average(t[rows == c], axis=0, weights=weight[rows == c]) for c in range(VOCAB)]
    )
    apart = (t * (np.log(t) - np.log(best[rows]))).sum(-1)
    least = float((weight * apart).sum() / weight.sum())

    asked = distill.Config(teacher="listed")
    objective = objectives.build(asked, student, Plan(), teacher)
    tx = optimizer.build(
        optimizer.Optim(lr=1e-2, warmup=20, schedule="cosine", final=0.001, weight_decay=0.0),
        objective.spec, size.exact_steps, False,
    )  # fmt: skip
    state = step.init(objective, tx, Plan(), seed)._replace(frozen={"teacher": theirs})
    batch = Batch(rows, rows, np.float32(weight * len(rows)), *(np.asarray(a) for a in at[:2]))
    run, batch = step.make(objective, tx, Plan()), jax.device_put(batch)
    for _ in range(size.exact_steps):
        state, _ = run(state, batch)
    log_s = jax.nn.log_softmax(model_functions.logits(student, state.params, jnp.asarray(rows), at))
    log_s = np.asarray(log_s, np.float64)
    reached = float((weight * (t * (np.log(t) - log_s)).sum(-1)).sum() / weight.sum())
    off = (best[rows] * (np.log(best[rows]) - log_s)).sum(-1)
    return {"reached": reached, "best": least, "apart": float((weight * off).sum() / weight.sum())}


# --- Two tokens that go together -------------------------------------------------------------


def modes() -> dict[str, Any]:
    """The factorised student of a joint distribution with two modes: under the forward KL, its
    distance from the product of the marginals; under the reverse, from a start near either mode,
    the mass it puts there and the divergence."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jaxlm.ops.losses import divergence

    v = 5
    joint = np.full((v, v), 0.002)
    joint[0, 0], joint[3, 4] = 0.52, 0.42
    joint /= joint.sum()
    log_t = jnp.asarray(np.log(joint), jnp.float32).ravel()

    def loss(w: Any, beta: float) -> Any:
        a, b = jax.nn.log_softmax(w[0]), jax.nn.log_softmax(w[1])
        return divergence.divergence(log_t, (a[:, None] + b[None, :]).ravel(), beta)

    def train(start: Any, beta: float) -> tuple[np.ndarray, float]:
        tx = optax.adam(optax.cosine_decay_schedule(0.05, 3000))

        def body(carry: Any, _: None) -> tuple[Any, None]:
            w, opt = carry
            updates, opt = tx.update(jax.grad(loss)(w, beta), opt, w)
            return (optax.apply_updates(w, updates), opt), None

        w, _ = jax.lax.scan(body, (start, tx.init(start)), None, length=3000)[0]
        a, b = np.asarray(jax.nn.softmax(w, axis=-1), np.float64)
        return a[:, None] * b[None, :], float(loss(w, beta))

    student, forward = train(jnp.zeros((2, v)), 0.0)
    product = joint.sum(1)[:, None] * joint.sum(0)[None, :]
    information = float((joint * np.log(joint / product)).sum())
    reverse = {}
    for x, y in ((0, 0), (3, 4)):
        start = jnp.zeros((2, v)).at[0, x].set(3.0).at[1, y].set(3.0)
        found, value = train(start, 1.0)
        reverse[f"{x}{y}"] = {"mass": float(found[x, y]), "kl": value}
    return {
        "forward": forward,
        "mutual_information": information,
        "marginals_off": float(np.abs(student - product).max()),
        "reverse": reverse,
    }


# --- Text ------------------------------------------------------------------------------------


def run(size: Size, out: str, name: str, embed: int, layers: int, steps: int, seed: int) -> Any:
    """A Run on text."""
    from jaxlm.data.pretraining import Data
    from jaxlm.models import llama
    from jaxlm.parallel.plan import Plan
    from jaxlm.train.optim.optimizer import Optim
    from jaxlm.train.run.run import Checkpoint, Run

    return Run(
        name=name,
        out=out,
        model=llama.Config(
            vocab=259, embed=embed, layers=layers, heads=embed // 16, kv=embed // 16, head=16,
            ffn=embed * 11 // 4, qk_norm=True,
        ),
        data=Data(source="pydocs", tokenizer="bytes", seq=128, batch=16, seed=seed),
        optim=Optim(name="muon", lr=2e-2, warmup=steps // 10, schedule="linear", final=0.0),
        steps=steps,
        seed=seed,
        # on one core: 1.7 times the tokens a second of the plan as it comes
        plan=Plan(attention="blockwise", unroll=layers),
        eval_every=steps,
        log_every=max(1, steps // 10),
        checkpoint=Checkpoint(every=steps),
    )  # fmt: skip


def train_teacher(size: Size, out: str) -> float:
    """Bits per byte of the teacher, held out."""
    from jaxlm.train import loop

    found = loop.run(run(size, out, "teacher", 128, 3, size.teacher_steps, 0)).val
    assert found is not None
    return found["bits_per_byte"]


def student(size: Size, out: str, how: str, seed: int) -> float:
    """Bits per byte, held out, of a student that learns alone, from the teacher's weights
    ("frozen"), or from its 16 likeliest tokens as they were stored."""
    from jaxlm.objectives import distill
    from jaxlm.train import loop

    one = run(size, out, f"{how}{seed}", 64, 2, size.student_steps, seed)
    teacher = str(pathlib.Path(out) / "teacher")
    asked = {
        "alone": one.objective,
        "frozen": distill.Config(teacher=teacher),
        "stored": distill.Config(teacher=teacher, read="stored", top_k=16),
    }[how]
    found = loop.run(dataclasses.replace(one, objective=asked)).val
    assert found is not None
    return found["bits_per_byte"]


# --- Results ---------------------------------------------------------------------------------


def interval(values: list[float]) -> str:
    """The mean and its 95 % interval."""
    return "{:.4f} +- {:.4f}".format(*spread.interval(values))


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    modes_, text = results["modes"], results["text"]
    lines = ["| every sequence listed | nats a token |", "|---|---|"]
    for seed, e in enumerate(results["exact"]):
        lines.append(f"| seed {seed}: forward KL reached | {e['reached']:.5f} |")
        lines.append(f"| seed {seed}: the least there is | {e['best']:.5f} |")
        lines.append(f"| seed {seed}: KL from the best student | {e['apart']:.6f} |")
    lines += ["", "| two modes | |", "|---|---|"]
    lines.append(f"| forward KL | {modes_['forward']:.5f} |")
    lines.append(f"| mutual information, the least there is | {modes_['mutual_information']:.5f} |")
    lines.append(
        f"| largest difference from the marginals' product | {modes_['marginals_off']:.1e} |"
    )
    for name, found in modes_["reverse"].items():
        told = f"| reverse KL from a start at mode {name}: mass there, KL |"
        lines.append(f"{told} {found['mass']:.3f}, {found['kl']:.4f} |")
    told = f"{results['steps']} steps, {len(text['alone'])} seeds"
    lines += ["", f"| text, {told} | bits per byte held out |", "|---|---|"]
    lines.append(f"| the teacher | {text['teacher']:.4f} |")
    for how, name in (
        ("alone", "student alone"),
        ("frozen", "student + teacher"),
        ("stored", "student + 16 stored of the teacher"),
    ):
        lines.append(f"| {name} | {interval(text[how])} |")
    paired = [a - b for a, b in zip(text["alone"], text["frozen"], strict=True)]
    lines.append(f"| what the teacher gives, seed by seed | {interval(paired)} |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """A picture: bits per byte of every student."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(6, 4), layout="constrained")
    panel = picture.subplots()
    text = results["text"]
    for x, how in enumerate(("alone", "frozen", "stored")):
        panel.scatter([x] * len(text[how]), text[how])
    panel.axhline(text["teacher"], color="gray", linewidth=0.8, linestyle=":", label="teacher")
    panel.set_xticks(range(3), ["alone", "teacher", "16 stored"])
    panel.set(ylabel="bits per byte held out", xlim=(-0.5, 2.5))
    panel.legend()
    picture.savefig(path, dpi=100)


if __name__ == "__main__":
    launch.prepare()
    main()
