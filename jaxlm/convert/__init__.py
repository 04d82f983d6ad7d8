"""Floor 4: checkpoints of transformers, read and written. To add a model_type: a line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm import models
from jaxlm.convert import bert, llama, t5
from jaxlm.convert.fields import Fields
from jaxlm.convert.table import Table


class Architecture(NamedTuple):
    """One `model_type` of transformers.

    read(fields) -> our Config. write(Config) -> their config.json, complete; ValueError where it
    cannot say what the Config says. names(Config) -> the Table. family: the class of the Config.
    """

    family: type
    read: Callable[[Fields], models.AnyConfig]
    write: Callable[[Any], dict[str, Any]]
    names: Callable[[Any], Table]


# Of a family's architectures, export takes the first whose `write` can say the Config.
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(models.bert.Config, *bert.BERT),
    "roberta": Architecture(models.bert.Config, *bert.ROBERTA),
    "longformer": Architecture(models.bert.Config, *bert.LONGFORMER),
    "t5": Architecture(models.t5.Config, t5.read, t5.write, t5.names),
    "llama": Architecture(models.llama.Config, llama.read, llama.write, llama.names),
}
