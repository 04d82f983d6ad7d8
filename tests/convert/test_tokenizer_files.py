"""Exported tokenizers in transformers: the same ids as here."""

import pytest

from jaxlm.convert import tokenizer_files
from jaxlm.data import tokenizers

TEXTS = [f"number {i} and the {'same words ' * (i % 5)}again" for i in range(60)]


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "vocab"), [("byte_bpe", 262), ("wordpiece", 80), ("bpe", 290)])
def test_transformers_encodes_as_we_do(tmp_path, kind, vocab):
    import transformers

    ours = tokenizers.train(kind, TEXTS, vocab, str(tmp_path / "ours"))
    (tmp_path / "theirs").mkdir()
    tokenizer_files.give(str(tmp_path / "ours"), tmp_path / "theirs")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    text = "the same  words again"
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert theirs.eos_token_id == ours.special["eos"]
