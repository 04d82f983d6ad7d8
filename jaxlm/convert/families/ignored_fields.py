"""Fields of a config.json that change nothing an import computes, which makes them safe to skip.

None is listed on trust: `tests/convert/test_law.py` sets each of them to another value on a tiny
transformers model and requires the same logits; for names that transformers' configs do not
declare, it also requires that the model never reads them. A field that changes the logits of one
architecture is listed only in the rows of the others.
"""

# Acts in training alone (dropout, initialisation, auxiliary losses): of no consequence to logits,
# and a setting of the run here, not of the model.
TRAINING = frozenset({
    "activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop",
    "aux_loss_alpha", "classifier_dropout", "dropout", "dropout_rate", "embd_pdrop",
    "gradient_checkpointing", "hidden_dropout", "hidden_dropout_prob", "init_std",
    "initializer_factor", "initializer_range", "layerdrop", "resid_pdrop", "router_aux_loss_coef",
    "router_jitter_noise", "seq_aux", "summary_first_dropout",
})  # fmt: skip

# Facts about files, the library, generation, tokenizers and heads on top of the language model.
FACTS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash",
    "_flash_attn_2_enabled", "_name_or_path", "_num_labels", "architectures", "auto_map",
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cache_implementation",
    "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
    "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "id2label", "keys_to_ignore_at_inference", "label2id", "length_penalty",
    "max_length", "min_length", "model_max_length", "model_type", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_router_logits", "output_scores", "prefix",
    "pretraining_tp", "problem_type", "pruned_heads", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
    "summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "unk_token_id", "use_bfloat16", "use_cache",
})  # fmt: skip

# Remnants of the code that published models were trained with, which transformers never reads.
REMNANTS = frozenset({
    "attention_softmax_in_fp32", "bias_dropout_fusion", "directionality", "ep_size", "ff_factor",
    "full_attn_mod", "initial_context_length", "interpolate_factor", "is_llama_config",
    "masked_softmax_fusion", "max_sequence_length", "n_ctx", "n_special", "offset_alibi",
    "onnx_export", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_size_per_head", "pooler_type", "predict_special_tokens", "reorder_and_upcast_attn",
    "rope_interleaved", "skip_bias_add", "skip_bias_add_qkv", "sliding_window_size",
    "unsloth_fixed", "unsloth_version",
})  # fmt: skip

COMMON = TRAINING | FACTS | REMNANTS

_PADDING = frozenset({"pad_token_id"})
_DECODER = _PADDING | {"is_encoder_decoder", "is_decoder"}

# Fields that are harmless in one architecture and not in another, by model_type.
BY_MODEL_TYPE: dict[str, frozenset[str]] = {
    "bert": _PADDING | {"is_causal", "is_encoder_decoder"},
    "roberta": frozenset({"is_causal", "is_encoder_decoder"}),
    "longformer": frozenset({"is_causal", "is_decoder", "is_encoder_decoder"}),
    "t5": _PADDING,
    "gpt2": _DECODER,
    "openai-gpt": _DECODER | {"is_causal"},
    "opt": _DECODER,
    # a width that is always four times the model's
    "bloom": _DECODER | {"n_inner"},
    "gptj": _DECODER,
    "gpt_neox": _DECODER,
    "falcon": _DECODER,
    "cohere": _DECODER,
    "gemma": _DECODER | {"hidden_activation"},
    "gemma2": _DECODER | {"hidden_act"},
    "gemma3_text": _DECODER | {"hidden_act", "_sliding_window_pattern"},
    # of its text, and of images
    "gemma3": _DECODER
    | {
        "hidden_act",
        "_sliding_window_pattern",
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
    },
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "qwen3_moe": _DECODER | {"max_window_layers"},
    "qwen2_moe": _DECODER,
    "llama": _DECODER,
    "mistral": _DECODER,
    "mixtral": _DECODER,
    # repeats num_experts_per_tok
    "gpt_oss": _DECODER | {"experts_per_token"},
    "olmo2": _DECODER,
    "phi3": _DECODER,
    "deepseek_v3": _DECODER,
    "deepseek_v2": _DECODER,
}


def names(model_type: str | None) -> frozenset[str]:
    """The fields that an import of this model_type may skip."""
    return COMMON | BY_MODEL_TYPE.get(model_type or "", frozenset())
