"""Published rules of learning rate and batch, and the ladder of models."""

import math

import pytest

from jaxlm.scaling.cost import conventions, hyperparameter_rules, ladder
from jaxlm.scaling.table import Counting


def test_step_law_has_the_papers_exponents_and_constants():
    """arXiv:2503.04715: lr = 1.79 N^-.713 D^.307, batch .58 D^.571 tokens, of any N."""
    here, larger = (
        hyperparameter_rules.step_law(1e9, 1e11),
        hyperparameter_rules.step_law(2e9, 1e11),
    )
    longer = hyperparameter_rules.step_law(1e9, 2e11)
    assert here.lr == pytest.approx(1.79 * 10 ** (-0.713 * 9 + 0.307 * 11), rel=1e-12)
    assert here.batch == pytest.approx(0.58 * 10 ** (0.571 * 11), rel=1e-12)
    assert math.log2(larger.lr / here.lr) == pytest.approx(-0.713)
    assert larger.batch == here.batch
    assert math.log2(longer.lr / here.lr) == pytest.approx(0.307)
    assert math.log2(longer.batch / here.batch) == pytest.approx(0.571)


def test_deepseek_has_the_papers_exponents_and_constants():
    """arXiv:2401.02954: lr = .3118 C^-.125, batch = .2920 C^.3271 tokens."""
    assert hyperparameter_rules.deepseek(1.0) == (0.3118, 0.2920)
    small, large = hyperparameter_rules.deepseek(1e20), hyperparameter_rules.deepseek(2e20)
    assert math.log2(large.lr / small.lr) == pytest.approx(-0.125)
    assert math.log2(large.batch / small.batch) == pytest.approx(0.3271)


@pytest.mark.parametrize(
    ("batch", "seq", "multiple", "want"),
    # between 1 and 2 rows of 128 the middle is 181 tokens, by ratio
    [(128, 128, 1, 1), (180, 128, 1, 1), (182, 128, 1, 2), (10, 128, 1, 1), (2250, 128, 4, 16)],
)
def test_a_batch_is_rounded_to_whole_rows_by_ratio(batch, seq, multiple, want):
    assert hyperparameter_rules.rows(batch, seq, multiple) == want


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="tokens: 0 given"):
        hyperparameter_rules.step_law(1e6, 0)
    with pytest.raises(ValueError, match="flops: -1 given"):
        hyperparameter_rules.deepseek(-1)


def test_depth_goes_through_the_models_it_is_named_for():
    assert [ladder.depth(w) for w in (768, 4096)] == [12, 32]


@pytest.mark.parametrize("how", ["total", "non-embedding", "matmul-only"])
@pytest.mark.parametrize("params", [2e6, 124e6, 7e9, 73.19e9])
def test_the_nearest_config_is_near_under_every_counting(params, how):
    """Within a tenth; the vocabulary counts where it is counted."""
    vocab = 512 if params < 1e7 else 32768
    cfg = ladder.nearest(params, Counting(how), vocab)
    assert cfg.vocab == vocab
    assert conventions.params(cfg, how) == pytest.approx(params, rel=0.1)
    assert abs(cfg.layers - ladder.depth(cfg.embed)) <= max(1, cfg.layers // 9)


def test_what_no_ladder_has_is_refused():
    with pytest.raises(ValueError, match="the ladder goes from"):
        ladder.nearest(1e15)
    with pytest.raises(ValueError, match="embed: 100 given; a multiple of 16"):
        ladder.rung(100, 259)
