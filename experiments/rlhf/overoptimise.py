"""What becomes of the true reward when a proxy of it is optimised further and further?

    python -m experiments.rlhf.overoptimise            minutes, on 2 cores
    python -m experiments.rlhf.overoptimise --quick    tiny, to see that it runs

In the enumerable world (world.py) the true reward (gold) is known, as is the divergence of every
policy. The proxy is a reward model that has seen few preferences, or the truth with noise on every
completion. It is pursued by GRPO without a penalty, by taking the best of n samples, and by the
policies that have the most proxy reward at their divergence. After Gao et al. 2023.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import spread, workers
from experiments.rlhf import align
from jaxlm.cli import launch

HERE = pathlib.Path(__file__).parent
# the noisy table's noise: this times Student's t of 2 degrees, a few of whose draws are far out
NOISE = 0.2
DRAWS = tuple(2**i for i in range(13))  # n of best of n


class Size(NamedTuple):
    """One scale: that of align.py, pairs the proxy has seen, its passes over them, GRPO's
    iterations and how many from one measurement to the next."""

    align: align.Size
    pairs: int
    passes: int
    grpo: tuple
    every: int


FULL = Size(
    align.FULL._replace(sft=(400, 256, 1e-2, "muon")), 256, 16, (120, 128, 3e-4, "adamw"), 6
)
QUICK = Size(align.QUICK, 32, 2, (6, 32, 1e-3, "adamw"), 2)
ROWS = 64  # pairs to a step, at most


def main(argv: Sequence[str] | None = None) -> None:
    """Run all seeds, two processes at a time, and print the table."""
    parser = argparse.ArgumentParser(description="Over-optimisation of a proxy, exactly.")
    parser.add_argument("--quick", action="store_true", help="tiny settings; numbers mean nothing")
    parser.add_argument("--seeds", type=int, default=5, help="of source, proxy and policies")
    parser.add_argument("--out", type=pathlib.Path, help="where results go")
    parser.add_argument("--record", action="store_true", help="keep the results beside this file")
    args = parser.parse_args(argv)
    out = args.out or pathlib.Path("runs") / f"overoptimise{'_quick' if args.quick else ''}"
    size = QUICK if args.quick else FULL
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with workers.pool(0 if args.quick else min(2, args.seeds)) as pool:
        found = list(pool.map(functools.partial(one, size), range(args.seeds)))
    results = {"pairs": size.pairs, "noise": NOISE, "seeds": found}
    results["seconds"] = round(time.perf_counter() - begun)
    for folder in (out, HERE) if args.record else (out,):
        (folder / "overoptimise.json").write_text(json.dumps(results) + "\n", "utf-8")
        (folder / "overoptimise.md").write_text(table(results), "utf-8")
        draw(results, folder / "overoptimise.png")
    print("\n" + table(results))


def one(size: Size, seed: int) -> dict[str, Any]:
    """Every curve of one seed; its table is printed. A process compiles its programs once."""
    found = pursuit(size).run(seed)
    print(f"seed {seed}: {table({'seeds': [found]})}", flush=True)
    return found


@functools.cache
def pursuit(size: Size) -> "Pursuit":
    """The Pursuit of this process."""
    return Pursuit(size)


class Pursuit:
    """The programs, built once for all seeds."""

    def __init__(self, size: Size) -> None:
        from experiments.rlhf import stages, world
        from jaxlm.objectives import clm
        from jaxlm.objectives.preference import reward
        from jaxlm.objectives.rl import grpo

        self.size = size
        small = size.align
        self.world = world.World(small.symbols, small.length, small.prompts)
        self.gold = world.reward(self.world)
        built = stages.model(self.world, small.embed, small.layers)
        self.policy = world.policy(built, self.world)
        self.scores = world.scores(functools.partial(reward.rewards, built), self.world)
        self.sft = stages.supervised(clm.Config(), built, stages.Training(*small.sft))
        self.rows = min(ROWS, size.pairs)
        steps = size.pairs * size.passes // self.rows
        training = stages.Training(steps, self.rows, 5e-3, "muon")
        self.proxy = stages.supervised(reward.Config(), built, training)
        way = stages.Rollouts(group=8, epochs=4, minibatches=2, every=size.every)
        self.grpo = stages.reinforced(
            grpo.Config(), built, self.world, stages.Training(*size.grpo), way
        )

    def run(self, seed: int) -> dict[str, Any]:
        """Every curve of one seed: by proxy and pursuit, [[KL, proxy reward, gold reward], ...]."""
        import numpy as np

        from experiments.rlhf import world

        rng = np.random.default_rng(1000 + seed)
        source = world.source(self.world, seed)
        steps, rows, *_ = self.size.align.sft
        prompt = rng.integers(self.world.prompts, size=(steps, rows))
        data = world.batch(self.world, prompt, world.draw(rng, source, prompt))
        reference = self.sft.learn(self.sft.begin(seed, {}, {}), data)[0].params
        log_ref = self.policy(reference)
        noisy = self.gold + NOISE * rng.standard_t(2, self.gold.shape)
        proxies = {
            "model": self.modelled(seed, rng, log_ref),
            "noise": self.level(noisy, log_ref),
        }
        curves: dict[str, Any] = {}
        for name, proxy in proxies.items():
            bests = [world.best_of(log_ref, proxy, n) for n in DRAWS]
            tilted = [world.best(log_ref, proxy, b)[0] for b in np.geomspace(10, 0.03, 40)]
            curves[name] = {
                "best of n": [self.point(p, log_ref, proxy) for p in bests],
                "tilted": [self.point(p, log_ref, proxy) for p in tilted],
            }
        curves["model"]["grpo"] = self.pursued(seed, reference, log_ref, proxies["model"])
        return {
            "seed": seed,
            "correlation": {n: world.fit(p, self.gold, log_ref)[0] for n, p in proxies.items()},
            "formula": [world.best_of_kl(n) for n in DRAWS],
            "curves": curves,
        }

    def modelled(self, seed: int, rng: Any, log_ref: Any) -> Any:
        """The proxy [prompts, N] of a reward model that has read a few pairs several times."""
        import jax
        import numpy as np

        from experiments.rlhf import world

        judge = align.JUDGE * self.gold
        pairs = world.preferences(rng, self.world, log_ref, judge, (self.size.pairs,), 2)
        orders = [rng.permutation(self.size.pairs) for _ in range(self.size.passes)]
        order = np.concatenate(orders).reshape(-1, self.rows)
        state = self.proxy.begin(seed, {}, {})
        state, _ = self.proxy.learn(state, jax.tree.map(lambda x: x[order], pairs))
        return self.level(self.scores(state.params) / align.JUDGE, log_ref)

    def level(self, proxy: Any, log_ref: Any) -> Any:
        """The proxy, its mean under the reference that of gold for every prompt: preferences do not
        tell it."""
        import numpy as np

        p = np.exp(log_ref)
        return proxy + (p * (self.gold - proxy)).sum(1, keepdims=True)

    def pursued(self, seed: int, reference: Any, log_ref: Any, proxy: Any) -> list[list[float]]:
        """GRPO's points, from the reference on."""
        import jax
        import numpy as np

        state = self.grpo.begin(seed, reference, {})
        points = [self.point(log_ref, log_ref, proxy)]
        for part in range(self.size.grpo[0] // self.size.every):
            key = jax.random.fold_in(jax.random.key(seed), part)
            state, _ = self.grpo.learn(state, proxy.astype(np.float32), key)
            points.append(self.point(self.policy(state.params), log_ref, proxy))
        return points

    def point(self, log_p: Any, log_ref: Any, proxy: Any) -> list[float]:
        """[KL, proxy reward, gold reward] of a policy."""
        from experiments.rlhf import world

        kl = world.divergence(log_p, log_ref)
        return [round(x, 5) for x in (kl, *(world.expected(log_p, v) for v in (proxy, self.gold)))]


WAYS = [
    ("model", "tilted", "reward model: most proxy at its KL"),
    ("model", "best of n", "reward model: best of n"),
    ("model", "grpo", "reward model: GRPO"),
    ("noise", "tilted", "noise: most proxy at its KL"),
    ("noise", "best of n", "noise: best of n"),
]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: mean and 95 % interval over seeds of where gold is greatest."""
    head = ["pursuit", "gold at first", "greatest gold", "its KL", "proxy there", "KL at last"]
    head += ["proxy at last", "gold at last"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for proxy, way, told in WAYS:
        rows = []
        for seed in results["seeds"]:
            curve = seed["curves"][proxy][way]
            top = max(curve, key=lambda point: point[2])
            rows.append([curve[0][2], top[2], top[0], top[1], *curve[-1]])
        cells = []
        for column in zip(*rows, strict=True):
            mean, half = spread.interval(list(column))
            cells.append(f"{mean:.2f} +- {half:.2f}")
        lines.append(f"| {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + divergences(results)


def divergences(results: dict[str, Any]) -> str:
    """The exact KL of best of n beside its formula, as Markdown; means over seeds."""
    lines = ["| n | log n - (n - 1) / n | reward model | noise |", "|---|---|---|---|"]
    seeds = results["seeds"]
    for i, n in enumerate(DRAWS):
        exact = [
            sum(s["curves"][proxy]["best of n"][i][0] for s in seeds) / len(seeds)
            for proxy in ("model", "noise")
        ]
        cells = [f"{x:.4f}" for x in (seeds[0]["formula"][i], *exact)]
        lines.append(f"| {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """A picture: proxy (dashed) and gold reward by divergence, every seed."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(13, 4.2), layout="constrained")
    panels = picture.subplots(1, 3, sharey=True)
    shown = [("model", ("tilted", "best of n")), ("model", ("tilted", "grpo"))]
    shown += [("noise", ("tilted", "best of n"))]
    for panel, (proxy, ways) in zip(panels, shown, strict=True):
        for color, way in zip(("gray", "C0"), ways, strict=True):
            for i, seed in enumerate(results["seeds"]):
                kl, told, gold = zip(*seed["curves"][proxy][way], strict=True)
                root = [max(x, 0.0) ** 0.5 for x in kl]
                label = {"tilted": "most proxy at its KL"}.get(way, way) if not i else None
                panel.plot(root, gold, color=color, alpha=0.8, label=label)
                panel.plot(root, told, color=color, alpha=0.5, linestyle="--")
        title = {"model": "reward model", "noise": "noise"}[proxy] + f", {ways[1]}"
        panel.set(xlabel="square root of KL to the reference, nats", title=title)
        panel.set_ylim(-0.5, 4.5)  # the noise goes on to 20
        panel.legend()
    panels[0].set(ylabel="reward: gold, and proxy (dashed)")
    picture.savefig(path, dpi=100)


if __name__ == "__main__":
    launch.prepare()
    main()
