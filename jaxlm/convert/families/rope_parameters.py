"""Rotary positions in a config.json: `rope_parameters` of transformers 5, and `rope_scaling`,
`rope_theta` and `partial_rotary_factor` of earlier versions.

Under LongRoPE and dynamic NTK transformers chooses angles by the length of each call; here the
Config's `context` decides. An import takes the original context, within which both agree on every
text, and its model refuses longer texts; `at_context` returns the Config for those.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlm.convert import config_rows
from jaxlm.convert.config_json import Fields
from jaxlm.models import AnyConfig
from jaxlm.ops import rope


class Rope(NamedTuple):
    """theta: the base. scaling: how it is stretched. share: the part of each head that rotates."""

    theta: float
    scaling: rope.Scaling | None
    share: float


_LONGROPE = {
    "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"
}  # fmt: skip
# Keys that a record may hold along with its type, theta and share. "su" was LongRoPE's name once.
KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    },
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": _LONGROPE,
    "su": _LONGROPE,
}  # fmt: skip


def read(
    f: Fields,
    context: int,
    theta: float = 10000.0,
    share: float = 1.0,
    absent: Mapping[str, Any] | None = None,
) -> Rope:
    """The Rope of a config.json; theta and share are the defaults of its model_type,
    and absent is its record where there is none.

    context: its max_position_embeddings, the length Dynamic starts from and other types count
    their factor by. Fields outside the record replace what it leaves out, as in transformers,
    except `original_max_position_embeddings`, which there wins over the record's.

    Raises: ValueError for a rope_type or a key that is not known here, naming it, and where
    rope_parameters and rope_scaling contradict each other.
    """
    new, old = f.get("rope_parameters", {}), f.get("rope_scaling", {})
    torn = {k for k in new.keys() & old.keys() if new[k] != old[k]}
    if torn:
        raise ValueError(f"rope_parameters and rope_scaling differ in {sorted(torn)}")
    outside = {
        "rope_theta": f.get("rope_theta", theta),
        "partial_rotary_factor": f.get("partial_rotary_factor", share),
    }
    record = outside | (_present(new) | _present(old) or dict(absent or {}))
    original = f.get("original_max_position_embeddings", None)
    if original is not None and _kind(record) in ("llama3", "yarn", "longrope", "su"):
        record["original_max_position_embeddings"] = original
    return parse(record, context)


def parse(record: Mapping[str, Any], context: int, where: str = "rope_parameters") -> Rope:
    """The Rope of one record with its rope_theta.

    Raises: ValueError for a rope_type or a key that is not known here, and for a missing one.
    """
    kind, present = _kind(record), _present(record)
    if kind not in KEYS:
        raise ValueError(f"{where}: rope_type={kind!r} is not supported; there is {sorted(KEYS)}")
    free = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    unknown = {k: present[k] for k in sorted(present.keys() - free - KEYS[kind])}
    if unknown:
        raise ValueError(f"{where}: rope_type={kind!r} has no {unknown}; known: {KEYS[kind]}")
    try:
        scaling = _scaling(kind, present, context)
    except KeyError as error:
        raise ValueError(f"{where}: {error.args[0]} is missing for rope_type={kind!r}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    share = float(present.get("partial_rotary_factor", 1.0))
    return Rope(float(present["rope_theta"]), scaling, share)


def unsplit(rotary: Rope) -> Rope:
    """The Rope of a model_type that rotates whole heads. Raises: ValueError for one of a part."""
    if rotary.share != 1.0:
        raise ValueError(
            f"partial_rotary_factor={rotary.share} is not supported; this model_type rotates whole "
            "heads"
        )
    return rotary


def row(
    context: int,
    theta: float = 10000.0,
    *,
    head: str = "head",
    share: bool = False,
    absent: Mapping[str, Any] | None = None,
) -> config_rows.Row:
    """The row of `context`, `theta` and `scaling`, and of `rotary_share` where a part of each head
    may rotate. context, theta, absent: defaults as for `read`; head: the field with a head's size.
    """

    def to_ours(f: Fields, cfg: Any) -> dict[str, Any]:
        length = f.get("max_position_embeddings", context)
        rotary = read(f, length, theta, absent=absent)
        part = {"rotary_share": rotary.share} if share else {}
        rotary = rotary if share else unsplit(rotary)
        return {"context": length, "theta": rotary.theta, "scaling": rotary.scaling, **part}

    def to_theirs(cfg: Any) -> dict[str, Any]:
        part = cfg.rotary_share if share else 1.0
        return write(getattr(cfg, head), cfg.theta, cfg.scaling, cfg.context, part)

    ours = ("context", "theta", "scaling", *(("rotary_share",) if share else ()))
    return config_rows.Row(ours, to_ours, to_theirs)


def _present(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if v is not None}


def _kind(record: Mapping[str, Any]) -> str:
    return record.get("rope_type") or record.get("type") or "default"


def _scaling(kind: str, present: dict[str, Any], context: int) -> rope.Scaling | None:
    if kind == "default":
        return None
    original = present.get("original_max_position_embeddings", context)
    if kind in ("longrope", "su"):
        return rope.LongRope(
            short=tuple(float(x) for x in present["short_factor"]),
            long=tuple(float(x) for x in present["long_factor"]),
            original=original,
            factor=max(1.0, float(present.get("factor", context / original))),
            attention=_float(present.get("attention_factor")),
        )
    if kind == "yarn":
        return rope.Yarn(
            factor=float(present.get("factor", context / original)),
            original=original,
            beta_fast=float(present.get("beta_fast") or 32),
            beta_slow=float(present.get("beta_slow") or 1),
            attention=_float(present.get("attention_factor")),
            mscale=_float(present.get("mscale")),
            mscale_all=_float(present.get("mscale_all_dim")),
            truncate=present.get("truncate", True),
        )
    factor = float(present["factor"])
    if kind == "linear":
        return rope.Linear(factor)
    if kind == "dynamic":
        return rope.Dynamic(factor, context)
    low, high = float(present["low_freq_factor"]), float(present["high_freq_factor"])
    return rope.Llama3(factor, low, high, original)


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _by_length(cfg: AnyConfig) -> rope.Dynamic | rope.LongRope | None:
    """The scaling of a Config whose angles depend on the length of a text."""
    scaling = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}.get("scaling")
    return scaling if isinstance(scaling, rope.Dynamic | rope.LongRope) else None


def within_original(cfg: AnyConfig) -> AnyConfig:
    """The Config at the original context of its scaling, where angles depend on the length."""
    scaling = _by_length(cfg)
    return cfg if scaling is None else dataclasses.replace(cfg, context=scaling.original)


def at_context(cfg: AnyConfig, context: int) -> AnyConfig:
    """The Config for texts as long as `context`.

    Raises: ValueError where angles do not depend on the length.
    """
    if _by_length(cfg) is None:
        raise ValueError(
            f"--context {context}: the angles of this model do not depend on the length of a text; "
            "only LongRoPE's and dynamic NTK's do"
        )
    return dataclasses.replace(cfg, context=context)


def notice(cfg: AnyConfig) -> str | None:
    """Notice to users of a Config whose angles depend on the length; None for any other Config."""
    match _by_length(cfg):
        case rope.LongRope(original=original) if cfg.context > original:
            return (
                f"LongRoPE at context {cfg.context}: the long factors, for texts of more than "
                f"{original} tokens; transformers takes the short ones for texts up to {original}: "
                f"import without --context for those"
            )
        case rope.LongRope(original=original):
            return (
                f"LongRoPE at context {cfg.context}: the short factors, as transformers has them "
                f"for texts up to {original} tokens; longer ones are refused: import with "
                "--context N for the long factors"
            )
        case rope.Dynamic(original=original):
            return (
                f"dynamic NTK at context {cfg.context} (original {original}): transformers has "
                "these angles for texts of that length, and of any up to the original; longer ones "
                "are refused: import with --context N for texts of N tokens"
            )
    return None


def write(
    head: int, theta: float, scaling: rope.Scaling | None, context: int, share: float = 1.0
) -> dict[str, Any]:
    """The fields of a config.json that express it, `max_position_embeddings` among them: in the
    form of transformers 5, and along with it in the one that older readers know.

    max_position_embeddings is the context, but the original one under Dynamic, which transformers
    grows from there, and at least LongRoPE's original times its factor; NTK becomes the
    theta that it is.
    """
    record = parameters(head, theta, scaling, share)
    fields = {
        "max_position_embeddings": context,
        "rope_parameters": record,
        "rope_theta": record["rope_theta"],
    }
    if isinstance(scaling, rope.Dynamic):
        fields["max_position_embeddings"] = scaling.original
    if isinstance(scaling, rope.LongRope):
        stretched = round(scaling.factor * scaling.original)
        fields["max_position_embeddings"] = max(context, stretched)
    if share != 1.0:
        fields["partial_rotary_factor"] = share
    if record["rope_type"] != "default":
        free = ("rope_theta", "partial_rotary_factor")
        fields["rope_scaling"] = {k: v for k, v in record.items() if k not in free}
    return fields


def parameters(
    head: int, theta: float, scaling: rope.Scaling | None, share: float = 1.0
) -> dict[str, Any]:
    """The record `rope_parameters` of transformers 5, less Dynamic's original context."""
    record: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if share != 1.0:
        record["partial_rotary_factor"] = share
    match scaling:
        case None:
            return record
        case rope.Ntk(factor):
            return record | {"rope_theta": rope.stretched(int(head * share), theta, factor)}
        case rope.Linear(factor):
            return record | {"rope_type": "linear", "factor": factor}
        case rope.Dynamic(factor):
            return record | {"rope_type": "dynamic", "factor": factor}
    record |= {
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original,
    }
    match scaling:
        case rope.Llama3(low=low, high=high):
            own = {"rope_type": "llama3", "low_freq_factor": low, "high_freq_factor": high}
        case rope.Yarn():
            own = {
                "rope_type": "yarn",
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "attention_factor": scaling.attention,
                "mscale": scaling.mscale,
                "mscale_all_dim": scaling.mscale_all,
                "truncate": scaling.truncate,
            }
        case rope.LongRope():
            own = {
                "rope_type": "longrope",
                "short_factor": list(scaling.short),
                "long_factor": list(scaling.long),
                "attention_factor": scaling.attention,
            }
    return record | _present(own)
