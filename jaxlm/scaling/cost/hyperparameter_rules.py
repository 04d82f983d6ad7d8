"""Learning rate and batch of a run by its size: published power laws.

    law        lr                       batch in tokens    N, C
    step law   1.79 N^-.713 D^.307      .58 D^.571         N without embeddings (Li et al. 2025)
    deepseek   .3118 C^-.125            .2920 C^.3271      C = M D, M non-embedding FLOPs per token
                                                           with attention (Bi et al. 2024)

Both were fitted with AdamW on models of 60M parameters or C = 1e17 and more; far below, their
exponents are all one can hope for, and `factor` is to be tuned on one small size.
"""

from typing import NamedTuple

# arXiv:2503.04715, eq. 1: their bootstraps give the exponents of lr +-.030 and +-.019, that of the
# batch +-.019.
STEP_LR, STEP_LR_PARAMS, STEP_LR_TOKENS = 1.79, -0.713, 0.307
STEP_BATCH, STEP_BATCH_TOKENS = 0.58, 0.571
# arXiv:2401.02954, eq. 1.
DEEPSEEK_LR, DEEPSEEK_LR_FLOPS = 0.3118, -0.125
DEEPSEEK_BATCH, DEEPSEEK_BATCH_FLOPS = 0.2920, 0.3271


class Rule(NamedTuple):
    """Peak learning rate of AdamW, and the tokens of a batch, not rounded."""

    lr: float
    batch: float


def step_law(params: float, tokens: float) -> Rule:
    """The Rule for N non-embedding parameters and D tokens. Li et al. 2025, eq. 1.

    Raises: ValueError unless both are positive.
    """
    _positive(params=params, tokens=tokens)
    lr = STEP_LR * params**STEP_LR_PARAMS * tokens**STEP_LR_TOKENS
    return Rule(lr, STEP_BATCH * tokens**STEP_BATCH_TOKENS)


def deepseek(flops: float) -> Rule:
    """The Rule for C training FLOPs, those of attention in it and of the output matrix not. Bi et
    al. 2024, eq. 1.

    Raises: ValueError unless it is positive.
    """
    _positive(flops=flops)
    lr = DEEPSEEK_LR * flops**DEEPSEEK_LR_FLOPS
    return Rule(lr, DEEPSEEK_BATCH * flops**DEEPSEEK_BATCH_FLOPS)


def rows(batch: float, seq: int, multiple: int = 1) -> int:
    """The rows of `seq` tokens nearest to a batch of tokens on a logarithmic scale: a multiple of
    `multiple`, and at least one.

    Raises: ValueError unless all are positive.
    """
    _positive(batch=batch, seq=seq, multiple=multiple)
    wanted = batch / seq / multiple
    low = max(int(wanted), 1)
    return multiple * (low if wanted * wanted <= low * (low + 1) else low + 1)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}: {value} given; a number above 0 is needed")
