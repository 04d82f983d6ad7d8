"""The test files that guard each module: those that `mutants.py` runs on a mutant of it."""

import functools
import pathlib

from tests import sources

GOLDEN = "tests/convert/test_golden.py"
LAWS = "tests/test_laws.py"
COUNTS = "tests/models/test_counts.py"
PLAIN = "tests/objectives/test_pins.py"
PAIRS = "tests/objectives/preference/test_preference_pins.py"
RL = (
    "tests/objectives/rl/test_rollout_pins.py",
    "tests/ops/losses/test_advantages.py",
    "tests/objectives/rl/test_grpo.py",
    "tests/objectives/rl/test_ppo.py",
    "tests/objectives/rl/test_ratios.py",
)
ATTENTION = ("tests/ops/test_attention.py", "tests/ops/test_position_bias.py")
DPO = (PAIRS, "tests/objectives/preference/test_dpo.py")
REWARD = (PLAIN, "tests/objectives/preference/test_reward.py")
HIDDEN = (PLAIN, "tests/objectives/test_hidden.py")
SFT = (PLAIN, "tests/objectives/test_sft.py")
EXPERTS = "tests/objectives/test_load_balancing.py"
ENTROPY = "tests/data/synthetic/test_known_entropy.py"
TEMPLATES = ("tests/data/templates/test_template.py", "tests/data/templates/test_limits.py")
RECORDS = (
    "tests/data/records/test_chats.py",
    "tests/data/records/test_preferences.py",
    "tests/data/records/test_prompts.py",
    "tests/data/test_reasoning.py",
)
MIXED_RUN = "tests/train/test_mixed_run.py"
CURATION = (
    "tests/data/curate/test_curation.py",
    "tests/data/curate/duplicates/test_near.py",
    "tests/data/curate/duplicates/test_copies.py",
    "tests/data/curate/duplicates/test_repeated_lines.py",
)
FILTERS = ("tests/data/curate/steps/test_published_filters.py",)
TOKENIZERS = (
    "tests/data/tokenizers/test_tokenizers.py",
    "tests/data/tokenizers/test_foreign_tokenizers.py",
)
DECODE = (
    "tests/decode/test_token_sampling.py",
    "tests/decode/test_sampling_loop.py",
    "tests/decode/test_completions.py",
)
RINGS = "tests/decode/test_ring_caches.py"
QUANTISED = "tests/decode/test_quantised_caches.py"
SERVE = ("tests/decode/serve/test_engine.py", "tests/decode/serve/test_http_api.py")
BULK = "tests/decode/serve/bulk/test_generation_job.py"
FUZZ = "tests/decode/serve/test_engine_fuzz.py"
SPECULATE = "tests/decode/speculate/test_speculative_loop.py"
DRAFTED = "tests/decode/speculate/test_speculative_sampling.py"
CALLS = "tests/decode/serve/test_tool_calls.py"
STORES = "tests/core/remote/test_objects.py"
RESUMED = (
    "tests/train/run/test_checkpoint.py",
    "tests/train/interruptions/test_faults.py",
    "tests/train/test_loop.py",
)
# Cases of the golden file that a family holds; the laws' cases carry its name.
FAMILIES = {
    "bert": "bert or longformer",
    "deepseek": "deepseek",
    "gemma": "gemma",
    "gpt": "gpt2 or openai or bloom or opt",
    "llama": "llama or phi3 or olmo2",
    "mistral": "mistral or mixtral or gpt_oss",
    "palm": "cohere or falcon or neox or gptj",
    "qwen": "qwen",
    "t5": "t5",
}

# Files that `files_of` does not derive, the most telling first; `FILE -k WORDS` is a selection.
GUARDS: dict[str, tuple[str, ...]] = {
    f"models/{family}": (COUNTS, f"{GOLDEN} -k '{words}'", f"{LAWS} -k {family}")
    for family, words in FAMILIES.items()
} | {
    "core/atomic": ("tests/core/test_io.py", RESUMED[0]),
    "core/batch": ("tests/data/test_pack.py", "tests/data/test_pretraining.py", *SFT),
    "core/config": ("tests/cli/test_field_overrides.py", "tests/cli/test_schema.py"),
    "core/io": RESUMED[:2],
    "core/remote/objects": (STORES,),
    "core/remote/staging": (STORES, "tests/train/run/test_remote_runs.py"),
    "core/remote/lease": (STORES,),
    "core/remote/hub": ("tests/convert/test_hub.py",),
    "core/target": ("tests/train/test_lowering.py",),
    "core/joint": ("tests/core/test_param.py", "tests/models/test_flax_modules.py"),
    "core/json_file": ("tests/core/test_io.py", *RESUMED[:2], "tests/convert/test_hostile.py"),
    "core/keyed_random": ("tests/feedback/test_journal.py", "tests/feedback/test_best_of_n.py"),
    "data/curate/corpus_step": CURATION,
    "data/curate/curation": CURATION[:1],
    "data/curate/decisions": CURATION[:1],
    "data/curate/duplicates/lsh": CURATION[1:2],
    "data/curate/duplicates/shingles": CURATION[1:2],
    "data/curate/curated_files": CURATION[:1],
    "data/curate/reading": CURATION[:1],
    "data/curate/recipe": CURATION[:1],
    "data/curate/report/explanation": ("tests/data/curate/report/test_removal_reports.py",),
    "data/curate/report/histograms": ("tests/data/curate/report/test_removal_reports.py",),
    "data/curate/report/removal_table": ("tests/data/curate/report/test_removal_reports.py",),
    "data/curate/report/report_page": ("tests/data/curate/report/test_removal_reports.py",),
    "data/curate/scoring": CURATION[:1],
    "data/curate/document_step": CURATION[:1],
    "data/curate/executors/workers": CURATION[:1],
    "data/curate/steps/bounds": FILTERS,
    "data/curate/steps/c4": FILTERS,
    "data/curate/steps/deflate": ("tests/data/curate/steps/test_text_steps.py",),
    "data/curate/steps/fineweb": FILTERS,
    "data/curate/steps/gopher": FILTERS,
    "data/curate/steps/identifiers": ("tests/data/curate/steps/test_redact.py",),
    "data/curate/steps/language": ("tests/data/curate/steps/test_text_steps.py",),
    "data/curate/steps/normalise": ("tests/data/curate/steps/test_text_steps.py",),
    "data/curate/steps/profanity": ("tests/data/curate/steps/test_text_steps.py",),
    "data/curate/steps/punctuation": FILTERS,
    "data/curate/steps/repetition": FILTERS,
    "data/curate/steps/surrogates": ("tests/data/curate/steps/test_redact.py",),
    "data/curate/workspace": CURATION[:1],
    "data/shared_fields": ("tests/train/run/test_problems.py",),
    "data/kinds": (*RECORDS, "tests/train/test_chats.py"),
    "data/records/chat_formats": RECORDS,
    "data/records/examples": RECORDS,
    "data/records/messages": RECORDS,
    "data/records/records": (*RECORDS, "tests/data/test_paths.py"),
    "data/rows/mix_plan": (MIXED_RUN,),
    "data/rows/mixed_rows": ("tests/data/test_pretraining.py",),
    "data/rows/prefetch": (
        "tests/data/test_pretraining.py",
        "tests/data/rows/test_mixed_rows.py",
        "tests/train/interruptions/test_kill.py",
    ),
    "data/sources/files": (
        "tests/data/sources/test_source.py",
        "tests/data/records/test_chats.py",
        "tests/data/test_paths.py",
        "tests/test_safety.py",
    ),
    "data/synthetic/__init__": ("tests/data/synthetic/test_in_context.py",),
    "data/tally": ("tests/data/tokenized/test_shards.py", *RECORDS, MIXED_RUN),
    "data/tokenized/shard_cache": (MIXED_RUN,),
    "data/tokenized/texts": ("tests/data/rows/test_mixed_rows.py", MIXED_RUN),
    "data/templates/call_forms": (CALLS,),
    "data/templates/offsets": (*TEMPLATES, *RECORDS),
    "data/templates/rendering": (*TEMPLATES, *RECORDS),
    "data/templates/variables": (*TEMPLATES, *RECORDS),
    "data/tokenizers/__init__": (*TOKENIZERS, "tests/convert/test_hostile.py"),
    "data/tokenizers/bytelevel": TOKENIZERS,
    "data/tokenizers/hf": TOKENIZERS,
    "data/tokenizers/ranks": TOKENIZERS,
    "data/tokenizers/spm": TOKENIZERS,
    "decode/__init__": DECODE,
    "decode/sampling_settings": ("tests/decode/test_sampling_settings.py", *DECODE[:1]),
    "decode/search/branches": (
        "tests/decode/search/test_beam_search.py",
        "tests/decode/search/test_contrastive_search.py",
        "tests/decode/search/test_hypotheses.py",
    ),
    "decode/prompt_tokens": ("tests/data/test_reasoning.py", "tests/train/test_chats.py"),
    "decode/reply": ("tests/decode/test_fill_mask.py", *DECODE[2:], "tests/test_api.py"),
    "decode/serve/__init__": (SERVE[0],),
    "decode/serve/bulk/__init__": (BULK,),
    "decode/serve/bulk/bandwidth": (BULK,),
    "decode/serve/bulk/many_prompts": (BULK,),
    "decode/serve/capacities": (SERVE[0], FUZZ),
    "decode/serve/engine": (*SERVE, FUZZ),
    "decode/serve/http_api": (SERVE[1],),
    "decode/serve/lanes": (SERVE[0], FUZZ),
    "decode/serve/prefix_cache": (SERVE[0],),
    "decode/serve/prometheus": (SERVE[1],),
    "decode/serve/refill": ("tests/train/rl/test_policy_sampling.py",),
    "decode/serve/slots": (*SERVE, FUZZ),
    "decode/serve/tool_calls": (CALLS,),
    "decode/speculate/__init__": (DRAFTED,),
    "decode/speculate/draft_length": ("tests/decode/speculate/test_draft_length.py",),
    "decode/speculate/draft_model": (SPECULATE, DRAFTED),
    "decode/speculate/drafts": (SPECULATE, DRAFTED),
    "decode/speculate/multi_token_heads": (DRAFTED,),
    "decode/speculate/prompt_lookup": ("tests/decode/speculate/test_prompt_lookup.py", DRAFTED),
    "decode/speculate/speculative_loop": (SPECULATE, DRAFTED),
    "decode/speculate/speculative_sampling": (DRAFTED,),
    "decode/speculate/verification": ("tests/decode/speculate/test_verification.py",),
    "decode/serve/wire": (SERVE[1], CALLS),
    "decode/serve/worker": (SERVE[1],),
    "models/__init__": (COUNTS, GOLDEN, LAWS),
    "models/flax_modules/recompute": ("tests/models/test_flax_modules.py",),
    "models/layers/cache_kinds": (RINGS, QUANTISED),
    "models/layers/decoder": (GOLDEN, LAWS, RINGS),
    "models/layers/embedding_lookup": ("tests/train/run/test_certificate.py", GOLDEN),
    "models/layers/ffn": (GOLDEN, COUNTS),
    "models/layers/kv_cache": (*DECODE, LAWS, RINGS),
    "models/layers/mha": (GOLDEN, LAWS),
    "models/layers/mla": (f"{GOLDEN} -k deepseek", "tests/models/test_deepseek.py"),
    "models/layers/moe": (f"{GOLDEN} -k 'moe or mixtral or deepseek'",),
    "models/layers/quantised_cache": (QUANTISED,),
    "models/layers/ring_cache": (RINGS,),
    "models/layers/stack": (GOLDEN, LAWS),
    "models/layers/value_head": (
        "tests/objectives/preference/test_reward.py",
        "tests/train/rl/test_critic.py",
        "tests/convert/test_classifier.py",
    ),
    "models/model": (GOLDEN, *DECODE, LAWS),
    "objectives/__init__": (PLAIN, PAIRS, "tests/objectives/test_hidden.py"),
    "objectives/multi_token": (PLAIN, "tests/models/test_deepseek.py"),
    "objectives/clm": (*SFT, EXPERTS),
    "objectives/distill": (PLAIN,),
    "objectives/preference/dpo": DPO,
    "objectives/rl/grpo": RL,
    "objectives/log_probs": (*DPO, *REWARD),
    "objectives/mlm": HIDDEN,
    "objectives/objective": ("tests/objectives/test_lora.py",),
    "objectives/rl/ppo": RL,
    "objectives/preference/responses": DPO,
    "objectives/preference/reward": REWARD,
    "objectives/rl/policy_terms": RL,
    "objectives/seq2seq": HIDDEN,
    "objectives/sft": SFT,
    "objectives/targets": HIDDEN,
    "objectives/preference/kto": DPO,
    "ops/attention": ATTENTION,
    "ops/position_bias": ATTENTION,
    "ops/kernels/ring": ("tests/parallel/test_context_parallel.py",),
    "ops/kernels/blockwise": ATTENTION,
    "ops/kernels/machine_code": ("tests/ops/kernels/test_tiles.py",),
    "ops/kernels/tile_products": ("tests/ops/kernels/test_tiles.py",),
    "ops/losses/divergence": (PLAIN,),
    "ops/penalties": ("tests/ops/test_penalties.py", "tests/decode/test_sampling_settings.py"),
    "core/precision": ("tests/parallel/test_gradient_reduction.py",),
    "ops/quant/cache_entries": ("tests/ops/quant/test_cache_entries.py",),
    "ops/quant/__init__": ("tests/ops/quant/test_scheme.py",),
    "ops/quant/packing": ("tests/ops/quant/test_integers.py", "tests/ops/quant/test_mxfp4.py"),
    "ops/kernels/wide_gradients": ("tests/parallel/test_gradient_reduction.py",),
    "ops/linear": (
        "tests/objectives/test_lora.py",
        "tests/parallel/test_gradient_reduction.py",
        "tests/ops/quant/test_scheme.py",
    ),
    "ops/losses/cross_entropy": SFT,
    "ops/losses/preference": DPO,
    "ops/losses/ranking": REWARD,
    "ops/losses/advantages": RL,
    "ops/routing": (EXPERTS,),
    "ops/masks": ATTENTION,
    "ops/losses/shift": (PLAIN, "tests/models/test_deepseek.py"),
    "ops/losses/surrogate": RL,
    "parallel/agreement": ("tests/train/test_loop.py",),
    "parallel/expert_parallel": ("tests/parallel/test_expert_parallel.py",),
    "parallel/multihost": ("tests/cli/test_main.py",),
    "parallel/plan": ("tests/parallel/test_plan.py", f"{LAWS} -k llama"),
    "parallel/rules": ("tests/parallel/test_rules.py", f"{LAWS} -k llama"),
    "parallel/transfer": ("tests/train/test_stored_targets.py", "tests/train/rl/test_rollout.py"),
    "train/optim/diloco": ("tests/train/optim/test_diloco.py", "tests/train/run/test_problems.py"),
    "train/run/environment": ("tests/train/test_loop.py", "tests/train/run/test_plot.py"),
    "train/run/integrity": RESUMED,
    "train/run/interrupts": ("tests/train/interruptions/test_kill.py", *RESUMED[2:]),
    "train/run/objective_data": ("tests/train/test_preflight.py", "tests/train/test_chats.py"),
    "train/run/progress": ("tests/train/test_loop.py",),
    "train/run/trackers/tensorboard": (
        "tests/train/run/trackers/test_tensorboard.py",
        "tests/train/test_loop.py",
    ),
    "train/run/trackers/weights_biases": ("tests/train/run/trackers/test_weights_biases.py",),
    "train/run/trace": ("tests/train/test_loop.py",),
    "train/step": (
        f"{EXPERTS} -k adjusts",
        "tests/train/test_step.py",
        f"{LAWS} -k gpt",
        "tests/objectives/test_objective_laws.py",
    ),
}


def files_of(path: str) -> list[str]:
    """The test files of a module (a path under ROOT): of the same name, unless GUARDS names it
    later, then GUARDS', then those of its folder's tests that import it."""
    name = path.removeprefix("jaxlm/").removesuffix(".py")
    folder, _, stem = name.rpartition("/")
    first, named = f"tests/{folder}/test_{stem}.py", GUARDS.get(name, ())
    files = [first] if (sources.ROOT / first).is_file() and first not in named else []
    files += named
    dotted = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    files += [
        test
        for test in sorted(tests())
        if test.startswith(f"tests/{folder.partition('/')[0]}/") and dotted in tests()[test]
    ]
    return list(dict.fromkeys(files))


@functools.cache
def tests() -> dict[str, set[str]]:
    """{test file: what it imports} of all test files, by their paths under ROOT."""
    files: list[pathlib.Path] = sorted((sources.ROOT / "tests").rglob("test_*.py"))
    return {
        str(file.relative_to(sources.ROOT)): {
            name for name, _ in sources.imports(sources.nodes_of(file), file)
        }
        for file in files
    }
