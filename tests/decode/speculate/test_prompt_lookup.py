"""What followed an n-gram, against a search in Python."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.decode.speculate import prompt_lookup
from jaxlm.ops import penalties

W = 24


def oracle(text, size, longest):
    """The tokens after the latest place where most of the last tokens are as at the end."""
    best, place = 0, None
    for end in range(1, len(text)):
        n = 0
        while n < min(size, end) and text[end - 1 - n] == text[len(text) - 1 - n]:
            n += 1
        if n and n >= best:
            best, place = n, end
    if place is None:
        return None
    follows = text[place:]
    return [follows[i % len(follows)] for i in range(longest)]


def test_found_is_what_a_search_finds():
    random = np.random.default_rng(0)
    for size, longest in ((1, 2), (3, 5)):
        rows = [random.integers(0, 3, n).tolist() for n in range(1, 23) for _ in range(4)]
        rows += [[1, 2, 3, 4], [7], [5, 5], [1, 2, 1, 2, 1]]
        tokens = np.full((len(rows), W), 1, np.int32)  # what is beyond a text counts for nothing
        for r, row in enumerate(rows):
            tokens[r, : len(row)] = row
        length = jnp.asarray([len(row) for row in rows], jnp.int32)
        text = penalties.Text(jnp.asarray(tokens), length, length, length)
        run = jax.jit(prompt_lookup.found, static_argnums=(1, 2))
        got, there = map(np.asarray, run(text, size, longest))
        for r, row in enumerate(rows):
            want = oracle(row, size, longest)
            assert there[r] == (want is not None), row
            assert want is None or got[r].tolist() == want, row
