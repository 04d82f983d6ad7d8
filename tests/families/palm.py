"""PaLM's parallel block and its relatives, tiny."""

import dataclasses

from jaxlm.models import palm
from tests.families.sizes import T, V

PALM = palm.Config(
    vocab=V, embed=16, layers=3, heads=4, kv=2, head=4, ffn=24, context=T, rotary=4,
    logit_scale=0.25,
)  # fmt: skip
CASES = {
    "palm": PALM,
    "palm-all": dataclasses.replace(
        PALM, shared_norm=False, norm_bias=True, attn_bias=True, qk_norm=True, rotary=2,
        activation="gelu", gated=False, ffn_bias=True, tied=False, unembed_bias=True,
    ),
    "palm-sequential": dataclasses.replace(
        PALM, block="sequential", shared_norm=False, rotary=None, alibi=0.5
    ),
}  # fmt: skip
VOID: dict[str, tuple[str, ...]] = {}
