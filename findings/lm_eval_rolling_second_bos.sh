#!/usr/bin/env bash
# lm-eval 0.4.13 (HFLM with add_bos_token=True): loglikelihood_rolling predicts the token that begins
# a text a second time, after itself, and counts its log-probability as that of the text; perplexities
# per word and byte have it in them. A text of one word: the sum is log p(<s> | <s>) + log p(a | <s> <s>),
# not log p(a | <s>), which is what a model reads that was trained on documents with one <s>.
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

words = ["<s>", *"abcdefgh"]
library = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>")
)
library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
library.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 0)]
)
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=library, eos_token="<s>", bos_token="<s>"
)
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=1.0,
        bos_token_id=0, eos_token_id=0,
    )
).eval()


def log_probs(ids):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)


def rolling(begin):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", add_bos_token=begin)
    request = Instance("loglikelihood_rolling", {}, ("a",), 0)
    return lm.loglikelihood_rolling([request], disable_tqdm=True)[0]


one = float(log_probs([0])[0, 1])
both = log_probs([0, 0])
twice = float(both[0, 0] + both[1, 1])
print("add_bos_token=False %.4f, log p(a | <s>) %.4f" % (rolling(False), one))
print("add_bos_token=True  %.4f, log p(<s> | <s>) + log p(a | <s> <s>) %.4f" % (rolling(True), twice))
assert abs(rolling(False) - one) < 1e-4 and abs(rolling(True) - twice) < 1e-4
assert abs(one - twice) > 0.1
PYTHON
