"""TensorBoard's event files."""

import struct

from jaxlm.train.run.trackers import tensorboard


def test_a_number_beyond_float32_is_infinite_there(tmp_path):
    """The perplexity of a diverged run, up to 1e304, ended the run with an OverflowError."""
    made = tensorboard.open(tmp_path)
    made.write(3, {"val/perplexity": 1e304, "loss": float("nan"), "lr": 0.5})
    data = made.path.read_bytes()
    for value in (float("inf"), 0.5):
        assert struct.pack("<f", value) in data
