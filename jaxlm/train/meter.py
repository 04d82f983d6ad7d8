"""From a step's device scalars to a record, without making the device wait for the host."""

import collections
import os
import time
from typing import Any

import jax

from jaxlm.core import log
from jaxlm.data import loader
from jaxlm.scaling import flops
from jaxlm.train import env, metrics
from jaxlm.train.run import Run

# Steps the host may be ahead of the device. Each holds a batch there, so not without end.
AHEAD = 8


class Meter:
    """Reads a logged step's numbers only after the next step is under way.

    A rate is taken over the steps since the last reading; evaluations, checkpoints and the first
    step of a process (which compiles) are left out of it.
    """

    def __init__(self, run: Run, writer: metrics.Writer, out: log.Log, step: int) -> None:
        self._run, self._writer, self._out = run, writer, out
        self._due: tuple[int, dict[str, jax.Array]] | None = None
        self._behind: collections.deque[dict[str, jax.Array]] = collections.deque()
        self.restart(step)

    def note(self, step: int, measured: dict[str, jax.Array], waited: float) -> None:
        """Take in a step just dispatched: its metrics, and the seconds its data was waited for."""
        self._read()
        self._waited += waited
        self._behind.append(measured)
        if len(self._behind) > AHEAD:
            jax.block_until_ready(self._behind.popleft())
        if step % self._run.log_every == 0 or step in (1, self._run.steps):
            self._due = (step, measured)

    def flush(self) -> None:
        """Read and write what is outstanding; waits for the device."""
        self._read()

    def restart(self, step: int) -> None:
        """Begin a new interval of rates, after time spent on something else than steps."""
        self._from, self._waited = step, 0.0
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def _read(self) -> None:
        if self._due is None:
            return
        step, measured = self._due
        self._due = None
        numbers = {name: float(value) for name, value in jax.device_get(measured).items()}
        timing = self._timing(step)
        tokens = loader.tokens_before(self._run.data, step)
        record = {"step": step, "split": "train", **numbers, "tokens": tokens, "timing": timing}
        self._writer.write(record)
        self._out.progress(step, line(record, self._run.steps))
        # Up to here the device had the next step to do: it belongs to the next interval.
        self.restart(step)

    def _timing(self, step: int) -> dict[str, Any]:
        seconds = time.perf_counter() - self._clock
        facts: dict[str, Any] = env.peak_memory()
        steps = step - self._from
        if not steps:
            return facts
        data = self._run.data
        tokens = loader.tokens_before(data, step) - loader.tokens_before(data, self._from)
        facts |= {
            "step_seconds": seconds / steps,
            "data_wait_seconds": self._waited / steps,
            "tokens_per_second": tokens / seconds,
            "cpu_share": (time.process_time() - self._cpu) / seconds / (os.cpu_count() or 1),
        }
        peak, devices = env.peak_flops(), self._run.plan.devices
        seq = loader.stage_at(data, step - 1).seq
        for name, causal in (("causal", True), ("full", False)):
            targets = loader.target_length(data)
            each = flops.per_token(self._run.model, seq, causal=causal, targets=targets).training
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
        words.append(f"{timing['gflop_per_second_causal']:,.1f} GFLOP/s")
    if "mfu_causal" in timing:
        words.append(f"MFU {timing['mfu_causal']:.1%}")
    return "  ".join(words)
