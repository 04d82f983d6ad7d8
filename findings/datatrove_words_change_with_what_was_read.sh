#!/usr/bin/env bash
# datatrove 0.10.1 with spaCy 3.8.18: the words of a text depend on what the process read before.
# Texts are cut in spaCy's memory zones; in these the second text that holds the name of one of
# spaCy's own attributes raises an error, and datatrove cuts it once more without the word IS_ALPHA.
# The first such text of a process keeps it, so what filters count depends on the order of the
# documents. spaCy's tokenizer outside a memory zone gives the same words always.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet datatrove==0.10.1 spacy==3.8.18 nltk==3.10.4 \
	regex==2026.11.15 tokenizers==0.23.3 orjson==3.13.0 'xxhash<4'
"$place/venv/bin/python" - 2>"$place/log" <<'PYTHON' || { cat "$place/log"; exit 1; }
import spacy
from datatrove.utils.text import split_into_words

FIRST, SECOND = "x IS_ALPHA y", "a IS_ALPHA b"
read = [list(split_into_words(text, "en")) for text in (FIRST, SECOND)]
plain = spacy.blank("en").tokenizer
alone = [[token.text for token in plain(text)] for text in (FIRST, SECOND)]
print("datatrove:", *read)
print("spaCy, no memory zone:", *alone)
assert alone == [["x", "IS_ALPHA", "y"], ["a", "IS_ALPHA", "b"]]
assert read == [["x", "IS_ALPHA", "y"], ["a", "b"]], read
PYTHON
