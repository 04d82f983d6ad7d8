"""GPT-1 and GPT-2, tiny."""

import dataclasses

from jaxlm.models import gpt
from tests.families.sizes import T, V

GPT = gpt.Config(vocab=V, embed=16, layers=3, heads=2, context=T)
CASES = {"gpt": GPT, "gpt-post": dataclasses.replace(GPT, norm="post")}

# A key bias adds the same to every score of a query, where positions do not turn it: its gradient
# is 0 but for rounding.
VOID = {"gpt": ("k_bias",), "gpt-post": ("k_bias",)}
