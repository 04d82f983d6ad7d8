"""Inputs of matrices: against what products are seen to be given, operation by operation."""

import jax
import numpy as np
import pytest

from jaxlm.data import tokenizers
from jaxlm.eval import calibration
from jaxlm.models import packed_weights
from jaxlm.ops import linear
from tests import programs
from tests.families.sizes import T, V


def tokens(rows=3):
    return np.random.default_rng(0).integers(0, V, (rows, T)).astype(np.int32)


def seen(family, rows):
    """{shape of a matrix: [(x^T x, sum |x|), ...]} of all products, as they are computed."""
    shape, found = programs.shape(family), {}
    matrices, experts = linear.einsum, linear.grouped

    def note(x, w):
        flat = np.asarray(x, np.float64)
        found.setdefault(tuple(w.shape), []).append((flat.T @ flat, np.abs(flat).sum(0)))

    def einsum(spec, x, w, dtype=None):
        summed, leading = linear._parse(spec, x.shape, w.shape)
        if leading:
            note(np.asarray(x).reshape(-1, int(np.prod(w.shape[:summed]))), w)
        return matrices(spec, x, w, dtype)

    def grouped(x, w, sizes, poison=False):
        ends = np.cumsum(sizes)
        for e, end in enumerate(ends):
            note(np.asarray(x)[end - sizes[e] : end], w[e])
        return experts(x, w, sizes, poison)

    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr(linear, "einsum", einsum)
        patch.setattr(linear, "grouped", grouped)
        batch = calibration._batch(shape, rows)
        calibration.models.read(shape, programs.weights(family), batch)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", programs.FAMILIES)
def test_sums_are_those_of_the_inputs_of_every_matrix(family):
    """Every sum that was observed is one that a product with a matrix of that shape was given;
    those of different layers differ."""
    spec, rows = programs.shape(family).spec, tokens()
    chosen = packed_weights.paths(spec)
    given = programs.weights(family)
    found = seen(family, rows)
    observed = dict(calibration.observe(programs.shape(family), given, rows, chosen, batch=2))
    assert [*observed] == [*chosen]
    for path, inputs in observed.items():
        if path.startswith("ahead"):  # what predicts further tokens is read in training alone
            assert not inputs.gram.any()
            continue
        p = chosen[path]
        size = p.fan_in
        each = zip(inputs.gram.reshape(-1, size, size), inputs.magnitude.reshape(-1, size))
        known = found[p.shape[p.copies :]]
        for gram, magnitude in each:
            assert any(
                np.allclose(gram, g, rtol=2e-3, atol=2e-3)
                and np.allclose(magnitude, m, rtol=2e-3, atol=2e-3)
                for g, m in known
            )
        # keys and values of a source are of the same source in every layer
        source = "/cross/" in path and path.endswith(("/k", "/v"))
        assert source or len({g.tobytes() for g in inputs.gram}) == p.shape[0]


def test_one_pass_or_many_give_the_same():
    shape, rows = programs.shape("llama-all"), tokens(2)
    chosen = packed_weights.paths(shape.spec)
    chosen = {path: chosen[path] for path in [*chosen][:2]}
    given = programs.weights("llama-all")
    together, apart = (
        dict(calibration.observe(shape, given, rows, chosen, limit=limit)) for limit in (10**9, 1)
    )
    assert [*together] == [*apart] == [*chosen]
    for path in together:
        for a, b in zip(together[path], apart[path], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_windows_are_whole_rows_of_texts_one_after_another():
    tokenizer = tokenizers.load("bytes")
    begin = tokenizers.tokenizer.begin(tokenizer)
    rows = calibration.windows(tokenizer, ["abc", "de", "fghi"], 4, 2)
    np.testing.assert_array_equal(rows, [[begin, 97, 98, 99], [begin, 100, 101, begin]])
    short = calibration.windows(tokenizer, ["abc"], 64, 2)
    np.testing.assert_array_equal(short, [[begin, 97, 98, 99]])
    with pytest.raises(ValueError, match="calibration: the text has no token"):
        calibration.windows(tokenizer, [], 8, 2)
