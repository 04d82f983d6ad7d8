#!/usr/bin/env bash
# llguidance 1.9.1: where a grammar leaves one text only, the mask allows only the token that the
# tokenizer itself would cut that text into, and none of the others that spell its beginning. So the
# law that is sampled from under a constraint is not the model's, renormalised over the tokens that
# spell an allowed text. `%llguidance {"no_forcing": true}` at the head of a grammar allows them all.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet llguidance==1.9.1
"$place/venv/bin/python" - <<'PYTHON'
import llguidance

WORDS = [b"t", b"h", b"e", b"n", b"th", b"the", b"then", b"<end>"]


class Tokenizer:
    tokens, eos_token_id, bos_token_id, special_token_ids = WORDS, 7, None, [7]

    def __call__(self, text):
        ids = []
        while text:  # the longest token first
            best = max((w for w in WORDS[:7] if text.encode().startswith(w)), key=len)
            ids.append(WORDS.index(best))
            text = text[len(best) :]
        return ids


tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokenizer()), n_vocab=8)


def allowed(grammar):
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(grammar))
    bits = int.from_bytes(matcher.compute_bitmask(), "little")
    return [word.decode() for i, word in enumerate(WORDS) if bits >> i & 1]


forced = allowed('start: "then"')
free = allowed('%llguidance {"no_forcing": true}\nstart: "then"')
print("as it is:", forced)
print("no_forcing:", free)
assert forced == ["then"], forced
assert free == ["t", "th", "the", "then"], free
PYTHON
