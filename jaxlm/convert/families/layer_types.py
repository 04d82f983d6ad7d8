"""`layer_types` of a config.json: which layers see everything and which a window."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxlm.convert import config_rows
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


def every(n: int, layers: int) -> list[Reach]:
    """Layers of which every n-th is global, as a default."""
    return ["local" if i % n else "global" for i in range(1, layers + 1)]


def write(kinds: Sequence[str]) -> list[str]:
    """`layer_types` of layers whose kinds begin with "local" or "global"."""
    return [NAMES["local" if kind.startswith("local") else "global"] for kind in kinds]


def row(default: Callable[[Fields, Any], Sequence[Reach]]) -> config_rows.Row:
    """The row of `pattern`. default(config.json, fields of the rows before): as for `read`."""
    return config_rows.Row(
        ("pattern",),
        lambda f, cfg: {"pattern": read(f, cfg.layers, default(f, cfg))},
        lambda cfg: {"layer_types": write(cfg.kinds)},
    )
