"""`layer_types` of a config.json: which layers see everything and which a window."""

from collections.abc import Sequence
from typing import Literal

from jaxlm.convert.config_json import Fields

Reach = Literal["local", "global"]
NAMES: dict[Reach, str] = {"global": "full_attention", "local": "sliding_attention"}


def read(f: Fields, layers: int, default: Sequence[Reach]) -> tuple[Reach, ...]:
    """The shortest pattern that repeats to what each layer sees; default: where there is no
    `layer_types`. The default may be longer than the layers are.

    Raises: ValueError for an unknown type, and for a number of them that is not the layers'.
    """
    given = f.get("layer_types", None)
    ours = {theirs: name for name, theirs in NAMES.items()}
    if given is None:
        reach = tuple(default)[:layers]
    else:
        unknown = sorted(set(given) - set(ours))
        if unknown:
            raise ValueError(f"layer_types: {unknown} are not supported; there is {sorted(ours)}")
        reach = tuple(ours[theirs] for theirs in given)
    if len(reach) != layers:
        raise ValueError(f"layer_types: {len(reach)} given; num_hidden_layers={layers}")
    repeats = (n for n in range(1, layers) if reach[n:] == reach[: layers - n])
    return reach[: next(repeats, layers)]


def write(kinds: Sequence[str]) -> list[str]:
    """`layer_types` of layers whose kinds begin with "local" or "global"."""
    return [NAMES["local" if kind.startswith("local") else "global"] for kind in kinds]
