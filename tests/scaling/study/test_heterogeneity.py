"""Tables that hold several experiments, sweeps or mistyped rows, noticed from a fit's residuals."""

import re

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.laws import fitting, loss_laws
from jaxlm.scaling.study import heterogeneity

LAW = loss_laws.LAWS["chinchilla"]
TRUTH = (1.8, 480.0, 2100.0, 0.35, 0.37)
N = np.repeat([1e8, 2e8, 4e8, 8e8], 3)
D = N * np.tile([10.0, 20.0, 60.0], 4)


def sweep(shift, columns, noise=0.002):
    """12 runs for each row of shift, with labels."""
    k = len(shift)
    random = np.random.default_rng(3)
    n, d = np.tile(N, k), np.tile(D, k)
    loss = LAW.predict(TRUTH, (n, d)) * np.exp(
        np.repeat(shift, 12) + random.normal(0, noise, 12 * k)
    )
    t = table.make(n, d, loss)
    return t._replace(columns={c: np.repeat(v, 12) for c, v in columns.items()})


def noticed(t):
    return heterogeneity.notices(t, fitting.fit(LAW, t).residual)


def test_mixed_experiments_are_noticed():
    """Six corpora in one table were fitted as one, in silence."""
    names = np.array(["c4", "rp j", "rw", "pile", "oscar", "code"])
    t = sweep(np.linspace(-0.1, 0.1, 6), {"data": names})
    (notice,) = noticed(t)
    assert notice.kind == "several experiments"
    assert re.search(r"column 'data' has 6 values and explains (99|100)% of", notice.text)
    assert "--by data makes a study of each, --where data=c4 takes one" in notice.text
    assert noticed(sweep(np.zeros(6), {"data": names})) == []
    # a width is a size: its groups are the form's own
    t = sweep(np.zeros(2), {})
    width = np.round(np.sqrt(t.params))
    assert noticed(t._replace(columns={"width": width})) == []


def test_experiments_that_two_columns_tell_apart_are_noticed():
    """Neither column alone says which recipe it was."""
    columns = {"warm up": np.array(["long", "long", "short", "short"]),
               "decay": np.array(["cosine", "const", "cosine", "const"])}  # fmt: skip
    (notice,) = noticed(sweep(np.array([-0.1, 0.1, 0.1, -0.1]), columns))
    assert "columns 'warm up', 'decay' together have 4 values" in notice.text
    assert "--by 'warm up' decay" in notice.text
    assert "--where 'warm up=long' --where decay=cosine" in notice.text


def test_many_learning_rates_are_noticed():
    t = sweep(np.array([0.02, 0.0, 0.01, 0.05]), {"lr": np.array([1e-4, 1e-3, 3e-3, 1e-2])})
    (notice,) = noticed(t)
    assert notice.kind == "hyper-parameters vary"
    assert "48 rows are at 12 (N, D), up to 4 each, where 'lr' varies" in notice.text
    assert "--best-by params tokens" in notice.text
    seeds = t._replace(columns={"seed": t.columns["lr"]})
    assert "hyper-parameters vary" not in [n.kind for n in noticed(seeds)]


def test_the_row_that_is_mistyped_or_diverged_is_named():
    t = sweep(np.zeros(2), {})
    loss = t.loss.copy()
    loss[7] *= 2.5
    (notice,) = noticed(t._replace(loss=loss))
    assert notice.kind == "outliers" and "row 8 (N 4e+08, D 8e+09" in notice.text
    assert "+150 % off the fit" in notice.text and "--drop-highest 1 leaves them out" in notice.text
    params = t.params.copy()
    params[20] /= 100
    (notice,) = noticed(t._replace(params=params))
    assert "row 21" in notice.text and "mistyped" in notice.text and "--drop" not in notice.text
