"""Figures of model families, drawn from the specs of their presets: nothing is allocated.

The order of operations follows from the weights and the kinds of layer: `a_norm` is before sublayer
`a`, `a_post_norm` after it; of a layer `post`, and in BERT, the norm is after the sum.
"""

import math

from jaxlm import models
from jaxlm.core import param
from jaxlm.models.layers import stack

SUBLAYERS = ("attn", "cross", "ffn", "moe")
NORMS = ("_norm", "_post_norm")


def figure(preset: str) -> str:
    """The layers of a preset as a text figure, with the shapes of their weights.

    Raises: ValueError for an unknown preset, or a weight that the figure has no place for.
    """
    presets = models.presets()
    if preset not in presets:
        raise ValueError(f"block: {preset!r} given; expected one of {sorted(presets)}")
    spec = models.spec(presets[preset])
    family = type(presets[preset]).KIND
    lines = [f"{preset}: {param.count(spec):,} parameters", ""]
    if "encoder" in spec:
        lines += ["sources [B, S]", *_weights(spec, "embed"), *_weights(spec, "encoder_bias")]
        lines += [*_stack(spec["encoder"], family), *_weights(spec, "encoder_norm")]
        lines += ["encoded [B, S, D], which cross attends to", "", "targets [B, T]"]
    else:
        lines += ["tokens [B, T]"]
    lines += [*_weights(spec, "embed"), *_weights(spec, "bias"), *_stack(spec["stack"], family)]
    after = ("norm", "mlm", "unembed", "unembed_bias", "ahead")
    lines += [line for name in after for line in _weights(spec, name)]
    tied = "" if "unembed" in spec else ", by the embedding table"
    lines.append(f"logits [B, T, vocab {presets[preset].vocab}]{tied}")
    known = {"encoder", "encoder_bias", "encoder_norm", "embed", "bias", "stack", *after}
    if unknown := set(spec) - known:
        raise ValueError(f"block: {preset} has weights {sorted(unknown)} that no figure shows")
    return "\n".join(["```text", *lines, "```"])


def presets() -> str:
    """A Markdown table of the families, their presets and numbers of parameters."""
    lines = ["| family | presets |", "|---|---|"]
    for name, module in sorted(models.FAMILIES.items()):
        sizes = (
            f"`{n}` ({_round(param.count(module.spec(c)))})" for n, c in module.PRESETS.items()
        )
        lines.append(f"| `{name}` | {', '.join(sizes)} |")
    return "\n".join(lines)


def _round(count: int) -> str:
    """Three digits and a unit: 6,738,415,616 -> 6.74B."""
    power = min(3, int(math.log10(count)) // 3)
    return f"{count / 1000**power:.3g}{('', 'K', 'M', 'B')[power]}"


def _stack(layers: param.Tree, family: str) -> list[str]:
    """The distinct layers of a stack, each with its number, its path and its weights."""
    drawn: dict[tuple[str, ...], list[str]] = {}
    for segment, name, _ in stack.places(layers):
        layer, kind = layers[segment][name], name.partition("_")[2]
        text = [*path(layer, kind, family), ""]
        text += [line for group in layer for line in _weights(layer, group, 1)]
        drawn.setdefault(tuple(text), []).append(kind)
    lines = []
    for text, kinds in drawn.items():
        counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
        lines += ["", f"  layers: {', '.join(counts)}", *(f"    {t}".rstrip() for t in text)]
    return [*lines, ""]


def path(layer: param.Tree, kind: str, family: str) -> list[str]:
    """The path of x through a layer, as lines of text.

    Raises: ValueError for a weight that the figure has no place for.
    """
    sublayers = [name for name in SUBLAYERS if name in layer]
    if family == "palm" and kind == "parallel":
        second = "ffn_norm" if "ffn_norm" in layer else "attn_norm"
        drawn = {*sublayers, "attn_norm", second}
        branches = ["+-- attn_norm -- attn --", f"+-- {second} -- ffn --"]
        width = max(map(len, branches)) + 1
        lines = [f"x --{branches[0].ljust(width, '-')}+", f"    {branches[1].ljust(width, '-')}+"]
        lines.append(f"    +{'-' * (width - 2)}(+)--")
    else:
        drawn, track, below = {*sublayers}, "x", " "
        for name in sublayers:
            norms = [f"{'ffn' if name == 'moe' else name}{end}" for end in NORMS]
            before, *after = norms
            drawn |= {*norms} & {*layer}
            outside = kind == "post" or family == "bert"  # the norm is after the sum
            parts = [before] if before in layer and not outside else []
            parts += [name, *(n for n in after if n in layer)]
            inner, last = f"-- {' -- '.join(parts)} --", f" -- {before}" if outside else ""
            track += f" --+{inner}(+){last}"
            below += f"   +{'-' * (len(inner) + 1)}+ {' ' * len(last)}"
        lines = [f"{track} --", below.rstrip()]
    if unknown := set(layer) - drawn:
        raise ValueError(f"block: a {family} layer has weights {sorted(unknown)} without a place")
    return lines


def _weights(tree: param.Tree, name: str, skip: int = 0) -> list[str]:
    """`path  [axis size, ...]` of the weights under a name, without their first `skip` axes."""
    lines = []
    for key, p in param.flatten({name: tree[name]} if name in tree else {}).items():
        axes = ", ".join(f"{a} {n}" for a, n in list(zip(p.axes, p.shape))[skip:])
        lines.append(f"{key:<22} [{axes}]")
    return lines
