"""The phases of reinforcement on a CPU: how long each takes, and what makes generating cheap.

    python experiments/benchmarks/rollout_cpu.py [--sizes 1m 10m] [--rounds 3] [--minutes 8]

One iteration of GRPO with a reference: 16 prompts of 8 to 24 tokens in rows of 64, 8 responses to
each, of at most 64 tokens; about every 16th token ends one. Random weights, so that lengths are
those of the source and not of a policy; the same responses in every row of the table. Times are
seconds of CPU over all threads, the least of the rounds, compilation excluded: wall clocks mean
little on a machine that others use too. Rounds are left out, but for one, where --minutes would not
do; the last line says how many there were.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Prompts
from jaxlm.data.records import prompts as prompting
from jaxlm.decode import sampling_loop
from jaxlm.models import llama
from jaxlm.objectives.objective import Objective
from jaxlm.objectives.rl import grpo
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.train import program, step
from jaxlm.train.optim import optimizer
from jaxlm.train.rl import policy_sampling, rollout
from jaxlm.train.run.run import Run

SIZES = {
    "1m": llama.Config(vocab=512, embed=128, layers=4, heads=4, kv=4, head=32, ffn=384),
    "10m": llama.Config(vocab=4096, embed=320, layers=6, heads=5, kv=5, head=64, ffn=864),
}
PROMPTS, GROUP, WIDTH, NEW = 16, 8, 64, 64


class Way(NamedTuple):
    """A row of the table: weights laid out for decoding first; prompts cut to the longest; rows to
    learn from cut to the longest; responses decoded at a time, None for all."""

    name: str
    prepared: bool
    narrow_prompts: bool
    narrow_rows: bool
    slots: int | None = None


WAYS = (
    Way("weights as they are trained, rows of full width", False, False, False),
    Way("weights prepared", True, False, False),
    Way("and prompts as wide as the longest", True, True, False),
    Way("and rows as wide as the longest text", True, True, True),
    Way("and 32 responses at a time", True, True, True, 32),
)


def build(cfg: Any) -> tuple[Any, Objective, Any, step.State]:
    """(model, objective, step, state) of GRPO with a reference."""
    run = Run(name="x", model=cfg, objective=grpo.Config(beta=0.04), rollout=rollout.Rollout())
    model, objective = program.build(run, Plan())
    tx = optimizer.build(optimizer.Optim(), objective.spec, 1000, False)
    state = step.init(objective, tx, Plan(), 0)
    # random weights as they start are too small for a token to be likelier than another
    state = state._replace(
        params=param.map(lambda p, w: 2 * w if p.fan_in else w, model.spec, state.params)
    )
    frozen = {"reference": jax.tree.map(jnp.copy, state.params)}
    return model, objective, step.make(objective, tx, Plan()), state._replace(frozen=frozen)


def asked(vocab: int) -> Prompts:
    """The prompts, each GROUP times."""
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, vocab, draw.integers(8, 25)) for _ in range(PROMPTS)]
    return policy_sampling.repeated(
        prompting.packed([r.astype(np.int32) for r in rows], WIDTH), GROUP
    )


def plain(model: Any, objective: Objective, stop: tuple[int, ...]) -> policy_sampling.Generate:
    """`policy_sampling.program` on weights as they are trained."""

    def run(params: Any, frozen: Any, prompts: Prompts, key: jax.Array, temperature: float) -> Any:
        at = At(prompts.segments, prompts.positions)
        rows = policy_sampling._rows(prompts, key, NEW, temperature, stop)
        weights = objective.weights(params, frozen)
        return policy_sampling.joined(
            prompts, sampling_loop.generate(model, weights, prompts.tokens, at, rows, NEW)
        )

    return jax.jit(run)


class Rounds:
    """Rounds of a row: `most`, or one and those that begin before `until`, by `time.monotonic`.
    least: the fewest that there were."""

    def __init__(self, most: int):
        self.most, self.until, self.least = most, 0.0, most


def timed(f: Callable[[], Any], rounds: Rounds) -> tuple[float, Any]:
    """(CPU seconds of a call, the least of the rounds; what it returned)."""
    seconds: list[float] = []
    out = jax.block_until_ready(f())
    while len(seconds) < rounds.most and (not seconds or time.monotonic() < rounds.until):
        clock = time.process_time()
        out = jax.block_until_ready(f())
        seconds.append(time.process_time() - clock)
    rounds.least = min(rounds.least, len(seconds))
    return min(seconds), out


def measured(size: str, way: Way, rounds: Rounds) -> str:
    """A row of the table, from the same weights as every other."""
    cfg = SIZES[size]
    model, objective, learn, state = build(cfg)
    stop = tuple(range(cfg.vocab // 16))
    key = np.array([0, 1], np.uint32)
    make = policy_sampling.program(model, objective, max_new=NEW, stop=stop, slots=way.slots)
    make = make if way.prepared else plain(model, objective, stop)
    prompts = asked(cfg.vocab)
    prompts = policy_sampling.narrowed(prompts) if way.narrow_prompts else prompts

    made, out = timed(lambda: make(state.params, state.frozen, prompts, key, 1.0), rounds)
    rows = jax.device_get(out)
    width = policy_sampling.width(rows.segments) if way.narrow_rows else rows.tokens.shape[1]
    rows = policy_sampling.fitted(rows, width)
    policy = grpo.policy(grpo.Config(beta=0.04), model, group=GROUP, longest=NEW)
    score = jax.jit(policy.measure)
    scored, _ = timed(lambda: score(state.params, state.frozen, rows), rounds)
    zero = np.zeros_like(rows.behaviour)
    batch = rows._replace(
        reference=rows.behaviour, value=zero, advantage=rows.weight, returns=zero, finished=None
    )

    def learnt() -> Any:
        nonlocal state
        state, told = learn(state, batch)
        return told

    learning, _ = timed(learnt, rounds)
    total, new = made + scored + learning, rows.weight.sum()
    return (
        f"| {size} | {way.name} | {made:.2f} | {scored:.2f} | {learning:.2f} | {total:.2f} | "
        f"{made / total:.0%} | {new:,.0f} | {new / made:,.0f} | {new / total:,.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1m"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args()
    names = "size | way | generate | measure | learn | all | share | new tokens | a second | of all"
    print(f"| {names} |\n|{10 * '---|'}")
    rounds, begun = Rounds(given.rounds), time.monotonic()
    rows = [(size, way) for size in given.sizes for way in WAYS]
    for number, (size, way) in enumerate(rows):
        rounds.until = begun + 60 * given.minutes * (number + 1) / len(rows)
        print(measured(size, way, rounds), flush=True)
    seconds = time.monotonic() - begun
    print(f"\nThe least of {rounds.least} to {rounds.most} rounds, {seconds:.0f} s in all.")


if __name__ == "__main__":
    main()
