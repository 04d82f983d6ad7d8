"""Records of a step's device scalars, without making the device wait for the host."""

import collections
import os
import time
from typing import Any, NamedTuple, Self

import jax

from jaxlm.core import log
from jaxlm.train import inputs as supplies  # a local bears the name
from jaxlm.train.run import environment, metrics
from jaxlm.train.run.run import Run

# Steps the host may be ahead of the device. Each holds a batch there, so not without end.
AHEAD = 8


class Meter:
    """Reads a logged step's numbers only after the next step is under way.

    A rate is taken over the steps since the last reading; evaluations, checkpoints and the first
    step of a process (which compiles) are left out of it.
    """

    def __init__(
        self, run: Run, supply: supplies.Supply, writer: metrics.Writer, out: log.Log, step: int
    ) -> None:
        self._run, self._supply, self._writer, self._out = run, supply, writer, out
        self._due: tuple[int, dict[str, jax.Array]] | None = None
        self._running: collections.deque[dict[str, jax.Array]] = collections.deque()
        self.restart(step)

    def note(self, step: int, measured: dict[str, jax.Array], seconds: dict[str, float]) -> None:
        """Take in a step just dispatched: its metrics, and the seconds its batch took, by name."""
        self._read()
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value
        self._running.append(measured)
        if len(self._running) > AHEAD:
            jax.block_until_ready(self._running.popleft())
        if step % self._run.log_every == 0 or step in (1, self._run.steps):
            self._due = (step, measured)

    def flush(self) -> None:
        """Read and write what is outstanding; waits for the device."""
        self._read()

    def restart(self, step: int) -> None:
        """Begin a new interval of rates, after time spent on something else than steps."""
        self._from = step
        self._seconds: dict[str, float] = {}
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def _read(self) -> None:
        if self._due is None:
            return
        step, measured = self._due
        self._due = None
        numbers = {name: float(value) for name, value in jax.device_get(measured).items()}
        timing = self._timing(step)
        tokens = self._supply.positions(step)
        record = {"step": step, "split": "train", **numbers, "tokens": tokens, "timing": timing}
        self._writer.write(record)
        self._out.progress(step, line(record, self._run.steps))
        # Up to here the device had the next step to do: it belongs to the next interval.
        self.restart(step)

    def _timing(self, step: int) -> dict[str, Any]:
        seconds = time.perf_counter() - self._clock
        facts: dict[str, Any] = environment.peak_memory()
        steps = step - self._from
        if not steps:
            return facts
        tokens = self._supply.positions(step) - self._supply.positions(self._from)
        facts |= {
            "step_seconds": seconds / steps,
            **{f"{name}_seconds": total / steps for name, total in self._seconds.items()},
            "tokens_per_second": tokens / seconds,
            "cpu_share": (time.process_time() - self._cpu) / seconds / (os.cpu_count() or 1),
        }
        peak, devices = environment.peak_flops(), self._run.plan.devices
        for name, each in self._supply.flops(step - 1).items():
            rate = each * tokens / seconds
            facts[f"gflop_per_second_{name}"] = rate / 1e9
            if peak is not None:
                facts[f"mfu_{name}"] = rate / (peak * devices)
        return facts


def line(record: metrics.Record, steps: int) -> str:
    """A training record for people."""
    timing = record["timing"]
    words = [f"step {record['step']}/{steps}", f"loss {record['loss']:.4f}"]
    if "lr" in record:
        words.append(f"lr {record['lr']:.2e}")
    if "tokens_per_second" in timing:
        words.append(f"{timing['tokens_per_second']:,.0f} tokens/s")
    if "gflop_per_second_causal" in timing:
        words.append(f"{timing['gflop_per_second_causal']:,.1f} GFLOP/s")
    if "mfu_causal" in timing:
        words.append(f"MFU {timing['mfu_causal']:.1%}")
    return "  ".join(words)


class Best(NamedTuple):
    """The best evaluation so far, by its measure (None before the first) and step; the step of the
    latest one; and the evaluations in a row since the best."""

    measure: float | None = None
    step: int = 0
    latest: int = 0
    since: int = 0

    def after(self, run: Run, step: int, measure: float) -> Self:
        """The Best after one more evaluation."""
        if self.measure is None or measure < self.measure - run.min_delta:
            return self._replace(measure=measure, step=step, latest=step, since=0)
        return self._replace(latest=step, since=self.since + (step > self.latest))

    def early_stop(self, run: Run) -> str | None:
        """The reason to end the run before its last step, in words; None if there is none."""
        if run.patience is None or self.since < run.patience or self.latest >= run.steps:
            return None
        return (
            f"patience={run.patience}: no evaluation after step {self.step} is below "
            f"{self.measure:.6g} by more than {run.min_delta:g}"
        )
