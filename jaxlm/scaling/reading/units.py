"""Units of N, D, C and loss in headers and cells: `params (B)`, `total_gflops`, `12B tokens`.

unit("params", "B").factor          # 1e9
unit("flops", "PF-days").factor     # 8.64e19
unit("loss", "bits per token")      # log 2 nats
"""

import re
from typing import NamedTuple

# Counts of parameters and tokens.
COUNTS = {
    word: 10.0**power
    for power, words in (
        (3, ("k", "thousand", "thousands")),
        (6, ("m", "mm", "mio", "mn", "million", "millions")),
        (9, ("b", "bn", "g", "billion", "billions")),
        (12, ("t", "tn", "trillion", "trillions")),
    )
    for word in words
}
PREFIXES = {
    word: 10.0**power
    for power, words in (
        (3, ("k", "kilo")),
        (6, ("m", "mega")),
        (9, ("g", "giga")),
        (12, ("t", "tera")),
        (15, ("p", "peta")),
        (18, ("e", "exa")),
        (21, ("z", "zetta")),
        (24, ("y", "yotta")),
    )
    for word in words
}
SECONDS = {"day": 86400.0, "hour": 3600.0}
# gflops, pf_days, petaflop_s_days
_FLOPS = re.compile(
    r"(?P<prefix>kilo|mega|giga|tera|peta|exa|zetta|yotta|[kmgtpezy])?_?(?:flops?|f)"
    r"(?P<time>(?:_?s)?_?(?P<span>day|hour)s?)?"
)
_POWER = re.compile(r"[x×*]?\s*(?:10\^(?P<power>\d+)|(?P<number>\d+\.?\d*(?:e\+?\d+)?))")
_SCALED = re.compile(r"(?P<number>\d+\.?\d*)\s*(?P<unit>[a-z]+)")  # 512K tokens to a step
# Words that name the thing counted and change nothing: "12B tokens".
_WORDS = {"params", "parameters", "param", "tokens", "token", "tok", "toks", "of", "in"}
BIT = 0.6931471805599453  # nats
# name -> (what one is in nats, the unit that the loss then has)
LOSSES = {
    word: (factor, loss)
    for factor, loss, words in (
        (1.0, "nats per token", ("nats", "nat", "nats_per_token", "nats_token")),
        (BIT, "nats per token", ("bits", "bit", "bits_per_token", "bits_token")),
        (1.0, "nats per byte", ("nats_per_byte", "nats_byte")),
        (BIT, "nats per byte", ("bits_per_byte", "bits_byte", "bpb")),
        (BIT, "nats per character", ("bits_per_char", "bits_per_character", "bpc")),
    )
    for word in words
}
PERPLEXITY = ("perplexity", "ppl")


class Unit(NamedTuple):
    """The unit of the numbers in a column."""

    text: str  # as it was written
    factor: float  # what 1 is in parameters, tokens, FLOPs or nats
    log: bool = False  # whether the loss is the logarithm of the number: a perplexity
    loss: str = "nats per token"  # the loss's unit after conversion


ONE = Unit("", 1.0)


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
        match = _FLOPS.fullmatch(name)
        if not match:
            return None
        factor = PREFIXES[match["prefix"]] if match["prefix"] else 1.0
        return Unit(text, factor * (SECONDS[match["span"]] if match["time"] else 1.0))
    if not name:
        return Unit(text, 1.0) if plain(text) else None
    scaled = _SCALED.fullmatch(text.strip().lower())
    if scaled and scaled["unit"] in COUNTS and float(scaled["number"]) > 0:
        return Unit(text, float(scaled["number"]) * COUNTS[scaled["unit"]])
    return Unit(text, COUNTS[name]) if name in COUNTS else None


def examples(field: str) -> str:
    """Units of a field, for messages."""
    if field in ("loss", "loss_se"):
        return "nats, bits, bits_per_byte, perplexity"
    return "FLOP, GFLOP, EFLOP, PF-days, 1e18" if field == "flops" else "1, K, M, B, T, 1e6"
