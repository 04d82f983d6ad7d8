"""Every row of every architecture converts both ways without losing or changing a number."""

import numpy as np
import pytest

from jaxlm import convert, models
from jaxlm.convert import read, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.core import param
from tests import programs
from tests.convert import cases


def configs():
    """(name, model_type, Config): of the oracles, and of the laws where an architecture says it."""
    for name, record in cases.ORACLES.items():
        kind = record["model_type"]
        # the default of some, null: it has to be there, as others have another
        given = {"sliding_window": None} | record
        del given["architecture"]
        yield name, kind, read.understood(Fields(given), kind)
    for case, cfg in programs.FAMILIES.items():
        for kind, architecture in convert.ARCHITECTURES.items():
            if architecture.family is type(cfg):
                try:
                    architecture.write(cfg)
                except ValueError:
                    continue
                yield f"{case} as {kind}", kind, cfg


CONFIGS = {name: (kind, cfg) for name, kind, cfg in configs()}

# First rows that nothing reads, and that are written as 0: OPT counts positions from 2.
UNREAD = {"model.decoder.embed_positions.weight": 2}


def jobs(rows, flat):
    """One job a row and place; also of rows that only files of another layout need."""
    for row in rows.outer:
        yield from read.jobs(rows._replace(outer=[row], stacks={}), flat)
    for path, stack in rows.stacks.items():
        for row in stack.rows:
            single = weight_rows.Table([], {path: stack._replace(rows=[row])})
            yield from read.jobs(single, flat)


def numbers(shapes, start):
    """float64 arrays of these shapes, every element different."""
    arrays = []
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(np.arange(start, start + size, dtype=np.float64).reshape(shape))
        start += size
    return arrays


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert np.shape(x) == np.shape(y) and np.array_equal(x, y)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_inverse_both_ways(name):
    kind, cfg = CONFIGS[name]
    table = convert.ARCHITECTURES[kind].names(cfg)
    for job in jobs(table, param.flatten(models.spec(cfg))):
        row, params = job.row, job.params
        ours = numbers([p.shape for p in params], 1)
        written = row.write(ours, params)
        shapes = [tuple(s) for s in row.shapes(params)]
        assert [np.shape(x) for x in written] == shapes, job.theirs
        same(row.read(written, params), ours)
        theirs = numbers(shapes, 1)
        for their_name, array in zip(job.theirs, theirs, strict=True):
            array[: UNREAD.get(their_name, 0)] = 0
        weights = row.read(theirs, params)
        assert [np.shape(x) for x in weights] == [p.shape for p in params], job.ours
        same(row.write(weights, params), theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_has_a_row_and_no_tensor_two(name):
    kind, cfg = CONFIGS[name]
    flat = param.flatten(models.spec(cfg))
    jobs_of_all = read.jobs(convert.ARCHITECTURES[kind].names(cfg), flat)
    counts = dict.fromkeys(flat, 0)
    for job in jobs_of_all:
        for path in job.ours:
            counts[path] += 1
    for path, p in flat.items():
        layers = p.shape[0] if p.axes[0] == "layer" else 1
        assert counts[path] == layers, path
    theirs = [name for job in jobs_of_all for name in job.theirs]
    assert len(theirs) == len(set(theirs))
    elements = sum(int(np.prod(s)) for job in jobs_of_all for s in job.row.shapes(job.params))
    assert elements >= param.count(models.spec(cfg))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_read_back_as_it_was_written(name):
    kind, cfg = CONFIGS[name]
    assert read.understood(Fields(convert.ARCHITECTURES[kind].write(cfg)), kind) == cfg
