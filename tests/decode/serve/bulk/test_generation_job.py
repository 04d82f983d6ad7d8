"""Texts of many prompts: those of one batch, in any number of slots, after any interruption."""

import dataclasses
import json
import random

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.data import pretraining
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import completions, token_sampling
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.decode.serve.bulk import (
    bandwidth,
    finished_texts,
    generation_job,
    many_prompts,
    prompt_lines,
)
from jaxlm.models import bert, gpt, mistral
from jaxlm.scaling.cost import flops

BYTES = bytelevel.Bytes()
PROMPTS = ["ab", "", "the end of the road", "x" * 40, "ab", "Q: why", "zz top", "1, 2, 3"]
SETTINGS = Sampling(max_new=9, temperature=1.3, top_k=20, seed=7, stop_strings=("e",))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A plain sum of a megabyte."""
    monkeypatch.setattr(bandwidth, "_SUMMED", 2**18)


@pytest.fixture
def job(tiny):
    def make(prompts=PROMPTS, sampling=SETTINGS, constraint=None):
        model, params = tiny("bytes")
        params = token_sampling.prepare(model, params)
        turn = prompt_lines.encoder(pretraining.Data(), None, BYTES)
        records = lambda: prompt_lines.listed(prompts)  # noqa: E731
        return generation_job.Job(model, params, BYTES, records, turn, sampling, constraint)

    return make


def in_slots(job, slots):
    decoding = generation_job.begin(job, generation_job.survey(job), slots, measure=False)
    made = {number: rows for number, _, rows in generation_job.texts(job, decoding)}
    return [row for number in sorted(made) for row in made[number]], decoding


@pytest.mark.parametrize(
    "changes", [{}, {"n": 2, "best_of": 3, "stop_strings": ()}, {"n": 2}, {"seed": 2**32 - 3}]
)
def test_texts_are_those_of_one_batch_in_any_number_of_slots(job, changes):
    """Continuation i of prompt r has the seed of `completions.complete`."""
    work = job(sampling=dataclasses.replace(SETTINGS, **changes))
    want = completions.complete(work.model, work.params, BYTES, PROMPTS, work.sampling)
    for slots in (1, 3):
        rows, decoding = in_slots(work, slots)
        assert [(r.text, r.tokens, r.finish) for r in rows] == [
            (r.text, r.tokens, r.finish) for r in want
        ]
        for row, other in zip(rows, want, strict=True):
            np.testing.assert_allclose(row.log_probs, other.log_probs, atol=2e-5)
        candidates = decoding.meter.tokens
        assert candidates >= sum(len(row.tokens) for row in rows)
    assert (candidates == sum(len(row.tokens) for row in want)) == ("best_of" not in changes)


def test_few_prompts_are_in_memory(job):
    """A request is read when a slot is free: never more wait than there are slots."""
    work, read, ended = job(PROMPTS * 8), 0, 0

    def counted():
        nonlocal read
        for record in prompt_lines.listed(PROMPTS * 8):
            read += 1
            yield record

    work = work._replace(records=counted)
    decoding = generation_job.begin(work, generation_job.survey(work), 3, measure=False)
    read = 0
    for _ in generation_job.texts(work, decoding):
        ended += 1
        assert read <= ended + 2 * 3 + 2
    assert ended == read == 64


def test_rules_that_leave_no_token_name_the_prompt(job):
    banned = tuple((i,) for i in range(262) if i not in (98, 120))
    sampling = Sampling(max_new=6, banned=(*banned, (98, 98), (98, 120), (120, 98), (120, 120)))
    with pytest.raises(
        ValueError, match="prompt 0: sampling.banned, no_repeat_ngram_size and min_new leave no t"
    ):
        in_slots(job(["y" * 43], sampling), 1)


def test_every_text_matches_a_constraint(job):
    rows, _ = in_slots(job(PROMPTS[:4], SETTINGS, Constraint(choices=("yes", "no"))), 3)
    assert all(row.text in ("yes", "no", "y") for row in rows)


def test_what_does_not_fit_is_named_before_compute(job, tmp_path):
    short = models.build(gpt.Config(vocab=262, embed=8, layers=1, heads=2, context=96))
    with pytest.raises(
        ValueError, match=r"prompts\[1\]: 91 tokens and sampling.max_new=9 make 100"
    ):
        generation_job.survey(job(["ab", "x" * 90])._replace(model=short))
    with pytest.raises(ValueError, match=r"prompts\[0\]: .* so the prompt alone is too long"):
        generation_job.survey(job(["x" * 96])._replace(model=short))
    with pytest.raises(ValueError, match="prompts: none given"):
        generation_job.survey(job([]))
    model = models.build(bert.Config(vocab=262, embed=8, layers=1, heads=2, context=16))
    with pytest.raises(ValueError, match="a encoder model does not continue texts"):
        generation_job.survey(job()._replace(model=model))
    small = {"vocab": 262, "embed": 8, "heads": 2, "kv": 1, "head": 4, "ffn": 8, "layers": 1}
    crowded = models.build(mistral.Config(**small, experts=2, active=1, capacity=1.0))
    with pytest.raises(ValueError, match="prompts: model.capacity=1.0 drops tokens"):
        generation_job.survey(job()._replace(model=crowded))
    size = generation_job.survey(job())
    assert (size.count, size.length) == (8, 41 + 9)
    assert size.digest == generation_job.survey(job()).digest
    assert size.digest != generation_job.survey(job([*PROMPTS[:-1], "1, 2, 4"])).digest


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_file_is_the_same_bytes_however_often_it_was_stopped(job, tmp_path, monkeypatch):
    """Stopped at random texts, and what the journal's last line holds cut at random bytes."""
    draw, prompts = random.Random(3), [f"{i}{p}"[:40] for i, p in enumerate(PROMPTS * 3)]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    totals = generation_job.write(job(prompts), whole, {"run": "a"}, 3)
    assert (totals.count, totals.found) == (24, 0) and totals.share > 0 and totals.seconds > 0
    assert [line["prompt"] for line in lines(whole)] == prompts
    assert all(set(line) == {"prompt", "text", "finish"} for line in lines(whole))
    assert totals.tokens >= sum(len(line["text"]) for line in lines(whole))
    add, made = finished_texts.Finished.add, []

    def stopping(self, number, rows):
        if draw.random() < 0.3:
            raise KeyboardInterrupt
        add(self, number, rows)
        made.append(number)

    monkeypatch.setattr(finished_texts.Finished, "add", stopping)
    stops = torn = 0
    while not cut.exists():
        try:
            generation_job.write(job(prompts), cut, {"run": "a"}, draw.choice([1, 3]))
        except KeyboardInterrupt:
            stops += 1
            journal = tmp_path / ".cut.jsonl.journal"
            content = journal.read_bytes()
            last = len(content) - (content[:-1].rfind(b"\n") + 1)
            if made and draw.random() < 0.5 and content.count(b"\n") > 1:
                journal.write_bytes(content[: -draw.randint(1, last - 1)])
                torn += 1
    assert stops > 2 and torn > 0 and len(made) == 24 + torn
    assert cut.read_bytes() == whole.read_bytes()
    again = generation_job.write(job(prompts), cut, {"run": "a"}, 5)
    assert again == generation_job.Totals(24, 24, 0, 0.0, None)


@pytest.mark.parametrize(
    "changes, identity, message",
    [
        ({"temperature": 0.5}, "a", "sampling.temperature=1.3, and now sampling.temperature=0.5"),
        ({}, "b", "begun with run='a', and now run='b'"),
        (None, "a", "begun with prompts.count=8, and now prompts.count=7"),
    ],
)
def test_another_setting_is_refused_by_name(job, tmp_path, changes, identity, message):
    out = tmp_path / "texts.jsonl"
    generation_job.write(job(), out, {"run": "a"}, 3)
    before = out.read_bytes()
    other = job(PROMPTS[1:]) if changes is None else job()
    other = other._replace(sampling=dataclasses.replace(SETTINGS, **(changes or {})))
    with pytest.raises(ValueError, match=message):
        generation_job.write(other, out, {"run": identity}, 4)
    assert out.read_bytes() == before


def test_numbers_next_to_a_bar(job):
    """Prompts that had texts before count as done."""
    seen = []

    class Bar:
        bar = ()

        def progress(self, step, text):
            seen.append((step, text))

    work = job()
    decoding = generation_job.begin(work, generation_job.survey(work), 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_job, "_SHOWN_SECONDS", -1)
        made = list(generation_job.texts(work, decoding, Bar(), {0, 3}, 2))
    assert {number for number, *_ in made} == {1, 2, 4, 5, 6, 7}
    assert [step for step, _ in seen] == [3, 4, 5, 6, 7, 8]
    assert "tokens/s" in seen[0][1] and "% of memory bandwidth" in seen[0][1]


# --- Bytes that decoding reads ----------------------------------------------------------------


def test_the_bytes_of_a_step_are_weights_and_what_is_in_the_cache():
    reads = bandwidth.Reads(1000, 0, 0.0, 8.0)
    meter = many_prompts.Meter(reads)
    meter.add(2, [])  # first tokens, after their prompts
    assert (meter.tokens, meter.bytes) == (2, 0)
    meter.add(5, [(10, 3), (20, 1)])
    assert (meter.tokens, meter.bytes) == (7, 3 * (1000 + 30 * 8))
    assert meter.seconds > 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_is_looked_into_is_not_read(tied):
    cfg = gpt.Config(vocab=40, embed=8, layers=2, heads=2, context=16, tied=tied)
    model = models.build(cfg)
    params = param.map(lambda p: jnp.zeros(p.shape), model.spec)
    want = 4 * (param.count(model.spec) - 16 * 8 - (0 if tied else 40 * 8))
    assert bandwidth.reads(model, params, 5.0) == bandwidth.Reads(want, 0, 0.0, 5.0)


def test_experts_are_read_as_rows_choose_them():
    cfg = mistral.Config(
        vocab=40, embed=8, heads=2, kv=1, head=4, ffn=16, layers=2, experts=4, active=1
    )
    model = models.build(cfg)
    params = param.map(lambda p: jnp.zeros(p.shape), model.spec)
    reads = bandwidth.reads(model, params, 5.0)
    table = 40 * 8
    assert reads.experts == 4 * 2 * 4 * 3 * 8 * 16 and reads.met == pytest.approx(1 / 4)
    one = reads.step(1, 0)
    assert one == pytest.approx(4 * (flops.active(cfg) - table), rel=1e-6)
    assert reads.step(2, 3) - one == pytest.approx((3 / 4) * (1 / 4) * reads.experts + 15)


def test_memory_gives_what_a_sum_reads():
    assert 1e8 < bandwidth.of_memory() < 1e14
