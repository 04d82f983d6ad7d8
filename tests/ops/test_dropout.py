"""Dropout: what is kept is scaled, so that the mean is that of the input."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.ops import dropout


def test_what_is_kept_is_divided_by_its_probability():
    """Without the division, or with the wrong share of zeros, evaluation would see another size of
    values than training did."""
    x = jnp.full((100, 100), 3.0)
    dropped = np.asarray(dropout.dropout(x, 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0, 4], rtol=1e-6)
    assert abs((dropped == 0).mean() - 0.25) < 0.02
    assert dropout.dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout.dropout(x, 0.25, None) is x
