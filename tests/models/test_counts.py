"""Law 1: every preset's parameter count is the published model's."""

import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.scaling.cost import flops

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
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "codellama-7b": 6_738_546_688,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "codellama-70b": 68_976_910_336,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "olmo2-1b": 1_484_916_736,
    "olmo2-7b": 7_298_617_344,
    "olmo2-13b": 13_716_198_400,
    "olmo2-32b": 32_234_279_936,
    "phi3-mini-4k": 3_821_079_552,
    "phi3-medium-4k": 13_960_238_080,
    # released with two rows of positions that stand for padding
    "opt-125m": 125_239_296 - 2 * 768,
    "opt-1.3b": 1_315_758_080 - 2 * 2048,
    "opt-2.7b": 2_651_596_800 - 2 * 2560,
    "opt-6.7b": 6_658_473_984 - 2 * 4096,
    "opt-13b": 12_853_473_280 - 2 * 5120,
    "opt-30b": 29_974_540_288 - 2 * 7168,
    "opt-66b": 65_719_701_504 - 2 * 9216,
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "gptj-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "falcon-180b": 178_557_088_768,
    "command-r": 34_980_831_232,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    # without multi-token prediction; with the routers' selection biases
    "deepseek-v3": 671_026_419_200,
    # BERT as the released weights without pooler and next-sentence head; RoBERTa whole
    "bert-base": 109_514_298,
    "bert-large": 335_174_458,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "longformer-base-4096": 148_711_257,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
}
# Known from a paper's table only, in billions.
ROUNDED = {
    "qwen2-57b-a14b": (57.41, 0.0),  # the release's table: 57.41B, of which 56.32B not embedding
    "gpt3-175b": (174.6, 0.0),  # Brown et al. 2020, table 2.1: "175B"; table D.1: 174,600M
    "opt-175b": (174.6, 0.0),  # Zhang et al. 2022, table 1: GPT-3's shape
    "palm-8b": (8.63, 0.0),  # Chowdhery et al. 2022, table 1
    "palm-62b": (62.50, 0.0),
    "palm-540b": (540.35, 0.0),
    # Hoffmann et al. 2022, table A9: 70B, of which the position projections of Transformer-XL's
    # relative attention are 80 layers x 8192 x 8192
    "chinchilla-70b": (70.06, 80 * 8192**2 / 1e9),
}

# Parameters a token meets, in billions, as papers give them.
ACTIVE = {
    "mixtral-8x7b": 12.9,  # Jiang et al. 2024, section 1: 13B; the release: 12.9B
    "mixtral-8x22b": 39.1,  # the release: 39B
    # OpenAI 2025, table 1, which leaves the embedding table out
    "gpt-oss-20b": 3.61 + 201088 * 2880 / 1e9,
    "gpt-oss-120b": 5.13 + 201088 * 2880 / 1e9,
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


@pytest.mark.parametrize("name", ACTIVE)
def test_active(name):
    ours = flops.active(models.presets()[name]) / 1e9
    assert ours == pytest.approx(ACTIVE[name], rel=5e-3)
