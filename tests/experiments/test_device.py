"""The script for one accelerator: all of it runs, on a CPU, with small shapes."""

import importlib.util
import json
import math
import pathlib
import sys

import pytest

FILE = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks" / "device.py"


@pytest.mark.slow
def test_every_part_runs_and_its_numbers_are_finite(tmp_path, monkeypatch):
    """So that the first minutes on a device are not spent on typing errors. Here the device is the
    CPU that the laws compare with, so that they are exact."""
    spec = importlib.util.spec_from_file_location("device", FILE)
    device = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "device", device)  # dataclasses looks there
    spec.loader.exec_module(device)
    file = tmp_path / "device.json"
    assert device.main(["--tiny", "--minutes", "60", "--write", str(file)]) == 0
    parts = json.loads(file.read_text())["parts"]
    assert parts.keys() == device.PARTS.keys()
    for rows in parts.values():
        for row in rows:
            numbers = [x for x in row.values() if isinstance(x, float)]
            assert numbers and all(map(math.isfinite, numbers))
    assert [max(row["logits"], row["loss"], row["grads"]) for row in parts["laws"]] == [0]
    assert max(row["value"] for row in parts["kernels"]) < 1e-5
    assert device.main(["--tiny", "--minutes", "0", "--parts", "limits"]) == 0
