"""What each attention kernel knows: its cells as computations, and docs/attention.md.

    python -m tests.ops.attention_table

computes every cell against the oracle, value and gradient, and writes the table only if all agree.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.ops import attention, position_bias
from jaxlm.ops.kernels import cudnn, splash
from tests.ops import attention_oracle as oracle

PAGE = pathlib.Path(__file__).parents[2] / "docs/attention.md"

# Cell: (settings, kernels that support them in addition to "xla", which supports all).
EVERY = ("blockwise", "splash", "cudnn")
CELLS = {
    "causal": ({}, EVERY),
    "bidirectional": ({"causal": False}, EVERY),
    "cross-attention": ({"causal": False, "keys": 96}, EVERY),
    "sliding window": ({"window": 5}, EVERY),
    "sliding window, wide": ({"window": 140}, EVERY),
    "window to both sides": ({"causal": False, "window": 9}, EVERY),
    "soft-cap": ({"softcap": 1.5}, ("blockwise", "splash")),
    "scale": ({"scale": 0.25}, EVERY),
    "multi-query": ({"kv": 1}, EVERY),
    "multi-head": ({"kv": 4}, EVERY),
    "values of another head size (MLA)": ({"head_v": 4}, ("blockwise", "splash")),
    "ALiBi": ({"bias": "alibi"}, ("blockwise",)),
    "T5's bias, causal": ({"bias": "t5"}, ("blockwise",)),
    "T5's bias, both ways": ({"bias": "t5", "causal": False}, ("blockwise",)),
    "sinks": ({"sinks": True}, ("blockwise", "splash")),
    "prefix-LM (shared tokens)": ({"shared": "prefix"}, ("cudnn",)),
    "prefix-LM with a window": ({"shared": "prefix", "window": 5}, ("cudnn",)),
    "Longformer (shared tokens, window to both sides)": (
        {"shared": "global", "causal": False, "window": 4},
        ("cudnn",),
    ),
    "window, soft-cap, scale, sinks and MLA at once": (
        {"window": 40, "softcap": 1.5, "scale": 0.5, "sinks": True, "head_v": 4},
        ("blockwise", "splash"),
    ),
    "the same, ALiBi too": (
        {"window": 40, "softcap": 1.5, "scale": 0.5, "sinks": True, "head_v": 4, "bias": "alibi"},
        ("blockwise",),
    ),
    "float32": ({}, ("blockwise", "splash")),
    "bfloat16": ({"dtype": "bfloat16", "window": 40}, EVERY),
    "cached decoding": ({"cached": True}, ()),
    "cached decoding, all at once": (
        {
            "cached": True,
            "window": 40,
            "softcap": 1.5,
            "scale": 0.5,
            "sinks": True,
            "head_v": 4,
            "bias": "alibi",
        },
        (),
    ),
}
KERNELS = ("xla", *EVERY)
INPUTS = ("keys", "kv", "head_v", "dtype", "shared", "cached")


def knows(kernel, cell):
    return kernel == "xla" or kernel in CELLS[cell][1]


def dtype_of(kernel, cell):
    """cuDNN has no float32: its cells are bfloat16, but for the one that asks for float32."""
    if kernel == "cudnn" and cell != "float32":
        return jnp.bfloat16
    return jnp.dtype(CELLS[cell][0].get("dtype", "float32"))


def inputs(kernel, cell):
    """Arrays, both Ats as tuples, and the options of attention, of one cell."""
    settings = CELLS[cell][0]
    keys = settings.get("keys", oracle.T)
    x = oracle.arrays(kv=settings.get("kv", 2), head_v=settings.get("head_v", oracle.H), keys=keys)
    x = {name: jnp.asarray(a, dtype_of(kernel, cell)) for name, a in x.items()}
    x |= {name: x[name].astype(jnp.float32) for name in ("sinks", "table")}
    segments, positions = oracle.places()
    at = (segments, positions, oracle.shared(settings.get("shared"), segments, positions))
    k_at = tuple(None if a is None else a[:, :keys] for a in at)
    return x, at, k_at, {name: value for name, value in settings.items() if name not in INPUTS}


def call(kernel, real, cell, x, q_at, k_at, options):
    """Attention of one cell. real: by the hardware that the kernel is for."""
    options = dict(options)
    causal = options.get("causal", True)
    kind, with_sinks = options.pop("bias", None), options.pop("sinks", False)
    added = {
        None: None,
        "alibi": position_bias.alibi(position_bias.slopes(oracle.N)),
        "t5": position_bias.bucketed(x["table"], farthest=20, causal=causal),
    }[kind]
    sinks = x["sinks"] if with_sinks else None
    if CELLS[cell][0].get("cached"):
        return cached(x, q_at, sinks=sinks, bias=added, **options)
    q, k, v = x["q"], x["k"], x["v"]
    if real or kernel in ("xla", "blockwise"):
        return attention.attend(
            q, k, v, q_at, k_at, kernel=kernel, bias=added, sinks=sinks, **options
        )
    names = ("window", "softcap", "scale")
    rule = attention.masks.rule(q, k, v, causal, *(options.get(name) for name in names))
    run = {
        "splash": functools.partial(splash.attend, interpret=True),
        "cudnn": functools.partial(cudnn.attend, implementation="xla"),
    }[kernel]
    return run(q, k, v, q_at, k_at, rule, added, sinks)


def cached(x, at, **options):
    """The row's first 110 tokens from a cache of which 20 more slots are empty, then the rest."""
    old, q, k, v = 110, x["q"], x["k"], x["v"]
    slots = [
        jnp.pad(jnp.swapaxes(a[:, :old], 1, 2), ((0, 0),) * 2 + ((0, 20), (0, 0))) for a in (k, v)
    ]
    first = attention.attend(
        q[:, :old],
        k[:, :old],
        v[:, :old],
        *(attention.At(*(a[:, :old] for a in at[:2])),) * 2,
        **options,
    )
    slots_at = attention.At(*(jnp.pad(a[:, :old], ((0, 0), (0, 20))) for a in at[:2]))
    new_at = attention.At(*(a[:, old:] for a in at[:2]))
    later = attention.attend_cached(
        q[:, old:], k[:, old:], v[:, old:], new_at, *slots, slots_at, **options
    )
    return jnp.concatenate([first, later], axis=1)


def outcome(kernel, real, cell, x, q_at, k_at, options):
    """Output and gradients of sum(output * g), by name."""
    learnt = {name: x[name] for name in ("q", "k", "v", "sinks", "table")}

    def run(learnt):
        return call(kernel, real, cell, {**x, **learnt}, q_at, k_at, options)

    out, pull = jax.vjp(run, learnt)
    return {"out": out, **pull(x["g"].astype(out.dtype))[0]}


def traced(kernel, cells, real=False):
    """A function of the cells' inputs with all their outcomes, to be compiled once; and those."""
    given = {cell: inputs(kernel, cell) for cell in cells}
    options = {cell: rest[3] for cell, rest in given.items()}

    def run(arrays):
        return {
            cell: outcome(
                kernel, real, cell, x, attention.At(*q_at), attention.At(*k_at), options[cell]
            )
            for cell, (x, q_at, k_at) in arrays.items()
        }

    return run, {cell: rest[:3] for cell, rest in given.items()}


def check(kernel, cells, real=False):
    """Compute cells in one program and compare; AssertionError names the cell and the array."""
    run, arrays = traced(kernel, cells, real)
    got = jax.jit(run)(arrays)
    for cell, ours in got.items():
        x, q_at, k_at = arrays[cell]
        true = oracle.attention(x, q_at, k_at, **inputs(kernel, cell)[3])
        rough = x["q"].dtype == jnp.bfloat16
        for name, a in ours.items():
            a, top = np.asarray(a, np.float64), max(1.0, np.abs(true[name]).max())
            off = np.abs(a - true[name])
            where = f"{kernel}, {cell}, {name}"
            assert off.max() <= (0.02 if rough else 2e-5) * top, (where, off.max(), top)
            assert off.mean() <= (0.005 if rough else 2e-6) * top, (where, off.mean(), top)


def refusal(kernel, cell):
    """The message with which a kernel refuses a cell; None where it does not."""
    run, arrays = traced(kernel, [cell])
    try:
        jax.eval_shape(run, arrays)
    except ValueError as error:
        return str(error)
    return None


def render(ran):
    """The page. ran: the kernels that were computed on the hardware they are for."""

    def mark(kernel, cell, hardware):
        if CELLS[cell][0].get("cached"):
            return "yes" if kernel == "xla" else "by xla"
        if not knows(kernel, cell):
            return "refused"
        return "yes" if not hardware or kernel in ran else "not run"

    columns = [
        ("xla", "xla", False),
        ("blockwise", "blockwise", False),
        ("splash, interpreted", "splash", False),
        ("splash on a TPU", "splash", True),
        ("cudnn's call, computed by XLA", "cudnn", False),
        ("cudnn on a GPU", "cudnn", True),
    ]
    rows = [
        f"| {cell} | " + " | ".join(mark(kernel, cell, real) for _, kernel, real in columns) + " |"
        for cell in CELLS
    ]
    head = "| | " + " | ".join(name for name, _, _ in columns) + " |"
    return HEAD + "\n".join([head, "|---" * (len(columns) + 1) + "|", *rows]) + "\n" + TAIL


HEAD = """# Attention kernels

`plan.attention` chooses the kernel of training and of prefill; a cache is always read by XLA.
Written by `python -m tests.ops.attention_table`, which computes every cell below in value and
gradient (of queries, keys, values, sinks and bias table) against an oracle in float64. All rows are
packed: documents in any order, padding before, between and after them; queries that see nothing
give 0 and no gradient.

*yes*: agrees with the oracle. *refused*: a ValueError that names the feature; nothing falls through
to another kernel. *not run*: no such hardware has computed it yet; run the command there.

"""

TAIL = """
float32 agrees within 2e-5 of the largest entry (at least 1), bfloat16 within 0.02; cuDNN has no
float32, so all of its cells are bfloat16.

`blockwise` and `splash` read the order of a row as the order of time: each document is contiguous,
with rising positions, as packing writes it. `xla` and `cudnn` compare segments and positions, and
take any order. On a platform without the kernel, `cudnn` and `splash` are refused before compute.
"""


def main():
    ran = {name for name, place in attention.PLATFORMS.items() if place == jax.default_backend()}
    for kernel in KERNELS:
        for cell in CELLS:
            if knows(kernel, cell):
                check(kernel, [cell])
                if kernel in ran:
                    check(kernel, [cell], real=True)
                print(f"{kernel}: {cell}: agrees", flush=True)
            elif not CELLS[cell][0].get("cached"):
                print(f"{kernel}: {cell}: {refusal(kernel, cell) or 'NOT REFUSED'}", flush=True)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(ran), "utf-8")


if __name__ == "__main__":
    main()
