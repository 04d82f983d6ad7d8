"""Checkpoints from strangers: whatever their files claim, an error names it, soon and cheaply."""

import json
import pathlib
import time

import numpy as np
import pytest

from jaxlm.convert import read, tensor_files, tokenizer_files
from jaxlm.core import json_file
from jaxlm.data import tokenizers
from jaxlm.data.tokenized import manifest
from tests.convert.test_checkpoint import FILE, refusal, save, settings


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hf").mkdir()
    save(tmp_path / "hf")
    return tmp_path / "hf"


def header(folder, change, data=b"\0" * 24):
    """A file of two tensors whose header was changed."""
    record = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
    }
    text = change(record)
    text = (text if isinstance(text, str) else json.dumps(text)).encode()
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_header_larger_than_the_format_allows_is_not_read(folder):
    """A header of 2.9 GB was read whole, and parsed."""
    with (folder / FILE).open("wb") as file:
        file.write((2_900_000_000).to_bytes(8, "little"))
        file.truncate(2_900_000_100)  # sparse: it takes no room on the disk
    clock = time.process_time()
    assert "a header of 2900000000 bytes, where at most 100000000" in refusal(folder)
    assert time.process_time() - clock < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"b": r["b"] | {"data_offsets": [4, 20]}}, "b begins at byte 4, where 8"),
        (lambda r: r | {"b": r["b"] | {"data_offsets": [12, 28]}}, "b begins at byte 12, where 8"),
        (lambda r: r | {"b": r["b"] | {"shape": [1, 4], "data_offsets": [8, 23]}}, "15 bytes"),
        (lambda r: r | {"b": r["b"] | {"shape": [4]}, "c": r["b"]}, "c begins at byte 8"),
        (lambda r: r | {"b": r["b"] | {"shape": [-2, -2]}}, "negative size"),
        (lambda r: r | {"b": r["b"] | {"data_offsets": [8, 4]}}, "negative size"),
        (lambda r: r | {"b": r["b"] | {"shape": [2.0, 2]}}, "header is not one"),
        (lambda r: r | {"b": r["b"] | {"shape": [True, 4]}}, "header is not one"),
        (lambda r: r | {"b": r["b"] | {"data_offsets": [8]}}, "header is not one"),
        (lambda r: r | {"b": r["b"] | {"dtype": ["F32"]}}, "header is not one"),
        (lambda r: r | {"b": r["b"] | {"shape": [10**12, 10**12]}}, "16 bytes for F32"),
        (lambda r: json.dumps(r).replace('"b"', '"a"'), "['a'] is there twice"),
        (lambda r: "[" * 100_000, "header is not one"),
        (lambda r: "[]", "header is not one"),
        (lambda r: {"a": r["a"]}, "its header says"),
    ],
)
def test_headers_that_lie_are_refused(folder, change, message):
    header(folder, change)
    assert message in refusal(folder)


def test_a_header_in_another_order_is_read(folder):
    header(folder, lambda r: dict(reversed(r.items())) | {"__metadata__": {"a": "b"}})
    tensors = tensor_files.find(folder)
    assert {n: t.shape for n, t in tensors.items()} == {"a": (2,), "b": (2, 2)}
    np.testing.assert_array_equal(tensor_files.read(tensors["b"]), np.zeros((2, 2)))


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", 3, None]
)
def test_an_index_names_files_beside_it_alone(folder, name):
    (folder.parent / "other.safetensors").write_bytes((folder / FILE).read_bytes())
    (folder / tensor_files.INDEX).write_text(
        json.dumps({"weight_map": {"model.norm.weight": name}})
    )
    assert "the name of a file in it is needed" in refusal(folder)
    for odd in ({"weight_map": [1]}, {}):
        (folder / tensor_files.INDEX).write_text(json.dumps(odd))
        assert "weight_map" in refusal(folder)


def test_links_out_of_a_checkpoint_are_refused_and_those_of_a_download_cache_followed(tmp_path):
    repository, other = tmp_path / "models--x", tmp_path / "secret"
    folder = repository / "snapshots" / "rev"
    for place in (folder, repository / "blobs", other):
        place.mkdir(parents=True)
    save(other)
    tokenizers.train("byte_bpe", ["words"] * 9, 262, str(other / "tokenizer"))
    for name in ("config.json", FILE):
        (repository / "blobs" / name).write_bytes((other / name).read_bytes())
        (folder / name).symlink_to(pathlib.Path("../../blobs") / name)
    assert read.load(folder)
    for name in (FILE, "config.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(other / name)
        assert "outside its directory" in refusal(folder)
    # a file that would be copied into the run, and from there into every export
    (folder / "tokenizer.json").write_bytes((other / "tokenizer" / "tokenizer.json").read_bytes())
    (folder / "chat_template.jinja").symlink_to(other / "config.json")
    with pytest.raises(ValueError, match="chat_template.jinja is a link"):
        tokenizer_files.bring(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 given; at most 10000"),
        ({"num_hidden_layers": -3}, "model.layers: -3"),
        ({"vocab_size": -1}, "model.vocab: -1"),
        ({"vocab_size": 10**15}, "vocab_size=1000000000000000 given"),
        ({"vocab_size": "many"}, "model.vocab: 'many' given; it must be at least 1"),
        ({"num_attention_heads": 0}, "a field has a value|model.heads: 0"),
        ({"num_attention_heads": None}, "num_attention_heads=null is not supported"),
        ({"rope_parameters": [1]}, "a field has a value that a llama cannot have"),
        ({"hidden_size": [16]}, "a field has a value that a llama cannot have"),
        ({"architectures": 3}, "architectures"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_built(folder, changes, message):
    settings(folder, **changes)
    clock = time.process_time()
    refused = refusal(folder)
    assert any(part in refused for part in message.split("|")), refused
    assert time.process_time() - clock < 1


def test_json_that_is_none_or_too_deep_is_named(folder, tmp_path):
    """Python's reader of JSON raises RecursionError, which nobody caught, beyond 1,000 levels."""
    for text in ("[" * 100_000, '{"a": ' * 100_000, "{", "[1]", "\xff"):
        (folder / "config.json").write_text(text, "latin-1")
        assert "config.json" in refusal(folder)
        (tmp_path / "tokenizer.json").write_text(text, "latin-1")
        with pytest.raises(ValueError, match="tokenizer.json"):
            tokenizers.load(str(tmp_path / "tokenizer.json"))
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(json_file.BYTES + 1)
    with pytest.raises(ValueError, match="large.json has 300000001 bytes"):
        json_file.read_object(tmp_path / "large.json")


def test_shards_name_files_of_their_own_directory_alone(tmp_path):
    part = {"documents": 1, "tokens": 1, "bytes": 1}
    index = {"file": "../../secret.npy", "size": 1, "crc32": 1}
    splits = {"train": part | {"lengths": index, "shards": []}}
    (tmp_path / manifest.FILE).write_text(json.dumps({"format": manifest.FORMAT, "splits": splits}))
    with pytest.raises(ValueError, match="secret.npy' is outside this directory"):
        manifest.read(tmp_path)
