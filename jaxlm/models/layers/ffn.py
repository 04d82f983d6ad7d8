"""The feed-forward layer of every family: two matrices, or three with a gate.

    plain    act(h up) down                  Vaswani et al. 2017, eq. 2; GPT
    gated    (act(h gate) * h up) down       Shazeer 2020, eq. 6: silu is SwiGLU, gelu is GeGLU,
                                             relu is ReGLU

Which of the two a layer is, and whether it has biases, is in its weights.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.ops import linear

Activation = Callable[[jax.Array], jax.Array]

# gelu_tanh is Hendrycks and Gimpel 2016's approximation, which GPT and Gemma train with; relu2 is
# So et al. 2021.
ACTIVATIONS: dict[str, Activation] = {
    "silu": jax.nn.silu,
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "gelu_tanh": lambda h: jax.nn.gelu(h, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda h: jnp.square(jax.nn.relu(h)),
}


def spec(
    p: Callable[..., param.Param],
    *,
    gated: bool,
    bias: bool,
    out: param.Init,
    init: param.Init | None = None,
) -> param.Tree:
    """The weights of one layer: up, down, and with a gate gate [embed, ffn]; biases of each.

    p is a shaper of `embed` and `ffn`. out starts the matrix into the residual stream and
    init the others (by their fan-in if None).
    """
    ups = ("gate", "up") if gated else ("up",)
    tree = {name: p("embed -> ffn", init=init) for name in ups}
    tree |= {"down": p("ffn -> embed", init=out)}
    if bias:
        tree |= {f"{name}_bias": p("ffn", init=param.zeros) for name in ups}
        tree |= {"down_bias": p("embed", init=param.zeros)}
    return tree


def apply(w: param.Tree, h: jax.Array, act: Activation) -> jax.Array:
    """The layer's output [B, T, D] for h [B, T, D]; act is one of ACTIVATIONS."""
    up = linear.biased("...D,DF->...F", h, w, "up")
    up = act(linear.biased("...D,DF->...F", h, w, "gate")) * up if "gate" in w else act(up)
    return linear.biased("...F,FD->...D", up, w, "down")
