"""The law of import: no field of a config.json is skipped, defaulted or believed where
transformers' mathematics reads it otherwise.

For every architecture, every field of transformers' config class is set to another valid value on a
tiny model. Where its logits move, the import follows them or refuses the field by name; what it
skips (`ignored_fields`) is set to other values too, and moves nothing. Fields that an import
follows are changed together, as are those that are harmless: a pass each, and single ones only to
name a culprit.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest

from jaxlm.convert import read
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import ignored_fields
from tests.convert import cases

pytestmark = pytest.mark.parity

# Cases beside the first of each model_type: those that turn on what the first leaves off.
MORE = ("falcon-40b", "falcon-rw", "qwen2-window", "qwen2-moe-window", "deepseek-v3-yarn")
# A config.json around that of its text: what stands beside `text_config`. It reads text alone here.
IMAGES = {
    "gemma3-images": {
        "model_type": "gemma3", "architecture": "Gemma3ForConditionalGeneration",
        "text_config": {
            k: v for k, v in cases.ORACLES["gemma3"].items() if k != "architecture"
        },
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
        },
        "mm_tokens_per_image": 4, "image_token_index": 96, "boi_token_index": 95,
        "eoi_token_index": 94,
    },
}  # fmt: skip
CASES = [*cases.FIRST.values(), *MORE, *IMAGES]

# Other valid values of fields for which one more, half as much more or the opposite will not do.
# What is absent here and is no number or bool fails the law, as a new field should.
OTHER: dict[str, list[Any]] = {
    "activation": ["relu", "gelu_new"],
    "activation_function": ["relu", "gelu"],
    "afn": ["relu", "silu"],
    "attention_window": [[4, 4, 4], 6],
    "attn_logit_softcapping": [2.2, None],
    "bos_token_id": [3],
    "chunk_size_feed_forward": [4],
    "classifier_dropout": [0.3],
    "d_model": [48],
    "decoder_start_token_id": [3],
    "dtype": ["bfloat16"],
    "eos_token_id": [3, [2, 3]],
    "feed_forward_proj": ["gated-gelu", "silu", "gelu"],
    "ffn_hidden_size": [40],
    "final_logit_softcapping": [3.3, None],
    "head_dim": [12],
    "hidden_act": ["gelu_new", "relu", "silu", "gelu"],
    "hidden_activation": ["gelu", "relu"],
    "hidden_size": [48],
    "id2label": [{"0": "a"}],
    "intermediate_size": [40],
    "is_causal": [False, None],
    "label2id": [{"a": 0}],
    "layer_types": [["full_attention", "full_attention", "full_attention"]],
    "max_position_embeddings": [64],
    "mlp_only_layers": [[0], [1]],
    "moe_intermediate_size": [16],
    "n_embd": [48],
    "n_group": [2],
    "n_head": [2],
    "n_inner": [40],
    "n_positions": [64],
    "n_routed_experts": [12],
    "num_attention_heads": [8],
    "num_decoder_layers": [3],
    "num_hidden_layers": [2],
    "num_experts_per_tok": [1],
    "num_heads": [2],
    "num_key_value_heads": [1],
    "num_kv_heads": [1],
    "num_ln_in_parallel_attn": [1, 2],
    "pad_token_id": [3],
    "problem_type": ["regression"],
    "q_lora_rank": [10, None],
    "qk_rope_head_dim": [8],
    "query_pre_attn_scalar": [30],
    "relative_attention_num_buckets": [16],
    "rotary_dim": [6],
    "scoring_func": ["softmax", "sigmoid"],
    "sep_token_id": [3],
    "shared_expert_intermediate_size": [32],
    "sliding_window": [7, None],
    "summary_activation": ["tanh"],
    "summary_type": ["mean"],
    "topk_group": [1],
    "topk_method": ["greedy", "group_limited_greedy", "noaux_tc"],
    "use_bidirectional_attention": [True],
    "vocab_size": [101],
    "word_embed_proj_dim": [16],
}
# Values of names in the table of harmless fields that no config class declares, where True is none.
UNDECLARED = {
    "_attn_implementation": "sdpa", "output_attentions": False, "cache_implementation": "static",
    "pruned_heads": {"0": [1]}, "torch_dtype": "bfloat16", "hidden_act": "relu", "head_dim": 20,
    "hidden_activation": "relu", "prefix": "a", "is_causal": False, "n_inner": 40, "top_p": 0.5,
    "temperature": 0.5, "max_length": 30, "min_length": 3, "num_beams": 2, "top_k": 5,
    "num_return_sequences": 2, "bad_words_ids": [[3]], "repetition_penalty": 1.5,
    "_sliding_window_pattern": 2,
}  # fmt: skip
# Fields without another value: what a file is, records that other tests vary, and `return_dict`,
# without which transformers' own models do not run.
GIVEN = {
    "model_type", "architectures", "transformers_version", "return_dict", "rope_parameters",
    "text_config", "vision_config",
}  # fmt: skip
# Names that the older form of a field has; transformers reads them without declaring them.
OLDER: dict[str, list[Any]] = {
    "rope_theta": [3000.0, None],
    "rope_scaling": [{"type": "linear", "factor": 2.0}, None],
    "partial_rotary_factor": [0.5, None],
    "rotary_pct": [0.5, None],
    "rotary_emb_base": [2000, None],
    "rope_local_base_freq": [300.0],
    "sliding_window_pattern": [2],
    "head_dim": [12],
    "is_causal": [False, None, True],
    "is_gated_act": [True, False],
    "dense_act_fn": ["silu"],
    "hidden_activation": ["relu"],
    "qkv_bias": [False],
}


# Attributes of the library's own machinery, which no config.json sets.
INFRASTRUCTURE = {
    "attribute_map", "base_model_ep_plan", "base_model_fsdp_plan", "base_model_pp_plan",
    "base_model_tp_plan", "decoder", "default_rope_type", "generator", "is_heterogeneous",
    "text_config", "name_or_path",
    "output_attentions", "per_layer_config", "rope_theta", "partial_rotary_factor",
}  # fmt: skip
# A value for each layer: not changed along with their number.
PER_LAYER = {"layer_types", "attention_window", "mlp_only_layers"}


class Base(NamedTuple):
    """A case: its config.json, what transformers computes, and our Config of it."""

    case: str
    kind: str
    record: dict[str, Any]
    ids: np.ndarray
    sample: Any
    cfg: Any
    declared: dict[str, Any]


@pytest.fixture(scope="module")
def law():
    """The law's module, which imports torch and transformers."""
    import transformers

    from tests.convert import law

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return law


@pytest.fixture(scope="module")
def base(request, law):
    record = dict((cases.ORACLES | IMAGES)[request.param])
    record["architectures"] = [record.pop("architecture")]
    kind = record["model_type"]
    ids = cases.tokens(request.param, 1, law.T, 97)
    _, sample = law.sample(request.param, record, ids)
    cfg = read.understood(Fields(record), kind)
    return Base(request.param, kind, record, ids, sample, cfg, law.declared(kind))


def over(names):
    marked = [pytest.param(n, marks=pytest.mark.xdist_group(f"law {n}")) for n in names]
    return pytest.mark.parametrize("base", marked, indirect=True)


def others(law, base, name):
    """Valid values of a field that are not the one it has."""
    value = law.value(base.record, name)
    if name in OTHER:
        return [v for v in OTHER[name] if v != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [1.5 * value or 0.25]
    if name in OLDER:
        return OLDER[name]
    raise AssertionError(f"{base.kind}: no other value of {name}={value!r} is known: see OTHER")


def moved(base, sample):
    """By how much of their spread the logits moved; infinite where shapes did."""
    if sample.shapes != base.sample.shapes:
        return np.inf
    spread = base.sample.logits.std()
    return np.abs(sample.logits - base.sample.logits).max() / spread


STILL = 5e-5


@over(CASES)
def test_what_is_skipped_moves_nothing(base, law):
    """All harmless fields at once at another value; the bound on each is the bound on all. What is
    not declared is moreover never read, or it is declared somewhere and changed here."""
    names = sorted(ignored_fields.names(base.kind) - GIVEN)
    other = {n: others(law, base, n)[0] for n in names if n in base.declared}
    other |= {n: UNDECLARED.get(n, True) for n in names if n not in base.declared}
    _, sample = law.sample(base.case, base.record | other, base.ids)
    if moved(base, sample) > STILL:
        each = {
            n: moved(base, law.sample(base.case, base.record | {n: v}, base.ids)[1])
            for n, v in other.items()
        }
        raise AssertionError({n: by for n, by in each.items() if by > STILL})


@over(CASES)
def test_every_field_is_followed_or_refused_by_name_or_moves_nothing(base, law, tmp_path):
    names = [n for n in {**base.declared, **OLDER} if n not in GIVEN]
    skipped = ignored_fields.names(base.kind)
    followed: dict[str, list[Any]] = {}
    faults = []
    for name in names:
        if name in skipped:
            continue
        values = others(law, base, name) if name in base.declared else OLDER[name]
        for value in values:
            record = base.record | {name: value}
            try:
                cfg = read.understood(Fields(record), base.kind)
            except ValueError as error:
                if not any(n in str(error) for n in (*names, "model.", "route:")):
                    faults.append(f"{name}={value!r} is refused without its name: {error}")
                continue
            if cfg != base.cfg:
                followed.setdefault(name, []).append(value)
            elif (run := law.tried(base.case, record, base.ids)) is not None:
                by = moved(base, run[1])
                if by > STILL:
                    faults.append(f"{name}={value!r} is believed; it moves logits by {by:.2g}")
    assert not faults, "\n".join(faults)
    for i in range(max(map(len, followed.values()))):
        changed = {n: v[min(i, len(v) - 1)] for n, v in followed.items()}
        for n in PER_LAYER & {*changed} if i == 0 else {"num_hidden_layers"} & {*changed}:
            del changed[n]
        off = culprits(law, base, changed, tmp_path / str(i))
        assert not off, off


def culprits(law, base, changed, folder):
    """{changes: how far off}, empty where an import follows all. What transformers does not take
    together is halved, until it does; what is off is named field by field."""
    off = distance(law, base, changed, folder)
    if off is None:
        return {}
    names = [*changed]
    if len(names) == 1:
        return {str(changed): off}
    refused, middle = isinstance(off, str), len(names) // 2
    parts = [names[:middle], names[middle:]] if refused else [[n] for n in names]
    each = {}
    for i, part in enumerate(parts):
        each |= culprits(law, base, {n: changed[n] for n in part}, folder / str(i))
    return each or ({} if refused else {str(changed): off})


def distance(law, base, changed, folder):
    """How far an import of the model with changed fields is from it, in spreads; None if it is not,
    or if transformers does not take the values."""
    record = base.record | changed
    run = law.tried(base.case, record, base.ids)
    if run is None:
        return None if len(changed) == 1 else "transformers does not take these together"
    model, sample = run
    _, logits = law.imported(model, record, folder, base.ids)
    by = np.abs(logits - sample.logits).max() / sample.logits.std()
    return None if by <= 1e-4 else by


@over(CASES)
def test_what_says_nothing_moves_nothing(base, law):
    """False and null of names that transformers reads without declaring them: an unknown field with
    such a value is let pass, so each is understood here, harmless, or moves nothing."""
    config = law.config(base.record)
    names = {
        n
        for n in base.sample.reads - {*base.declared}
        if not n.startswith("_") and not callable(getattr(config, n, None))
    }
    silent = [n for n in sorted(names - INFRASTRUCTURE) if passes(base, n)]
    for value in (False, None):
        run = law.tried(base.case, base.record | dict.fromkeys(silent, value), base.ids)
        if run is None or moved(base, run[1]) > STILL:
            runs = {n: law.tried(base.case, base.record | {n: value}, base.ids) for n in silent}
            each = {n: moved(base, run[1]) for n, run in runs.items() if run is not None}
            assert max(each.values(), default=0.0) <= STILL, each


def passes(base, name):
    """Whether a config.json with this field false is imported as if the field were not there."""
    try:
        return read.understood(Fields(base.record | {name: False}), base.kind) == base.cfg
    except (ValueError, ArithmeticError):  # no number: refused here or there
        return False


# Sizes that fit every default of another size.
LARGE = {"num_attention_heads": 64, "n_head": 64, "hidden_size": 1024, "n_embd": 1024}
LARGE |= {"num_key_value_heads": 4, "word_embed_proj_dim": 1024}


@over(CASES)
def test_what_is_left_out_is_transformers_default(base, law):
    """Every field absent: our Config is that of the complete record transformers makes of it, or
    the field is said to be missing."""
    large = dict(base.record)
    if not base.kind.startswith("deepseek"):  # whose keys are as many as its heads
        large |= {n: v for n, v in LARGE.items() if n in base.declared}
    faults = []
    for name in sorted({*base.declared} - GIVEN):
        record = {k: v for k, v in large.items() if k != name}
        try:
            cfg = read.understood(Fields(record), base.kind)
        except ValueError as error:
            # a default that does not go with the sizes beside it is refused, as it should be
            messages = (f"{name} is missing", "model.", "route:", "num_key_value_heads=")
            if not any(words in str(error) for words in messages):
                faults.append(f"without {name}: {error}")
            continue
        complete = law.config(record).to_dict() | {"model_type": base.kind}
        complete = json.loads(json.dumps(complete, default=str))
        try:
            want = read.understood(Fields(complete), base.kind)
        except ValueError as error:
            want = error
        if cfg != want:
            faults.append(f"without {name}: {cfg}, and transformers has {want}")
    assert not faults, "\n".join(faults)
