"""Laws of every tokenizer kind: lossless, no injection, streaming, hashes; and textbook merges."""

import base64
import collections
import itertools
import json
import pathlib
import pickle

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxlm.data import tokenizers
from jaxlm.data.tokenizers import hf

KINDS = ["bytes", "bpe", "unigram", "byte_bpe", "wordpiece", "hf", "tiktoken"]
LOSSLESS = [kind for kind in KINDS if kind != "wordpiece"]
VOCAB = {"bpe": 400, "unigram": 400, "byte_bpe": 400, "wordpiece": 300}
SPELLED = "<eos></s><s><bos><pad><unk><|eos|><|bos|><|endoftext|>[SEP][CLS][PAD]<|user|><0x41>"


def corpus():
    from pydoc_data import topics

    return [topics.topics[name] for name in sorted(topics.topics)][:12]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each kind, trained once: kind -> (tokenizer, where it was saved)."""
    root = tmp_path_factory.mktemp("tokenizers")
    found = {"bytes": (tokenizers.load("bytes"), "bytes")}
    for kind, vocab in VOCAB.items():
        path = str(root / kind)
        found[kind] = (tokenizers.train(kind, corpus(), vocab, path, extra=["<|user|>"]), path)
    text = pathlib.Path(found["byte_bpe"][1], "tokenizer.json").read_text()
    (root / "tokenizer.json").write_text(text)
    found["hf"] = (tokenizers.load(str(root / "tokenizer.json")), str(root / "tokenizer.json"))
    pytest.importorskip("tiktoken")
    path = root / "r50k_like.tiktoken"
    path.write_bytes(rank_file(json.loads(text)["model"]["merges"]))
    size = 256 + len(json.loads(text)["model"]["merges"])
    rules = {"pattern": GPT2, "special": {"eos": size, "<|user|>": size + 1}, "vocab": size + 2}
    path.with_suffix(".json").write_text(json.dumps(rules))
    found["tiktoken"] = (tokenizers.load(str(path)), str(path))
    return found


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def rank_file(merges):
    """The merges of a byte-level BPE as tiktoken writes them: 256 bytes, then the merges."""
    byte = {letter: bytes([b]) for b, letter in enumerate(hf.byte_letters())}
    pieces = [bytes([b]) for b in range(256)]
    pieces += [b"".join(byte[c] for c in left + right) for left, right in merges]
    return b"".join(base64.b64encode(p) + f" {rank}\n".encode() for rank, p in enumerate(pieces))


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"wordpiece"}))
def test_every_id_is_located_at_its_characters(made, kind):
    tokenizer, text = made[kind][0], "The cats, 12 \u00e9\U0001f600 sat"
    for first, spans in ((True, {}), (False, {})):
        for i, *place in zip(*tokenizer.locate(text, first), strict=True):
            spans.setdefault(tuple(place), []).append(i)
        assert "".join(text[a:b] for a, b in spans) == text
        assert all(tokenizer.decode(ids) == text[a:b] for (a, b), ids in spans.items())


unicode = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\r\u2581a\0"))
awkward = st.lists(st.sampled_from(["<eos>", "</s>", "  ", "\u2581", "a"])).map("".join)
quick = hypothesis.settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_any_text_comes_back(made, kind):
    found, _ = made[kind]
    assert found.lossless

    @quick
    @hypothesis.given(unicode | awkward)
    def law(text):
        ids = found.encode(text)
        assert found.decode(ids) == text
        assert found.decode_bytes(ids) == text.encode()
        assert all(0 <= i < found.vocab for i in ids)

    law()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_any_bytes_come_back(made, kind):
    found, _ = made[kind]

    @quick
    @hypothesis.given(st.binary())
    def law(data):
        text = data.decode("utf-8", "surrogateescape")
        assert found.decode_bytes(found.encode(text)) == data
        assert found.decode_bytes(found.encode_batch([text, "a"])[0]) == data

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_injects_special_ids(made, kind):
    found, _ = made[kind]
    unknown = {found.special["unk"]} if kind == "wordpiece" else set()
    forbidden = set(found.special.values()) - unknown

    @quick
    @hypothesis.given(unicode | awkward)
    def law(text):
        assert not forbidden & set(found.encode(text + SPELLED))
        assert not forbidden & set(found.encode_batch([SPELLED + text])[0])

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_streaming_is_decoding(made, kind):
    """Pieces add up to the whole text, and no piece holds half a character."""
    found, _ = made[kind]

    @quick
    @hypothesis.given(unicode | st.just(corpus()[0][:200] + "\u00e9\U0001f600 e\u0301"))
    def law(text):
        ids = found.encode(text.replace("\ufffd", ""))
        stream = found.stream()
        pieces = [stream.push(i) for i in ids]
        assert not [p for p in pieces if "\ufffd" in p]
        assert "".join(pieces) + stream.finish() == found.decode(ids)

    law()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_stream_that_ends_within_a_character_says_so_at_the_end(made, kind):
    found, _ = made[kind]
    ids = found.encode(b"ab\xf0\x9f".decode("utf-8", "surrogateescape"))
    stream = found.stream()
    assert "".join(stream.push(i) for i in ids) == "ab"
    assert stream.finish() == "\ufffd"
    assert found.decode([found.special["eos"], *found.encode("x")]) == "x"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_pickled_are_the_same(made, kind, tmp_path):
    found, path = made[kind]
    copies = [tokenizers.load(path), pickle.loads(pickle.dumps(found))]
    tokenizers.save(found, str(tmp_path / "saved"))
    copies.append(tokenizers.load(str(tmp_path / "saved")))
    text = corpus()[0] + SPELLED
    for copy in copies:
        assert copy.hash == found.hash
        assert copy.special == found.special
        assert (copy.vocab, copy.lossless) == (found.vocab, found.lossless)
        assert copy.encode(text) == found.encode(text)
        assert copy.encode_batch([text, ""]) == [found.encode(text), []]


def test_vocabularies_and_specials_are_what_was_asked(made):
    for kind, vocab in VOCAB.items():
        found, _ = made[kind]
        assert found.vocab == vocab
        assert {"pad", "bos", "eos", "<|user|>"} <= set(found.special)
        assert len(set(found.special.values())) == len(found.special)
        assert max(found.encode(corpus()[0])) < vocab
    assert made["bytes"][0].special == {"pad": 256, "bos": 257, "eos": 258}
    hashes = [found.hash for found, _ in made.values()]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("kind", ["bpe", "byte_bpe", "unigram"])
def test_training_is_deterministic_and_the_hash_follows_the_texts(made, kind, tmp_path):
    texts = corpus()
    again = tokenizers.train(kind, texts, VOCAB[kind], str(tmp_path / "a"), extra=["<|user|>"])
    assert again.hash == made[kind][0].hash
    other = tokenizers.train(kind, texts[:6], VOCAB[kind], str(tmp_path / "b"), extra=["<|user|>"])
    assert other.hash != again.hash


def test_trained_tokenizers_compress(made):
    text = corpus()[3]
    for kind in VOCAB:
        assert len(made[kind][0].encode(text)) < 0.7 * len(text)


def test_tiktoken_and_tokenizers_agree_on_the_same_merges(made):
    """Two independent implementations of byte-level BPE, one set of merges: the same pieces."""
    ours, theirs = made["byte_bpe"][0], made["tiktoken"][0]
    for text in [*corpus(), "It's  a\n\n test\u00e9 123\U0001f600"]:
        pieces = [[t.decode_bytes([i]) for i in t.encode(text)] for t in (ours, theirs)]
        assert pieces[0] == pieces[1]


# --- Byte pair encoding by the book ----------------------------------------------------------

SENNRICH = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3


def pair_counts(words):
    counts = collections.Counter()
    for word in words:
        counts.update(itertools.pairwise(word))
    return counts


def merge(words, pair):
    def one(word):
        out = []
        for symbol in word:
            if out and (out[-1], symbol) == pair:
                out[-1] += symbol
            else:
                out.append(symbol)
        return out

    # A symbol just merged must not merge again in the same pass: no pair here repeats itself.
    return [one(word) for word in words]


def book(words, merges):
    """The merges of Sennrich et al. 2016, algorithm 1; of equal counts, oldest symbols first."""
    words = [list(word) for word in words]
    age = sorted({symbol for word in words for symbol in word})
    found = []
    for _ in range(merges):
        counts = pair_counts(words)
        pair = min(counts, key=lambda p: (-counts[p], age.index(p[0]), age.index(p[1])))
        found.append(pair)
        age.append("".join(pair))
        words = merge(words, pair)
    return found


def test_byte_level_bpe_merges_lowest_lower_newest_by_the_book(tmp_path):
    """lowest lower newest (a space belongs to the word after it, written Ġ).

    we 3 times, all else at most 2                 -> w e
    lo, o+we, we+s, st twice; oldest symbols first -> l o
    then st, we+s twice                            -> s t
    we+st twice (lowest, newest), lo+we twice      -> we st
    """
    text = "lowest lower newest"
    words = ["lowest", "\u0120lower", "\u0120newest"]
    by_hand = [("w", "e"), ("l", "o"), ("s", "t"), ("we", "st")]
    assert book(words, 4) == by_hand
    found = tokenizers.train("byte_bpe", [text], 259 + 10, str(tmp_path / "t"))
    rules = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    assert [tuple(pair) for pair in rules["model"]["merges"]] == book(words, 10)
    four = tokenizers.train("byte_bpe", [text], 259 + 4, str(tmp_path / "four"))
    assert [four.decode([i]) for i in four.encode(text)] == (
        ["lo", "west", " ", "lo", "we", "r", " ", "n", "e", "west"]
    )
    assert found.decode(found.encode(text)) == text


def test_byte_level_bpe_merges_sennrichs_dictionary(tmp_path):
    """low 5, lower 2, newest 6, widest 3: es 9, est 9, lo 7, low 7, then newest's pairs 6."""
    assert book(SENNRICH, 4) == [("e", "s"), ("es", "t"), ("l", "o"), ("lo", "w")]
    tokenizers.train("byte_bpe", SENNRICH, 259 + 8, str(tmp_path / "t"))
    rules = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    assert [tuple(pair) for pair in rules["model"]["merges"]] == book(SENNRICH, 8)


def test_sentencepiece_bpe_merges_are_greedy(tmp_path):
    """Each piece, in order, joins a pair of the highest count (ties are sentencepiece's choice)."""
    tokenizers.train("bpe", SENNRICH, 260 + 7 + 10, str(tmp_path / "t"))
    import sentencepiece

    p = sentencepiece.SentencePieceProcessor(str(tmp_path / "t" / "sentencepiece.model"))
    pieces = [p.id_to_piece(i) for i in range(260, p.get_piece_size())]
    merged = [piece for piece in pieces if len(piece) > 1]
    words = [list(word) for word in SENNRICH]
    assert len(merged) >= 6
    for piece in merged[:6]:
        counts = pair_counts(words)
        best = max(counts.values())
        chosen = [pair for pair, n in counts.items() if n == best and "".join(pair) == piece]
        assert chosen, (piece, counts.most_common(4))
        words = merge(words, chosen[0])


# --- What is refused, and what is said -------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "vocab", "extra", "said"),
    [
        ("bpee", 400, (), "tokenizer kind 'bpee'.*mean 'bpe'"),
        ("bytes", 400, (), "'bytes' is not trained"),
        ("bpe", 200, (), "vocab=200: a bpe tokenizer with 0 extra tokens needs at least 260"),
        ("byte_bpe", 260, ("<a>", "<b>"), "with 2 extra tokens needs at least 261"),
        ("bpe", 100_000, (), r"vocab=100000 for a bpe tokenizer: .* support at most \d+"),
        ("unigram", 100_000, (), r"vocab=100000 .* support at most \d+"),
        ("byte_bpe", 100_000, (), r"vocab=100000 .* support at most \d+"),
        ("wordpiece", 100_000, (), r"vocab=100000 .* support at most \d+"),
        ("bpe", 400, ("<a>", "<a>"), "expected distinct, non-empty tokens"),
    ],
)
def test_impossible_training_is_refused(tmp_path, kind, vocab, extra, said):
    with pytest.raises(ValueError, match=said):
        tokenizers.train(kind, corpus()[:2], vocab, str(tmp_path / "t"), extra)
    assert list(tmp_path.iterdir()) == []


def test_bad_paths_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither 'bytes' nor an existing"):
        tokenizers.load(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="holds neither"):
        tokenizers.load(str(tmp_path))
    for name, content, said in (
        ("x.bin", "x", "unknown kind of file '.bin'"),
        ("x.model", "aGVsbG8= 0\n", "not a sentencepiece model"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
        ("other.tiktoken", "aGVsbG8= 0\n", "holds no splitting pattern"),
        ("r50k_base.tiktoken", "aGVsbG8=\n", r"r50k_base.tiktoken:1: expected `base64 rank`"),
        ("cl100k_base.tiktoken", "aGVsbG8= 0\n", "no rank for the single byte 0"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=said):
            tokenizers.load(str(tmp_path / name))


def test_changed_files_and_existing_folders_are_refused(made, tmp_path):
    target = tmp_path / "t"
    tokenizers.save(made["byte_bpe"][0], str(target))
    with pytest.raises(FileExistsError, match="exists; name a new one"):
        tokenizers.save(made["byte_bpe"][0], str(target))
    file = target / "tokenizer.json"
    rules = json.loads(file.read_text())
    rules["model"]["merges"].pop()
    file.write_text(json.dumps(rules))
    with pytest.raises(ValueError, match="its files were changed since it was saved"):
        tokenizers.load(str(target))


def test_ids_beyond_the_vocabulary_have_no_text(made):
    """A model's vocabulary is often padded beyond its tokenizer's: `jaxlm sample` ended in a
    traceback where the model drew such an id."""
    for found, _ in made.values():
        ids = found.encode("so it is")
        padded = [found.vocab, *ids[:2], 99999, *ids[2:], found.vocab + 1]
        assert found.decode(padded) == found.decode(ids)
        assert found.decode_bytes(padded) == found.decode_bytes(ids)
        stream = found.stream()
        assert "".join([stream.push(i) for i in padded] + [stream.finish()]) == found.decode(ids)
        with pytest.raises(ValueError, match="token id -1 is negative"):
            found.decode([-1])


def test_a_tokenizer_json_needs_an_end(made, tmp_path):
    rules = json.loads(pathlib.Path(made["byte_bpe"][1], "tokenizer.json").read_text())
    for token in rules["added_tokens"]:
        new = token["content"].replace("eos", "fin")
        rules["model"]["vocab"][new] = rules["model"]["vocab"].pop(token["content"])
        token["content"] = new
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(rules))
    with pytest.raises(ValueError, match="cannot tell which token ends a document"):
        tokenizers.load(str(path))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<|fin|>"}, "bos_token": None}))
    found = tokenizers.load(str(tmp_path))
    assert found.special["eos"] == made["byte_bpe"][0].special["eos"]
    config.write_text(json.dumps({"eos_token": "<|gone|>"}))
    with pytest.raises(ValueError, match="eos_token '<|gone|>', which is not in the vocabulary"):
        tokenizers.load(str(path))


def test_a_foreign_sentencepiece_model_is_read_as_its_own_library_reads_it(tmp_path):
    """LLaMA 2's settings: a dummy prefix, NFKC, no special care; decoding drops the prefix."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()[:4]),
        model_prefix=str(tmp_path / "m"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    found = tokenizers.load(str(tmp_path / "m.model"))
    own = sentencepiece.SentencePieceProcessor(str(tmp_path / "m.model"))
    assert not found.lossless and found.special["eos"] == 2
    for text in ("Hello  world", "\u00e9 caf\u00e9", corpus()[0][:300]):
        ids = found.encode(text)
        assert ids == own.encode(text)
        assert found.decode(ids) == own.decode(ids)
        stream = found.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == own.decode(ids)
    assert pickle.loads(pickle.dumps(found)).hash == found.hash
