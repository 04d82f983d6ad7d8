"""How close do the library's objectives come to what is possible, where that is known exactly?

    python -m experiments.rlhf.align            minutes, on 2 cores
    python -m experiments.rlhf.align --quick    tiny, to see that it runs

In the enumerable world (world.py): SFT from a Markov source gives a reference; a reward model and
DPO learn from preferences between its completions; PPO and GRPO learn from the reward itself. Each
is judged by exact numbers, on every seed of the whole pipeline.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import workers
from experiments.rlhf import report
from jaxlm.cli import launch

HERE = pathlib.Path(__file__).parent
# of J: DPO's, as Rafailov et al. have it, and that of PPO and GRPO
DPO_BETA, RL_BETA = 0.5, 0.3
# preferences for the reward model are surer than those for DPO: a judge of this times the reward
JUDGE = 2.0
# responses of a list that is ranked
REWARD_LIST, DPO_LIST = 2, 8


class Size(NamedTuple):
    """One scale of the experiment: (steps, rows, rate, optimiser) of each stage."""

    symbols: int
    length: int
    prompts: int
    embed: int
    layers: int
    sft: tuple
    reward: tuple
    dpo: tuple
    ppo: tuple
    grpo: tuple


FULL = Size(
    5, 5, 4, 48, 2,
    sft=(250, 256, 1e-2, "muon"),
    reward=(450, 128, 5e-3, "muon"),
    dpo=(400, 32, 3e-3, "muon"),
    ppo=(70, 256, 1e-3, "adamw"),
    grpo=(60, 256, 1e-3, "adamw"),
)  # fmt: skip
QUICK = Size(
    3, 3, 2, 16, 1,
    sft=(20, 32, 1e-2, "adamw"),
    reward=(20, 16, 1e-2, "adamw"),
    dpo=(20, 16, 1e-3, "adamw"),
    ppo=(6, 32, 1e-3, "adamw"),
    grpo=(6, 32, 1e-3, "adamw"),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run all seeds, two processes at a time, and print the table."""
    parser = argparse.ArgumentParser(description="Alignment against exact optima.")
    parser.add_argument("--quick", action="store_true", help="tiny settings; numbers mean nothing")
    parser.add_argument("--seeds", type=int, default=6, help="of the whole pipeline")
    parser.add_argument("--out", type=pathlib.Path, help="where results go")
    parser.add_argument("--record", action="store_true", help="keep the results beside this file")
    args = parser.parse_args(argv)
    out = args.out or pathlib.Path("runs") / f"rlhf{'_quick' if args.quick else ''}"
    size = QUICK if args.quick else FULL
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with workers.pool(0 if args.quick else min(2, args.seeds)) as pool:
        found = list(pool.map(functools.partial(one, size), range(args.seeds)))
    results = {"settings": size._asdict(), "beta": {"dpo": DPO_BETA, "rl": RL_BETA}, "seeds": found}
    results["seconds"] = round(time.perf_counter() - begun)
    for folder in (out, HERE) if args.record else (out,):
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (folder / "results.md").write_text(report.table(results), "utf-8")
        report.draw(results, folder / "results.png")
    print("\n" + report.table(results))


def one(size: Size, seed: int) -> dict[str, Any]:
    """Every number of one seed, printed too. A process compiles its programs once."""
    found = pipeline(size).run(seed)
    print(f"seed {seed}: {json.dumps(found)}", flush=True)
    return found


@functools.cache
def pipeline(size: Size) -> "Pipeline":
    """The Pipeline of this process."""
    return Pipeline(size)


class Pipeline:
    """The stages of one size, built once, and what they are measured by."""

    def __init__(self, size: Size) -> None:
        from experiments.rlhf import stages, world
        from jaxlm.objectives import clm
        from jaxlm.objectives.preference import dpo, reward
        from jaxlm.objectives.rl import grpo, ppo

        self.size = size
        self.world = world.World(size.symbols, size.length, size.prompts)
        self.reward = world.reward(self.world)
        self.model = built = stages.model(self.world, size.embed, size.layers)
        self.policy = world.policy(built, self.world)
        self.scores = world.scores(functools.partial(reward.rewards, built), self.world)

        def supervised(cfg: Any, settings: tuple) -> stages.Stage:
            return stages.supervised(cfg, built, stages.Training(*settings))

        def reinforced(cfg: Any, settings: tuple, group: int) -> stages.Stage:
            training = stages.Training(*settings)
            way = stages.Rollouts(group, epochs=4, minibatches=2, every=training.steps)
            return stages.reinforced(cfg, built, self.world, training, way)

        valued = ppo.Config(kl=ppo.Fixed(RL_BETA), value_weight=0.5)
        penalised = grpo.Config(beta=RL_BETA, kl="reward")
        self.stages = {
            "sft": supervised(clm.Config(), size.sft),
            "reward": supervised(reward.Config(), size.reward),
            "dpo": supervised(dpo.Config(beta=DPO_BETA), size.dpo),
            "ppo": reinforced(valued, size.ppo, 1),
            "grpo": reinforced(penalised, size.grpo, 8),
        }

    def run(self, seed: int) -> dict[str, Any]:
        """Every number of one seed, JSON-ready."""
        import numpy as np

        from experiments.rlhf import world

        rng = np.random.default_rng(seed)
        source = world.source(self.world, seed)
        steps, rows, *_ = self.size.sft
        prompt = rng.integers(self.world.prompts, size=(steps, rows))
        data = world.batch(self.world, prompt, world.draw(rng, source, prompt))
        params, _, seconds = self.learn("sft", seed, {}, data)
        log_ref = self.policy(params)
        found = {"seed": seed, "sft": {"kl": world.divergence(source, log_ref), "seconds": seconds}}
        found["sft"]["entropy"] = -world.expected(source, source)
        found["reward"] = self.modelled(seed, rng, log_ref)
        found["dpo"] = self.preferred(seed, rng, params, log_ref)
        for name in ("ppo", "grpo"):
            found[name] = self.reinforced(name, seed, params, log_ref)
        return found

    def learn(self, name: str, seed: int, params: Any, *data: Any) -> tuple[Any, Any, float]:
        """(weights, metrics, seconds) of a stage that begins from these weights."""
        import jax

        stage = self.stages[name]
        frozen = {part: params for part in stage.objective.frozen}
        begun = time.perf_counter()
        state, metrics = stage.learn(stage.begin(seed, params, frozen), *data)
        params, metrics = jax.block_until_ready((state.params, jax.device_get(metrics)))
        return params, metrics, round(time.perf_counter() - begun, 1)

    def modelled(self, seed: int, rng: Any, log_ref: Any) -> dict[str, float]:
        """A reward model of preferences, from fresh weights, beside what Bayes reaches."""
        from experiments.rlhf import world

        steps, rows, *_ = self.size.reward
        r = JUDGE * self.reward
        pairs = world.preferences(rng, self.world, log_ref, r, (steps, rows), REWARD_LIST)
        params, _, seconds = self.learn("reward", seed, {}, pairs)
        values = self.scores(params)
        correlation, slope = world.fit(values, r, log_ref)
        return {
            "accuracy": world.accuracy(values, r, log_ref),
            "bayes_accuracy": world.accuracy(r, r, log_ref),
            "nll": world.preference_nll(values, r, log_ref),
            "bayes_nll": world.preference_nll(r, r, log_ref),
            "correlation": correlation,
            "slope": slope,
            "seconds": seconds,
        }

    def preferred(self, seed: int, rng: Any, params: Any, log_ref: Any) -> dict[str, float]:
        """DPO of preferences: its implicit reward beside the true one, and where it stands."""
        from experiments.rlhf import world

        steps, rows, *_ = self.size.dpo
        pairs = world.preferences(rng, self.world, log_ref, self.reward, (steps, rows), DPO_LIST)
        params, metrics, seconds = self.learn("dpo", seed, params, pairs)
        log_p = self.policy(params)
        implicit = DPO_BETA * (log_p - log_ref)
        correlation, slope = world.fit(implicit, self.reward, log_ref)
        return {
            "first_loss": float(metrics["loss"][0]),
            "accuracy": world.accuracy(implicit, self.reward, log_ref),
            "bayes_accuracy": world.accuracy(self.reward, self.reward, log_ref),
            "correlation": correlation,
            "slope": slope,
            **self.stands(log_p, log_ref, DPO_BETA),
            "seconds": seconds,
        }

    def reinforced(self, name: str, seed: int, params: Any, log_ref: Any) -> dict[str, Any]:
        """PPO or GRPO of the reward itself: where it stands, beside what the run said of itself.

        Raises: ArithmeticError if either is above J*.
        """
        import jax
        import numpy as np

        from experiments.rlhf import world

        table = self.reward.astype(np.float32)
        params, told, seconds = self.learn(name, seed, params, table, jax.random.key(seed))
        log_p = self.policy(params)
        stands = self.stands(log_p, log_ref, RL_BETA)
        own = (told["score"] - RL_BETA * told["kl"])[-20:]
        error = float(own.std(ddof=1) / len(own) ** 0.5)
        world.check(float(own.mean()), stands["best"], 5 * error)
        log_best = world.best(log_ref, self.reward, RL_BETA)[0]
        return stands | {
            "told": {"objective": float(own.mean()), "error": error},
            "ratio_gap": float(told["ratio_gap"].max()),
            "best_kl": world.divergence(log_best, log_ref),
            "course": [round(float(x), 3) for x in told["score"][:: max(1, len(own) // 4)]],
            "seconds": seconds,
        }

    def stands(self, log_p: Any, log_ref: Any, beta: float) -> dict[str, float]:
        """Where a policy stands. Raises: ArithmeticError if that is above J*."""
        from experiments.rlhf import world

        at = world.standing(log_p, log_ref, self.reward, beta)
        return at._asdict() | {
            "start": world.standing(log_ref, log_ref, self.reward, beta).objective,
            "best": world.best(log_ref, self.reward, beta)[1],
            "gap": world.gap(log_p, log_ref, self.reward, beta),
            "efficiency": world.efficiency(log_p, log_ref, self.reward),
        }


if __name__ == "__main__":
    launch.prepare()
    main()
