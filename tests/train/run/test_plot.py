"""Pictures drawn from records."""

import json

from jaxlm.train.run import plot


def write(folder, records):
    lines = [json.dumps(r) for r in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def curve(split, name, values):
    return [{"step": i, "split": split, name: v} for i, v in enumerate(values)]


def test_a_curve_is_drawn_and_gaps_are_left_out(tmp_path):
    val = [r | {"bits_per_byte": r["nll"]} for r in curve("val", "nll", [3.0, 2.0])]
    write(tmp_path, curve("train", "loss", [3.0, None, 2.0]) + val)
    path = plot.loss(tmp_path)
    assert path == tmp_path / "loss.png" and path.read_bytes()[:4] == b"\x89PNG"


def test_a_curve_without_evaluations_is_drawn(tmp_path):
    write(tmp_path, curve("train", "loss", [3.0, 2.0]))
    assert plot.loss(tmp_path).stat().st_size > 1000


def test_nothing_is_drawn_from_nothing(tmp_path):
    write(tmp_path, curve("train", "loss", [None]))
    assert plot.loss(tmp_path / "absent") is None
    assert plot.loss(tmp_path) == tmp_path / "loss.png"  # where it is not finite is shown
