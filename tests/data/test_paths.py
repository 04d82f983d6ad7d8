"""Paths as strings and as path objects."""

import json

from jaxlm.data import tokenizers
from jaxlm.data.records import records
from jaxlm.data.sources import source
from jaxlm.data.templates import template
from jaxlm.data.tokenized import shards
from jaxlm.models import llama
from jaxlm.train.run import directory, metrics, plot
from jaxlm.train.run import run as runs


def test_what_reads_a_path_takes_both_kinds(tmp_path):
    """`records.read(Path)` raised a TypeError of `in`, `directory.load(str)` one of `/`."""
    file = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"words and words {n}"}) for n in range(9)]
    file.write_text("\n".join(lines), "utf-8")
    jinja = tmp_path / "plain.jinja"
    jinja.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "utf-8")
    run = runs.Run(name="x", model=llama.Config(), out=str(tmp_path))
    (tmp_path / "x").mkdir()
    directory.record(tmp_path / "x", run)

    for kind in (str, lambda path: path):
        assert len(list(records.read(kind(file)))) == 9
        assert len(list(source.documents(kind(file)))) == 9
        assert source.fingerprint(kind(file)) == source.fingerprint(file)
        folder = tmp_path / f"{kind.__name__.strip('<>')}"
        trained = tokenizers.train("byte_bpe", lines, 262, kind(folder / "tokenizer"))
        assert tokenizers.load(kind(folder / "tokenizer")).hash == trained.hash
        shards.tokenize(kind(file), "text", trained, kind(folder / "shards"), 0.0)
        assert len(shards.open_shards(kind(folder / "shards"), "train", trained.hash)) == 9
        assert template.load(kind(jinja), "bytes").source == jinja.read_text("utf-8")
        assert directory.load(kind(tmp_path / "x")) == run
        assert directory.ended(kind(tmp_path / "x")) is None
        assert list(metrics.records(kind(tmp_path / "x" / metrics.FILE))) == []
        assert plot.loss(kind(tmp_path / "x")) is None
