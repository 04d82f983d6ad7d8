"""Law 1: every preset's parameter count is the published model's."""

import pytest

from jaxlm import models
from jaxlm.core import param

# Counts of the released checkpoints.
EXACT = {
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    # of checkpoints that read images too, less their vision tower and projector: 416_866_032 and
    # 1152 * (embed + 1)
    "gemma3-4b": 4_300_079_472 - 416_866_032 - 1152 * 2561,
    "gemma3-12b": 12_187_325_040 - 416_866_032 - 1152 * 3841,
    "gemma3-27b": 27_432_406_640 - 416_866_032 - 1152 * 5377,
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
}
# Known from a paper's table only, in billions.
ROUNDED = {
    "gpt3-175b": (174.6, 0.0),  # Brown et al. 2020, table 2.1: "175B"; table D.1: 174,600M
    # Hoffmann et al. 2022, table A9: 70B, of which the position projections of Transformer-XL's
    # relative attention are 80 layers x 8192 x 8192
    "chinchilla-70b": (70.06, 80 * 8192**2 / 1e9),
}


def test_every_preset_has_a_published_count():
    assert set(models.presets()) == set(EXACT) | set(ROUNDED)


@pytest.mark.parametrize("name", EXACT)
def test_exact(name):
    assert param.count(models.spec(models.presets()[name])) == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded(name):
    billions, missing = ROUNDED[name]
    ours = param.count(models.spec(models.presets()[name])) / 1e9
    assert ours + missing == pytest.approx(billions, rel=1e-3)
