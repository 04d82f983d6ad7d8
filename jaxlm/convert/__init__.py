"""Floor 6: checkpoints of transformers, read and written. To add a model_type: a line here."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from jaxlm import models
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import bert, deepseek, gemma, gpt, llama, mistral, palm, qwen, t5
from jaxlm.convert.weight_rows import Table


class Architecture(NamedTuple):
    """One `model_type` of transformers.

    read(fields) -> our Config. write(Config) -> their config.json, complete; ValueError where it
    cannot express the Config. names(Config) -> the Table. family: the class of the Config.
    settle(Config, names of tensors) -> the Config of a checkpoint that has these, where config.json
    does not decide it.
    """

    family: type
    read: Callable[[Fields], models.AnyConfig]
    write: Callable[[Any], dict[str, Any]]
    names: Callable[[Any], Table]
    settle: Callable[[Any, Collection[str]], Any] | None = None


# Among a family's architectures, export takes the first whose `write` can express the Config.
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(models.bert.Config, *bert.BERT),
    "roberta": Architecture(models.bert.Config, *bert.ROBERTA),
    "longformer": Architecture(models.bert.Config, *bert.LONGFORMER),
    "t5": Architecture(models.t5.Config, t5.read, t5.write, t5.names, t5.settle),
    "gpt2": Architecture(models.gpt.Config, *gpt.GPT2),
    "openai-gpt": Architecture(models.gpt.Config, *gpt.GPT1),
    "opt": Architecture(models.gpt.Config, *gpt.OPT),
    "bloom": Architecture(models.gpt.Config, *gpt.BLOOM),
    "gptj": Architecture(models.palm.Config, *palm.GPTJ),
    "gpt_neox": Architecture(models.palm.Config, *palm.NEOX),
    "falcon": Architecture(models.palm.Config, *palm.FALCON),
    "cohere": Architecture(models.palm.Config, *palm.COHERE),
    "gemma": Architecture(models.gemma.Config, *gemma.GEMMA1),
    "gemma2": Architecture(models.gemma.Config, *gemma.GEMMA2),
    "gemma3_text": Architecture(models.gemma.Config, *gemma.GEMMA3),
    "gemma3": Architecture(models.gemma.Config, *gemma.GEMMA3_IMAGES),
    "qwen2": Architecture(models.qwen.Config, *qwen.QWEN2),
    "qwen3": Architecture(models.qwen.Config, *qwen.QWEN3),
    "qwen3_moe": Architecture(models.qwen.Config, *qwen.QWEN3_MOE),
    "qwen2_moe": Architecture(models.qwen.Config, *qwen.QWEN2_MOE),
    "llama": Architecture(models.llama.Config, llama.read, llama.write, llama.names),
    "mistral": Architecture(models.mistral.Config, *mistral.MISTRAL),
    "mixtral": Architecture(models.mistral.Config, *mistral.MIXTRAL),
    "gpt_oss": Architecture(models.mistral.Config, *mistral.GPT_OSS),
    "olmo2": Architecture(
        models.llama.Config, llama.olmo2_read, llama.olmo2_write, llama.olmo2_names
    ),
    "phi3": Architecture(models.llama.Config, llama.phi3_read, llama.phi3_write, llama.phi3_names),
    "deepseek_v3": Architecture(models.deepseek.Config, *deepseek.V3),
    "deepseek_v2": Architecture(models.deepseek.Config, *deepseek.V2),
}
