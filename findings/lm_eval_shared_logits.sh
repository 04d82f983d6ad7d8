#!/usr/bin/env bash
# lm-eval 0.4.13 (HFLM, logits_cache=True, its default): of two requests whose tokens up to the last
# are the same, cut into context and continuation at different places, the one with the shorter
# continuation gets a wrong log-probability, with no error: the logits are computed once, for the
# longer continuation, and gathered from its first position in place of its last. Whether it is
# greedy is read at the right place. Alone, or with logits_cache=False, both requests are right.
# Such pairs arise where a text is scored after contexts of several lengths, or with an empty
# context (the token that begins a document) next to add_bos_token=True.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 lm_eval==0.4.13 \
	accelerate==1.15.0
"$place/venv/bin/python" - 2>"$place/log" <<'PYTHON' || { cat "$place/log"; exit 1; }
import tokenizers
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

words = ["<end>", *"abcdefgh"]
library = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>")
)
library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=library, eos_token="<end>", bos_token="<end>"
)
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=1.0,
        bos_token_id=0, eos_token_id=0,
    )
)


def scores(pairs, **options):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=4, **options)
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]


long, short = ("a b", " c d"), ("a b c", " e")
alone = [scores([pair])[0] for pair in (long, short)]
together = scores([long, short])
uncached = scores([long, short], logits_cache=False)
print("alone            %.4f  %.4f" % tuple(alone))
print("together         %.4f  %.4f" % tuple(together))
print("without a cache  %.4f  %.4f" % tuple(uncached))
assert all(abs(a - b) < 1e-4 for a, b in zip(alone, uncached))
assert abs(together[0] - alone[0]) < 1e-4 and abs(together[1] - alone[1]) > 0.1
PYTHON
