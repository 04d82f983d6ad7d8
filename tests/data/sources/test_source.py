"""Documents from files of every kind, and what is said when they are wrong."""

import gzip
import json
import pathlib
import random

import fsspec
import pytest

from jaxlm.data.sources import source

TEXTS = ["one\r\n\ttwo", "zwei \u00e9\U0001f600", " three"]


def texts(name, field="text"):
    return [document.text for document in source.documents(str(name), field)]


def json_lines(values, field="text"):
    return "".join(json.dumps({field: value, "id": 1}) + "\n" for value in values).encode()


def zst(data):
    zstandard = pytest.importorskip("zstandard")
    # Two frames, one after the other: a valid file.
    compress = zstandard.ZstdCompressor().compress
    return compress(data[:10]) + compress(data[10:])


def test_every_kind_of_file_holds_the_same_documents(tmp_path):
    lines = json_lines(TEXTS)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\n\n"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.ndjson.zst").write_bytes(zst(lines))
    for name in ("a.jsonl", "b.jsonl.gz", "c.ndjson.zst"):
        assert texts(tmp_path / name) == TEXTS
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": TEXTS, "n": [1, 2, 3]}), tmp_path / "d.parquet")
    assert texts(tmp_path / "d.parquet", "body") == TEXTS


def test_text_files_are_one_document_each_unchanged(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_bytes(TEXTS[0].encode())
    (tmp_path / "a.md.gz").write_bytes(gzip.compress(TEXTS[1].encode()))
    (tmp_path / "deep" / "c.rst").write_bytes(TEXTS[2].encode())
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    assert texts(tmp_path) == [TEXTS[1], TEXTS[0], TEXTS[2]]
    assert texts(tmp_path / "*.txt") == [TEXTS[0]]
    assert texts(tmp_path / "**" / "*.rst") == [TEXTS[2]]
    found = next(source.documents(str(tmp_path / "b.txt")))
    assert found.origin == str(tmp_path / "b.txt")


def test_a_name_with_brackets_is_a_name_before_it_is_a_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert texts(tmp_path / "a[1].txt") == ["x"]


def test_remote_paths_through_fsspec():
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/b.txt", b"second")
    memory.pipe("/corpus/a.jsonl.gz", gzip.compress(json_lines(["first"])))
    try:
        assert texts("memory://corpus") == ["first", "second"]
        assert texts("memory://corpus/*.txt") == ["second"]
        assert texts("memory://corpus/b.txt") == ["second"]
        before = source.fingerprint("memory://corpus")
        memory.pipe("/corpus/b.txt", b"Second")
        assert source.fingerprint("memory://corpus") != before
        with pytest.raises(FileNotFoundError, match="memory://corpus/c.txt.*cannot be reached"):
            source.documents("memory://corpus/c.txt")
    finally:
        memory.rm("/corpus", recursive=True)


def test_gs_paths_go_through_epath(tmp_path, monkeypatch):
    """etils.epath is asked for gs://; a local folder stands in for the bucket."""
    from etils import epath

    (tmp_path / "a.txt").write_text("cloud")
    asked = []

    def path(name):
        asked.append(name)
        return pathlib.Path(name.replace("gs://bucket", str(tmp_path)))

    monkeypatch.setattr(epath, "Path", path)
    assert texts("gs://bucket/a.txt") == ["cloud"]
    assert texts("gs://bucket") == ["cloud"]
    assert texts("gs://bucket/*.txt") == ["cloud"]
    assert asked and all(name.startswith(("gs://", str(tmp_path))) for name in asked)


@pytest.mark.parametrize("name", ["no/such/file.txt", "no/such/*.txt"])
def test_missing_paths_are_named_at_the_call(name):
    with pytest.raises(FileNotFoundError, match="no/such"):
        source.documents(name)


def test_an_empty_directory_is_named_at_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no file"):
        source.documents(str(tmp_path))


def test_a_missing_field_names_line_keys_and_the_nearest(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json_lines(["a"], "text") + json_lines(["b"], "txt"))
    with pytest.raises(ValueError, match=r"x.jsonl:2: no field 'text'.*'id', 'txt'.*mean 'txt'"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a"', r"x.jsonl:2: bad JSON at column 13"),
        (b'["a"]', r"x.jsonl:2: expected a JSON object .* got a list"),
        (b'{"text": 3}', r"x.jsonl:2: field 'text' holds a int, expected a string"),
        (b'{"text": "\\ud83d"}', r"x.jsonl:2: .* lone surrogate '\\ud83d' at character 0"),
        (b'{"text": "a\xff"}', r"x.jsonl:2: not UTF-8 text: byte 0xff at offset 26 "),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = tmp_path / "x.jsonl"
    first = b'{"text": "ok"}\n'
    path.write_bytes(first + line + b"\n")
    with pytest.raises(ValueError, match=said):
        texts(path)


def test_undecodable_text_names_file_and_offset(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt: not UTF-8 text: byte 0xe9 at offset 3"):
        texts(tmp_path / "latin.txt")


@pytest.mark.parametrize("cut", ["truncated", "corrupt", "not compressed"])
@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_bad_compression_is_named(tmp_path, suffix, cut):
    data = random.Random(0).randbytes(50_000)
    if suffix == "gz":
        packed = gzip.compress(data)
    else:
        zstandard = pytest.importorskip("zstandard")
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    if cut == "truncated":
        packed = packed[: len(packed) // 2]
    elif cut == "corrupt":
        middle = len(packed) // 2
        packed = packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :]
    else:
        packed = b"plain text"
    path = tmp_path / f"x.txt.{suffix}"
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=rf"x.txt.{suffix}: (corrupt|truncated)"):
        texts(path)


def test_bad_parquet_and_bad_column_are_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"bad.parquet: not a readable Parquet file"):
        texts(tmp_path / "bad.parquet")
    parquet.write_table(pyarrow.table({"texts": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x.parquet: no column 'text'.*mean 'texts'"):
        texts(tmp_path / "x.parquet")
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"y.parquet:2: field 'text' holds a NoneType"):
        texts(tmp_path / "y.parquet")


def test_a_json_file_is_not_read_as_text_by_accident(tmp_path):
    (tmp_path / "x.json").write_text('{"text": "a"}')
    with pytest.raises(ValueError, match=r"\.json is not a line format"):
        source.documents(str(tmp_path / "x.json"))


def test_texts_of_the_splits_are_the_documents(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json_lines([f"document {i}" for i in range(60)]))
    held = list(source.texts(str(tmp_path / "x.jsonl"), "text", "val", 0.05))
    assert held == [f"document {i}" for i in (21, 22, 55, 59)]
    kept = list(source.texts(str(tmp_path / "x.jsonl"), "text", "train", 0.05))
    assert sorted(kept + held) == sorted(texts(tmp_path / "x.jsonl"))


def test_split_is_a_function_of_the_text_alone():
    many = [f"document {i}" for i in range(20_000)]
    held = [text for text in many if source.split(text, 0.05) == "val"]
    assert len(held) / len(many) == pytest.approx(0.05, abs=0.005)
    assert all(source.split(text, 0.2) == "val" for text in held)  # more holdout keeps the old
    assert source.split("anything", 0.0) == "train"
    # By sha256sum: "document 21" begins 00f6, below 0x0ccc... = 0.05 * 2**64, as do these alone.
    assert [i for i in range(60) if source.split(many[i], 0.05) == "val"] == [21, 22, 55, 59]


def test_fingerprint_follows_content_names_and_field_but_not_place_or_time(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.txt").write_text("a")
        (folder / "b.txt").write_text("b")
    before = source.fingerprint(str(one))
    assert source.fingerprint(str(two)) == before
    (two / "a.txt").touch()
    assert source.fingerprint(str(two)) == before
    assert source.fingerprint(str(two), "body") != before
    (two / "b.txt").rename(two / "c.txt")
    assert source.fingerprint(str(two)) != before
    (one / "a.txt").write_text("A")
    assert source.fingerprint(str(one)) != before


def test_importing_the_data_layer_is_light_and_never_imports_jax():
    import subprocess
    import sys

    modules = ["tokenizers", "pack", "pretraining", "sources.source", "tokenized.shards"]
    heavy = "jax grain sentencepiece pyarrow zstandard tiktoken array_record"
    code = (
        f"import sys, jaxlm.data; assert 'numpy' not in sys.modules\n"
        f"import {', '.join(f'jaxlm.data.{name}' for name in modules)}\n"
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
