#!/usr/bin/env bash
# tokenizers 0.23.3: the ByteLevel post-processor (trim_offsets=True, its default) takes the leading
# space out of a token's offsets, with add_special_tokens=False as well, where no special tokens are
# added and nothing else is processed. The character " " of "a b" then belongs to no token: whoever
# cuts a text at offsets loses it. Without the post-processor the offsets cover the text.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet tokenizers==0.23.3
"$place/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

t = tokenizers.Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
letters = pre_tokenizers.ByteLevel.alphabet()
t.train_from_iterator(["a b"], trainers.BpeTrainer(initial_alphabet=letters, vocab_size=300,
                                                   show_progress=False))

def offsets():
    found = t.encode("a b", add_special_tokens=False)
    return list(zip(found.tokens, found.offsets))

seen = {"without": offsets()}
t.post_processor = processors.ByteLevel()
seen["with"] = offsets()
print("tokenizers", tokenizers.__version__, seen)
a, b = ("a", (0, 1)), "\u0120b"
assert seen == {"without": [a, (b, (1, 3))], "with": [a, (b, (2, 3))]}, "this has changed"
PYTHON
