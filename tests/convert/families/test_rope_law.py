"""The law of import over `rope_parameters`: every type, every field of it set to another value, in
every architecture that has rotary positions. The angles are those of transformers' own module, or
the record is refused by name."""

import math
import warnings

import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import read
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import rope_parameters
from jaxlm.ops import rope as ops
from tests.convert import cases

pytestmark = [pytest.mark.parity, pytest.mark.xdist_group("rope law")]

UNTURNED = {"bert", "roberta", "longformer", "t5", "gpt2", "openai-gpt", "opt", "bloom", "gptj"}
KINDS = [kind for kind in cases.FIRST if kind not in UNTURNED]
SHORT, LONG = 12, 24
# A record of each type for an original context of 16, which LONG exceeds and SHORT does not.
TYPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "factor": 4.0, "original_max_position_embeddings": 16, "short_factor": 1.1,
        "long_factor": 3.0,
    },
}  # fmt: skip
OTHER = {
    "factor": 2.0, "rope_theta": 3000.0, "partial_rotary_factor": 0.5, "attention_factor": 1.3,
    "beta_fast": 8.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False,
    "original_max_position_embeddings": 13, "low_freq_factor": 2.0, "high_freq_factor": 8.0,
    "short_factor": 1.7, "long_factor": 5.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def law():
    import transformers

    from tests.convert import law

    transformers.logging.set_verbosity_error()
    return law


def records(pairs):
    """(rope_type, what is changed, record) for every type and every field of it."""
    for kind, plain in TYPES.items():
        plain = {"rope_type": kind, "rope_theta": 1e4} | plain
        known = [*rope_parameters.KEYS[kind], "rope_theta", "partial_rotary_factor"]
        for name in [None, *known]:
            changed = plain | ({} if name is None else {name: OTHER[name]})
            if name == "mscale":  # which acts with the other alone
                changed["mscale_all_dim"] = 1.1
            for key in ("short_factor", "long_factor"):
                if key in changed:
                    changed[key] = np.linspace(1.0, changed[key], pairs).tolist()
            yield kind, name, changed


def theirs(module, length, layer):
    """(cos, sin) float[T, R/2] of their rotary module at so many positions."""
    import torch

    at = torch.arange(length)[None]
    given = () if layer is None else (layer,)
    out = module(torch.zeros(1, length, 1), at, *given)
    if not isinstance(out, tuple):  # complex numbers
        return out.real[0].numpy(), out.imag[0].numpy()
    cos, sin = (x[0].numpy() for x in out)
    half = cos.shape[-1] // 2
    # GPT-OSS has a pair once; the others twice, side by side or half by half
    if "Oss" in type(module).__name__:
        return cos, sin
    beside = half > 1 and np.array_equal(cos[:, ::2], cos[:, 1::2])
    return (cos[:, ::2], sin[:, ::2]) if beside else (cos[:, :half], sin[:, :half])


def ours(cfg, length, monkeypatch):
    """[(cos, sin)] of every Rotary that a Config's model has."""
    angles = []
    plain = ops.frequencies
    with monkeypatch.context() as patch:
        patch.setattr(
            ops, "frequencies", lambda *a, **k: angles.append(plain(*a, **k)) or angles[-1]
        )
        models.build(cfg)
    frequencies = []
    for rotary in angles:
        angle = np.arange(length)[:, None] * rotary.freqs.astype(np.float64)
        frequencies.append((np.cos(angle) * rotary.attention, np.sin(angle) * rotary.attention))
    return frequencies


@pytest.mark.parametrize("kind", KINDS)
def test_angles_are_theirs_or_refused(kind, law, monkeypatch):
    case = cases.FIRST[kind]
    base = dict(cases.ORACLES[case])
    base["architectures"] = [base.pop("architecture")]
    base |= {"max_position_embeddings": 16}
    base |= {"hidden_size": 64} if kind == "gpt_neox" else {}  # a quarter of a head: two pairs
    nested = kind == "gemma3_text"
    model, _ = law.build(case, base)
    module = next(m for name, m in model.named_modules() if name.endswith("rotary_emb"))
    first = theirs(module, SHORT, "full_attention" if nested else None)
    pairs, followed, faults = first[0].shape[-1], 0, []
    for rope_type, _, changed in records(pairs):
        full = {"full_attention": changed, "sliding_attention": {"rope_type": "default"}}
        record = base | {"rope_parameters": full if nested else changed}
        if rope_type == "longrope" and kind == "phi3":
            record["original_max_position_embeddings"] = changed["original_max_position_embeddings"]
        try:
            cfg = read.understood(Fields(record), kind)
            models.build(cfg)
        except ValueError as error:
            messages = ("rope", "factor", "share", "model.")
            if not any(word in str(error) for word in messages):
                faults.append(f"{changed}: refused without its name: {error}")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = type(module)(law.config(record))
            except Exception:  # theirs raise whatever their own code meets
                continue
        followed += 1
        for length in (SHORT, LONG):
            at = cfg
            if rope_parameters.notice(cfg) and length > cfg.context:
                at = rope_parameters.at_context(cfg, length)
            want = theirs(module, length, "full_attention" if nested else None)
            got = ours(at, length, monkeypatch)[0]
            off = max(
                np.abs(a - b).max() if a.shape == b.shape else math.inf
                for a, b in zip(got, want, strict=True)
            )
            if off > 1e-5:
                faults.append(f"{changed} at {length}: {off:.2g} off")
    assert not faults, "\n".join(faults)
    assert followed > 5
