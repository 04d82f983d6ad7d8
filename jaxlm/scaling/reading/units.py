"""Units of N, D, C and loss in headers and cells: `params (B)`, `total_gflops`, `12B tokens`.

    unit("params", "B").factor          # 1e9
    unit("flops", "PF-days").factor     # 8.64e19
    unit("loss", "bits per token")      # log 2 nats
"""

import math
import re
from typing import NamedTuple

# Counts of parameters and tokens.
COUNTS = {
    **dict.fromkeys(("k", "thousand", "thousands"), 1e3),
    **dict.fromkeys(("m", "mm", "mio", "mn", "million", "millions"), 1e6),
    **dict.fromkeys(("b", "bn", "g", "billion", "billions"), 1e9),
    **dict.fromkeys(("t", "tn", "trillion", "trillions"), 1e12),
}
PREFIXES = {
    **dict.fromkeys(("k", "kilo"), 1e3),
    **dict.fromkeys(("m", "mega"), 1e6),
    **dict.fromkeys(("g", "giga"), 1e9),
    **dict.fromkeys(("t", "tera"), 1e12),
    **dict.fromkeys(("p", "peta"), 1e15),
    **dict.fromkeys(("e", "exa"), 1e18),
    **dict.fromkeys(("z", "zetta"), 1e21),
    **dict.fromkeys(("y", "yotta"), 1e24),
}
SECONDS = {"day": 86400.0, "hour": 3600.0}
# gflops, pf_days, petaflop_s_days
_FLOPS = re.compile(
    r"(?P<prefix>kilo|mega|giga|tera|peta|exa|zetta|yotta|[kmgtpezy])?_?(?:flops?|f)"
    r"(?P<time>(?:_?s)?_?(?P<span>day|hour)s?)?"
)
_POWER = re.compile(r"[x×*]?\s*(?:10\^(?P<power>\d+)|(?P<number>\d+\.?\d*(?:e\+?\d+)?))")
# Words that name the thing counted and change nothing: "12B tokens".
_WORDS = {"params", "parameters", "param", "tokens", "token", "tok", "toks", "of", "in"}
# name -> (what one is in nats, the unit that the loss then has)
LOSSES = {
    **dict.fromkeys(("nats", "nat", "nats_per_token", "nats_token"), (1.0, "nats per token")),
    **dict.fromkeys(("bits", "bit", "bits_per_token", "bits_token"), (math.log(2), "nats per token")),
    **dict.fromkeys(("nats_per_byte", "nats_byte"), (1.0, "nats per byte")),
    **dict.fromkeys(("bits_per_byte", "bits_byte", "bpb"), (math.log(2), "nats per byte")),
    **dict.fromkeys(("bits_per_char", "bits_per_character", "bpc"), (math.log(2), "nats per character")),
}
PERPLEXITY = ("perplexity", "ppl")


class Unit(NamedTuple):
    """What a number in a column counts."""

    text: str  # as it was written
    factor: float  # what 1 is in parameters, tokens, FLOPs or nats
    log: bool = False  # whether the loss is the logarithm of the number: a perplexity
    loss: str = "nats per token"  # the loss's unit after conversion


def plain(name: str) -> str:
    """A name in small letters, with `_` for all that is no letter and no digit."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def unit(field: str, text: str) -> Unit | None:
    """The unit that a text names for params, tokens, unique, flops or loss; None for no unit."""
    power = _POWER.fullmatch(text.strip().lower())
    if power:
        value = 10.0 ** int(power["power"]) if power["power"] else float(power["number"])
        return Unit(text, value) if value > 0 else None
    words = [w for w in plain(text).split("_") if w not in _WORDS or field == "loss"]
    name = "_".join(words)
    if field in ("loss", "loss_se"):
        if name in PERPLEXITY and field == "loss":
            return Unit(text, 1.0, True)
        return Unit(text, LOSSES[name][0], loss=LOSSES[name][1]) if name in LOSSES else None
    if field == "flops":
        if name in PREFIXES:
            return Unit(text, PREFIXES[name])
        found = _FLOPS.fullmatch(name)
        if not found:
            return None
        factor = PREFIXES[found["prefix"]] if found["prefix"] else 1.0
        return Unit(text, factor * (SECONDS[found["span"]] if found["time"] else 1.0))
    if not name:
        return Unit(text, 1.0) if plain(text) else None
    return Unit(text, COUNTS[name]) if name in COUNTS else None


def examples(field: str) -> str:
    """Units of a field, for messages."""
    if field in ("loss", "loss_se"):
        return "nats, bits, bits_per_byte, perplexity"
    return "FLOP, GFLOP, EFLOP, PF-days, 1e18" if field == "flops" else "1, K, M, B, T, 1e6"
