"""Rules on the next token against lists and sets in Python, and against transformers' classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decode import sampling_settings
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.ops import penalties, sampling
from tests.ops import test_sampling

B, V, P, M = 6, 12, 9, 7


def ruled(x, prompt, new, s):
    """One row in float64, from the definitions: what `process` gives before the temperature."""
    x, text = np.array(x, np.float64), [*prompt, *new]
    for token, bias in s.logit_bias:
        x[token] += bias
    for token in set(text):
        x[token] *= 1 / s.repetition_penalty if x[token] > 0 else s.repetition_penalty
    for token in set(new):
        x[token] -= s.presence_penalty + s.frequency_penalty * new.count(token)
    n = s.no_repeat_ngram_size
    grams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)} if n else set()
    for token in range(len(x)):
        after = [*text, token]
        repeats = n and tuple(after[-n:]) in grams
        if repeats or any(tuple(after[-len(row) :]) == tuple(row) for row in s.banned):
            x[token] = -np.inf
        if len(new) < s.min_new and token in s.stop_tokens:
            x[token] = -np.inf
    forced = s.forced_begin[len(new) : len(new) + 1]
    if s.forced_end and len(new) == s.max_new - 1:
        forced = s.forced_end
    return np.where(np.isin(np.arange(len(x)), forced), 0.0, -np.inf) if forced else x


def law(x, prompt, new, s):
    """One row in float64 as it is sampled from."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = ruled(x, prompt, new, s)
        never = np.zeros(len(x), bool)
        rest = s.temperature, s.top_k or 0, s.top_p, s.min_p, 1.0, s.typical_p
        return test_sampling.oracle(x, never, *rest)


def texts(seed, low=1):
    """(prompts, continuations) of a few tokens, so that much occurs twice."""
    r = np.random.default_rng(seed)
    prompts = [r.integers(0, 4, r.integers(low, P + 1)).tolist() for _ in range(B)]
    return prompts, [r.integers(0, 4, r.integers(0, M)).tolist() for _ in range(B)]


@jax.jit
def run(x, rows, prompts, gaps, new, length):
    text = penalties.begun(prompts, gaps, rows.limit, M)
    for i in range(M):
        text = penalties.extended(text, new[:, i], i < length)
    there = jnp.arange(P + M) < text.length[:, None]
    seen = jnp.any((text.tokens[:, :, None] == jnp.arange(V)) & there[..., None], axis=1)
    text = text._replace(tokens=jnp.where(there, text.tokens, 3))  # what is beyond is not read
    return sampling.process(x, seen, rows.controls, text)


def processed(x, prompts, new, settings, seed=0):
    """`process` on rows whose prompts have padding in front, behind and between."""
    r = np.random.default_rng(seed)
    tokens, gaps = np.full((B, P), 2, np.int32), np.zeros((B, P), bool)
    for i, row in enumerate(prompts):
        places = np.sort(r.choice(P, len(row), replace=False))
        tokens[i, places], gaps[i, places] = row, True
    out = np.full((B, M), 3, np.int32)  # what is beyond a row's length counts for nothing
    for i, row in enumerate(new):
        out[i, : len(row)] = row
    rows = sampling_settings.rows_of(settings, B)
    return np.asarray(run(x, rows, tokens, gaps, out, np.array([len(row) for row in new])))


NONE = Sampling(max_new=M)
HALF = {"temperature": 0.0, "max_new": M}
CASES = {
    "none": [NONE] * B,
    "bias": [
        Sampling(max_new=M, logit_bias=pairs)
        for pairs in [
            (),
            ((0, 2.5),),
            ((3, -9.0), (1, 1.0)),
            ((11, 1e4), (0, -1e4)),
            ((5, 0.0),),
            ((2, 1.0), (3, 1.0), (4, 1.0)),
        ]
    ],
    "counts": [
        Sampling(max_new=M, presence_penalty=a, frequency_penalty=b)
        for a, b in [(0, 0), (2, 0), (0, 2), (-1.5, 0.25), (0.5, -2), (0, 0)]
    ],
    "ngrams": [Sampling(max_new=M, no_repeat_ngram_size=n) for n in (0, 1, 2, 3, 4, 9)],
    "banned": [
        Sampling(max_new=M, banned=rows)
        for rows in [
            (),
            ((1,), (2,), (7,)),
            ((0, 1), (1, 0), (2, 2), (3, 3, 0)),
            ((0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2),),
            tuple((a, b) for a in range(4) for b in range(0, 12, 2)),
            tuple((a, b, 5) for a in range(4) for b in range(4)),
        ]
    ],
    "min_new": [
        Sampling(max_new=M, min_new=n, stop_tokens=stop)
        for n, stop in [(0, (1,)), (7, (1, 2, 3)), (3, (0,)), (2, ()), (5, (11, 4)), (1, (2,))]
    ],
    "forced": [
        Sampling(max_new=n, forced_begin=begin, forced_end=end)
        for n, begin, end in [
            (M, (), ()),
            (M, (4, 5, 6, 7, 8), ()),
            (7, (1, 1), (9,)),
            (7, (), (0, 3)),
            (M, (3,), ()),
            (7, (0,) * 7, (5,)),
        ]
    ],
    "all": [
        Sampling(max_new=M, repetition_penalty=1.3, no_repeat_ngram_size=2, top_p=0.9),
        Sampling(**HALF, presence_penalty=1, repetition_penalty=0.7, logit_bias=((2, 3.0),)),
        Sampling(max_new=M, temperature=0.7, banned=((1,), (0, 2)), typical_p=0.6),
        NONE,
        Sampling(max_new=M, min_new=6, stop_tokens=(0, 1), no_repeat_ngram_size=1, min_p=0.1),
        Sampling(max_new=M, logit_bias=((1, -2.0),), repetition_penalty=2.0, forced_begin=(7, 7)),
    ],
}  # fmt: skip


def compare(got, want):
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
    kept = np.isfinite(want)
    np.testing.assert_allclose(got[kept], want[kept], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_rules_are_their_definitions_row_by_row(name):
    """Rows of a batch with different settings and one without, over several texts each."""
    settings = CASES[name]
    changed = 0
    for seed in range(8):
        x = np.random.default_rng(seed).normal(0, 3, (B, V)).astype(np.float32)
        prompts, new = texts(seed)
        got = processed(x, prompts, new, settings, seed)
        for r, s in enumerate(settings):
            compare(got[r], law(x[r], prompts[r], new[r], s))
            changed += not np.array_equal(got[r], x[r])
            if s == NONE:
                assert got[r].tobytes() == x[r].tobytes()
    assert changed > 15 or name == "none"


def test_a_row_does_not_depend_on_the_others():
    """Bit for bit, in whatever company: all alike, or every row with rules of another kind."""
    x = np.random.default_rng(1).normal(0, 3, (B, V)).astype(np.float32)
    prompts, new = texts(3)
    settings = CASES["all"]
    mixed = processed(x, prompts, new, settings)
    turned = [np.roll(np.arange(B), k) for k in (1, 3)]
    for order in turned:
        moved = processed(
            x[order], [prompts[i] for i in order], [new[i] for i in order],
            [settings[i] for i in order], seed=5,
        )  # fmt: skip
        assert moved.tobytes() == mixed[order].tobytes()
    for r, s in enumerate(settings):
        alike = processed(x, prompts, new, [s] * B)
        assert alike[r].tobytes() == mixed[r].tobytes()


def test_a_text_begins_with_its_prompt_and_grows_where_it_runs():
    tokens = np.array([[5, 6, 7, 8], [1, 2, 3, 4], [9, 9, 9, 9]], np.int32)
    real = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    text = penalties.begun(tokens, real, np.array([2, 1, 0], np.int32), 2)
    assert text.tokens.tolist() == [[5, 7, -1, -1, -1, -1], [1, 2, 3, 4, -1, -1], [-1] * 6]
    assert text.prompt.tolist() == text.length.tolist() == [2, 4, 0]
    text = penalties.extended(text, np.array([3, 3, 3]), np.array([True, True, False]))
    text = penalties.extended(text, np.array([4, 4, 4]), np.array([True, False, False]))
    assert text.tokens.tolist() == [[5, 7, 3, 4, -1, -1], [1, 2, 3, 4, 3, -1], [-1] * 6]
    assert text.length.tolist() == [4, 5, 0] and text.left.tolist() == [0, 0, 0]
    assert text.prompt.tolist() == [2, 4, 0]


def test_a_row_without_a_token_has_none():
    everything = Sampling(max_new=M, banned=tuple((i,) for i in range(V)), top_p=0.5, typical_p=0.5)
    x = np.zeros((B, V), np.float32)
    got = processed(x, *texts(0), [everything] + [NONE] * (B - 1))
    assert not (got[0] > -np.inf).any() and (got[1:] == 0).all()


# --- transformers ----------------------------------------------------------------------------


def chain(process, s, prompt):
    """The processors of transformers for one row, in the order of `generate`."""
    steps = []
    if s.logit_bias:
        bias = {(token,): float(value) for token, value in s.logit_bias}
        steps.append(process.SequenceBiasLogitsProcessor(bias))
    if s.repetition_penalty != 1:
        steps.append(process.RepetitionPenaltyLogitsProcessor(float(s.repetition_penalty)))
    if s.no_repeat_ngram_size:
        steps.append(process.NoRepeatNGramLogitsProcessor(s.no_repeat_ngram_size))
    if s.banned:
        steps.append(process.NoBadWordsLogitsProcessor([list(row) for row in s.banned]))
    if s.min_new and s.stop_tokens:
        steps.append(
            process.MinNewTokensLengthLogitsProcessor(len(prompt), s.min_new, list(s.stop_tokens))
        )
    if s.forced_begin:
        steps.append(process.ForcedBOSTokenLogitsProcessor(s.forced_begin[0]))
    if s.forced_end:
        end = list(s.forced_end)
        steps.append(process.ForcedEOSTokenLogitsProcessor(len(prompt) + s.max_new, end))
    if s.temperature == 0:
        return steps
    steps += [process.TemperatureLogitsWarper(s.temperature)] if s.temperature != 1 else []
    steps += [process.TopKLogitsWarper(s.top_k)] if s.top_k else []
    steps += [process.TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
    steps += [process.MinPLogitsWarper(s.min_p)] if s.min_p else []
    return steps + ([process.TypicalLogitsWarper(s.typical_p)] if s.typical_p < 1 else [])


@pytest.mark.parity
@pytest.mark.parametrize("name", [n for n in CASES if n != "counts"])
def test_rules_are_transformers_classes(name):
    """Prompts of one token, where transformers' forced_bos_token_id acts; and longer ones, where it
    does not, so that rows with a forced beginning are left out there. Penalties for presence and
    frequency are not in transformers."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    compared = 0
    for seed in range(12):
        x = np.random.default_rng(seed).normal(0, 3, (B, V)).astype(np.float32)
        prompts, new = texts(seed)
        if seed % 2:
            prompts = [row[:1] for row in prompts]
        got = processed(x, prompts, new, CASES[name], seed)
        for r, s in enumerate(CASES[name]):
            if s.presence_penalty or s.frequency_penalty:
                continue
            begun = len(prompts[r]) == 1 and (
                len(new[r]) == 0 or len(new[r]) >= len(s.forced_begin)
            )
            if s.forced_begin and not begun:
                continue
            ids, want = torch.tensor([prompts[r] + new[r]]), torch.from_numpy(x[r : r + 1])
            for step in chain(process, s, prompts[r]):
                want = step(ids, want)
            compare(got[r], want[0].numpy())
            compared += 1
    assert compared >= 30
