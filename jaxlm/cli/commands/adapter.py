"""`jaxlm adapter`: low-rank adapters as peft's files, from them, and as plain weights."""

import pathlib
from collections.abc import Sequence

import tyro

from jaxlm.convert import adapters
from jaxlm.train import trained_weights
from jaxlm.train.run import environment

Path = tyro.conf.Positional[pathlib.Path]


def adapter(args: Sequence[str]) -> int:
    """jaxlm adapter export | import | merge ..."""
    environment.quiet()
    actions = {"export": _export, "import": _import, "merge": _merge}
    return tyro.extras.subcommand_cli_from_dict(actions, args=list(args), prog="jaxlm adapter")


def _export(
    run: Path,
    target: Path,
    base: str | None = None,
    model_type: str | None = None,
    checkpoint: trained_weights.Which = "last",
) -> int:
    """Write the adapters of a run as a directory that peft loads.

    Args:
        run: The run directory, such as runs/lora.
        target: The directory to make; it must not exist.
        base: What the files call the model underneath: a directory of transformers (which `jaxlm
            export` writes from the run it started from), or a name on a hub.
        model_type: Which architecture of transformers, as for `jaxlm export`.
        checkpoint: The last checkpoint, or the one with the best evaluation.
    """
    names = adapters.export(run, target, base=base, model_type=model_type, which=checkpoint)
    print(f"{target}: adapters of {len(names)} modules")
    return 0


def _import(source: Path, base: Path, run: Path) -> int:
    """Make a run directory of peft's adapters and the run whose weights they adapt.

    Args:
        source: The directory that holds adapter_config.json and adapter_model.safetensors.
        base: The run directory of the model, such as `jaxlm import` makes.
        run: The run directory to make; it must not exist.
    """
    imported = adapters.import_adapter(source, base, run)
    assert imported.adapter is not None
    print(
        f"{run}: rank {imported.adapter.rank} on {len(imported.adapter.targets)} weights of {base}"
    )
    return 0


def _merge(run: Path, target: Path, checkpoint: trained_weights.Which = "last") -> int:
    """Make a run directory of plain weights, which needs neither adapters nor their base.

    Args:
        run: The run directory, such as runs/lora.
        target: The run directory to make; it must not exist.
        checkpoint: The last checkpoint, or the one with the best evaluation.
    """
    adapters.merge(run, target, checkpoint)
    print(f"{target}: merged")
    return 0
