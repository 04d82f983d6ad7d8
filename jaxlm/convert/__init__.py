"""Floor 6: checkpoints of transformers, read and written. To add a model_type: a line here."""

from jaxlm.convert.config_rows import Architecture
from jaxlm.convert.families import bert, deepseek, gemma, gpt, llama, mistral, palm, qwen, t5

# Among a family's architectures, export takes the first that can express the Config.
_ALL = (
    bert.BERT,
    bert.ROBERTA,
    bert.LONGFORMER,
    t5.T5,
    gpt.GPT2,
    gpt.GPT1,
    gpt.OPT,
    gpt.BLOOM,
    palm.GPTJ,
    palm.NEOX,
    palm.FALCON,
    palm.COHERE,
    gemma.GEMMA1,
    gemma.GEMMA2,
    gemma.GEMMA3,
    gemma.GEMMA3_IMAGES,
    qwen.QWEN2,
    qwen.QWEN3,
    qwen.QWEN3_MOE,
    qwen.QWEN2_MOE,
    llama.LLAMA,
    mistral.MISTRAL,
    mistral.MIXTRAL,
    mistral.GPT_OSS,
    llama.OLMO2,
    llama.PHI3,
    deepseek.V3,
    deepseek.V2,
)
ARCHITECTURES: dict[str, Architecture] = {known.model_type: known for known in _ALL}
