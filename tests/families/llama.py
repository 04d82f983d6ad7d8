"""LLaMA, plain and with everything, tiny."""

import dataclasses

from jaxlm.models import llama
from tests.families.sizes import T, V

LLAMA = llama.Config(vocab=V, embed=16, layers=3, heads=4, kv=2, head=4, ffn=24, context=T)
CASES = {
    "llama": LLAMA,
    "llama-all": dataclasses.replace(
        LLAMA, bias=True, qk_norm=True, window=3, tied=True, softcap=20.0
    ),
}
VOID: dict[str, tuple[str, ...]] = {}
