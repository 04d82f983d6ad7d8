"""A ladder of models: LLaMA-style Configs by size, with the depth that goes with a width.

    layers = 12 (embed / 768)^.586     through GPT-2 small (12 x 768, Radford et al. 2019) and
                                       LLaMA 7B (32 x 4096, Touvron et al. 2023)
    heads of 16 below a width of 256, of 64 below 2,048, of 128 from there on
    ffn = 8/3 embed, rounded up, so that SwiGLU has the 8 embed^2 weights of a plain layer of 4
    (Shazeer 2020)

The loss depends little on the shape at a given size (Kaplan et al. 2020, figure 5: 2 % over a
40-fold range of width to depth), but models of one law should be of one family of shapes.
"""

import math

from jaxlm import models
from jaxlm.models import llama
from jaxlm.scaling.cost import conventions
from jaxlm.scaling.table import Counting

# (width, layers) of the two models the depth goes through.
SMALL, LARGE = (768, 12), (4096, 32)
# (widths below, size of a head, which widths are multiples of)
HEADS = ((256, 16), (2048, 64), (math.inf, 128))
SMALLEST, LARGEST = 16, 32768
# Rungs have depths this share from the formula's, at most and at least one layer, so that sizes
# between two widths are reached too.
STRETCH = 0.1


def rung(embed: int, vocab: int, layers: int | None = None) -> llama.Config:
    """The Config of a width; layers None is the depth that goes with it.

    Raises: ValueError for a width that is no multiple of its heads' size.
    """
    head = next(head for below, head in HEADS if embed < below)
    if embed < SMALLEST or embed % head:
        raise ValueError(
            f"embed: {embed} given; a multiple of {head} from {SMALLEST} on is needed at this width"
        )
    wide = 128 if head > 16 else 8
    return llama.Config(
        vocab=vocab,
        embed=embed,
        layers=depth(embed) if layers is None else layers,
        heads=embed // head,
        kv=embed // head,
        head=head,
        ffn=-(-embed * 8 // (3 * wide)) * wide,
        qk_norm=True,
    )


def depth(embed: int) -> int:
    """The layers that go with a width, at least 2."""
    exponent = math.log(LARGE[1] / SMALL[1]) / math.log(LARGE[0] / SMALL[0])
    return max(round(SMALL[1] * (embed / SMALL[0]) ** exponent), 2)


def nearest(params: float, how: Counting | str = "matmul-only", vocab: int = 32768) -> llama.Config:
    """The Config of the ladder nearest to N = params, by the ratio of the two; its depth is at most
    a tenth (and a layer) from the one that goes with its width. From 1.5 million on its N is within
    a tenth of the request; rungs are further apart below.

    how: what N counts; "given" is taken as "total". vocab: token ids, which decide the width too
    where embeddings count.

    Raises: ValueError for N outside the ladder, naming its ends.
    """
    counted = how if isinstance(how, str) else how.params
    counted = "total" if counted == "given" else counted

    def off(cfg: llama.Config) -> float:
        return abs(math.log(conventions.params(cfg, counted) / params))

    if not params > 0:
        raise ValueError(f"params: {params} given; a number above 0 is needed")
    ends = [conventions.params(rung(w, vocab), counted) for w in (SMALLEST, LARGEST)]
    if not ends[0] / 1.5 <= params <= ends[1] * 1.5:
        raise ValueError(
            f"params: {params:.4g} {counted} given; the ladder goes from {ends[0]:.4g} to "
            f"{ends[1]:.4g} with a vocabulary of {vocab}"
        )
    plain = [rung(w, vocab) for w in _widths()]
    close = sorted(plain, key=off)[:8]
    return min((cfg for rough in close for cfg in _stretched(rough)), key=off)


def _widths() -> list[int]:
    widths, width = [], SMALLEST
    while width <= LARGEST:
        widths.append(width)
        head = next(head for below, head in HEADS if width < below)
        # from one multiple to the next, but no finer than a sixteenth of the width
        width += max(head, width // 16 // head * head)
        head = next(head for below, head in HEADS if width < below)
        width -= width % head
    return widths


def _stretched(cfg: llama.Config) -> list[llama.Config]:
    most = max(round(STRETCH * cfg.layers), 1)
    depths = range(max(cfg.layers - most, 2), cfg.layers + most + 1)
    nearest_first = sorted(depths, key=lambda layers: abs(layers - cfg.layers))
    return [rung(cfg.embed, cfg.vocab, layers) for layers in nearest_first]


def describe(cfg: models.AnyConfig) -> str:
    """A Config of the ladder in words: "12 layers of width 768, 12 heads of 64, ffn 2048"."""
    assert isinstance(cfg, llama.Config)
    return (
        f"{cfg.layers} layers of width {cfg.embed}, {cfg.heads} heads of {cfg.head}, ffn {cfg.ffn}"
    )
