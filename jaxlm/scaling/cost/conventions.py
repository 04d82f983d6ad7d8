"""N and C of a Config, under a named counting.

    params         total           every weight; of experts those a token is sent to
                   non-embedding   the layers' matrices: 12 L d^2 of GPT-2 (Kaplan et al. 2020,
                                   table 1, who leave out biases and norms)
                   matmul-only     and the output matrix, tied or not: what is multiplied with
                                   every token (Porian et al. 2024, section 3.1)
    flops          6ND             6 N per token
    of training    6ND+attention   and the attention's scores over all pairs, 12 L d s of GPT-2
                                   (Chowdhery et al. 2022, appendix B)
                   exact causal    all products, of scores those that a query can see:
                                   (s + 1) / 2 keys on average, its own among them

`total` is the only one that a look-up adds to: an embedding table costs nothing.
"""

from jaxlm import models
from jaxlm.scaling.cost import flops
from jaxlm.scaling.table import Counting, known


def params(cfg: models.AnyConfig, how: str) -> float:
    """N of a Config under a counting of `table.PARAMS`.

    Raises: ValueError for "given", which no Config determines, and for any other name.
    """
    _refuse_given("params", how)
    if how == "total":
        return flops.active(cfg)
    part = flops.per_token(cfg, 1)
    return (part.layers + (part.head if how == "matmul-only" else 0.0)) / 2


def per_token(cfg: models.AnyConfig, seq: int, how: Counting) -> float:
    """Training FLOPs per token at `seq` tokens under a counting, so that C is this times D.

    Raises: ValueError as `params`; for seq below 1.
    """
    _refuse_given("flops", how.flops)
    n = params(cfg, how.params)
    if how.flops == "exact causal":
        return flops.per_token(cfg, seq).training
    full = flops.per_token(cfg, seq, causal=False)
    return 6 * n + (flops.TRAINING * full.attention if how.flops == "6ND+attention" else 0.0)


def _refuse_given(field: str, how: str) -> None:
    known(Counting(**{field: how}))
    if how == "given":
        raise ValueError(f"counting.{field}: 'given' does not say how to count a Config")
