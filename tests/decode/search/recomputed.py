"""A model without a cache, for references: the forward pass over a whole text, again and again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.ops.attention import At

ROWS, WIDTH = 8, 32


@functools.cache
def _program(model):
    def run(params, tokens, lengths, source, source_lengths):
        def at(x, n):
            places = jnp.arange(x.shape[1])[None]
            return At((places < n[:, None]).astype(jnp.int32), jnp.broadcast_to(places, x.shape))

        read = {}
        if model.kind == "encoder_decoder":
            place = at(source, source_lengths)
            read = {"source": (model.encode(params, source, place), place)}
        x = model.hidden(params, tokens, at(tokens, lengths), **read).x
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], 1)[:, 0]
        return model.unembed(model.head(params), last), x

    return jax.jit(run)


def forward(model, params, prompt, texts):
    """(float64 log-probabilities [N, V] of the token after each text, hidden states of each text
    [length, D]). A text follows the prompt; of an encoder-decoder the prompt is the source."""
    z, states = [], []
    pairs = model.kind == "encoder_decoder"
    whole = [[model.cfg.start, *t] if pairs else [*prompt, *t] for t in texts]
    source = np.zeros((ROWS, WIDTH), np.int32)
    source[:, : len(prompt)] = prompt
    spec_free = model._replace(spec=None)
    for i in range(0, len(whole), ROWS):
        part = whole[i : i + ROWS]
        tokens, lengths = np.zeros((ROWS, WIDTH), np.int32), np.ones(ROWS, np.int32)
        for r, row in enumerate(part):
            tokens[r, : len(row)], lengths[r] = row, len(row)
        read = np.full(ROWS, len(prompt), np.int32)
        out, x = _program(spec_free)(params, tokens, lengths, source, read)
        z.append(np.asarray(out, np.float64)[: len(part)])
        states += [np.asarray(x[r, : len(row)], np.float64) for r, row in enumerate(part)]
    z = np.concatenate(z)
    z -= z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True)), states
