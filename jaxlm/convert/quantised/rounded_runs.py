"""Run directories whose matrices are in few bits, made from others."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.convert import adapters, pretrained
from jaxlm.core import atomic, check, param
from jaxlm.core.remote import staging
from jaxlm.data.sources import source as sources
from jaxlm.eval import calibration, paired_weights
from jaxlm.models import packed_weights
from jaxlm.ops import quant
from jaxlm.ops.quant import awq, gptq
from jaxlm.train import program, trained_weights
from jaxlm.train.run import directory
from jaxlm.train.run.run import Run

Method = Literal["rtn", "gptq", "awq"]


class Quantised(NamedTuple):
    """A run directory that was made: its Run, what its weights take, the bytes of their files, and
    the comparison with those they were made from, where a text was given."""

    run: Run
    size: packed_weights.Size
    file_bytes: int
    comparison: paired_weights.Comparison | None


def quantise(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    scheme: quant.Scheme,
    method: Method = "rtn",
    calibrated_on: str | None = None,
    data: str | None = None,
    *,
    which: trained_weights.Which = "last",
    windows: int = 128,
    documents: int = 256,
) -> Quantised:
    """A new run directory with the weights of another, the matrices of its layers in few bits
    and, by the scheme, its tables (`packed_weights`), at step 0 and finished. It is sampled and
    evaluated as any other.

    method: "rtn" rounds to the nearest; "gptq" and "awq" choose by the inputs that matrices have on
    `calibrated_on`, a file of texts or a corpus, of which the first `windows` rows of data.seq
    tokens are read. data: a file of texts or a corpus on whose first `documents` a decoder is
    compared with what it was made from; None is `calibrated_on`, where that is given.

    Raises: FileExistsError for a target that is not empty; ValueError for a method without its
    text or its format, a model without matrices of layers, and weights that are in few bits.
    """
    source, target = staging.local(source), pathlib.Path(target)
    pretrained.refuse_existing(target)
    trained_weights.refuse_packed(source, "put into few bits again")
    wrong = _problems(directory.load(source), scheme, method, calibrated_on, windows, documents)
    check.refuse("", wrong)
    saved = trained_weights.load(source, which)
    if data is not None:
        paired_weights.refuse(saved.model)
    packed_weights.paths(saved.model.spec)
    tokenizer = directory.tokenizer(source, saved.run)
    make = packed_weights.rounding(scheme)
    if method != "rtn":
        assert calibrated_on is not None
        texts = (document.text for document in sources.documents(calibrated_on))
        rows = calibration.windows(tokenizer, texts, _length(saved), windows)
        make = _calibrated(saved, rows, scheme, method)
    params = packed_weights.encode(saved.model.spec, saved.params, make, scheme)
    whole = dataclasses.replace(saved.run, adapter=None, start=None)
    run = adapters.standalone(whole, target)
    settings = dataclasses.asdict(scheme)
    few: dict[str, Any] = {"name": scheme.name, "scheme": settings, "method": method}
    few |= {"source": str(source), "layout": packed_weights.layout(params)}
    facts = {program.PACKED: few, "val": None}
    facts["model_type"] = pretrained.was(source)
    generation = trained_weights.generation(source)
    with atomic.folder(target) as folder:
        arrays = packed_weights.arrays(params)
        pretrained.fill(folder, target, run, arrays, facts, generation, tokenizer.hash)
    compared, text = None, data or calibrated_on
    if text is not None and saved.model.kind == "decoder":
        found = (document.text for document in sources.documents(text))
        rows = paired_weights.documents(tokenizer, found, _length(saved), documents)
        compared = paired_weights.compare(saved.model, saved.params, params, rows)
    return Quantised(run, packed_weights.size(params), _stored(target), compared)


def _problems(
    run: Run,
    scheme: quant.Scheme,
    method: str,
    calibrated_on: str | None,
    windows: int,
    documents: int,
) -> Iterator[str]:
    methods = get_args(Method)
    yield from check.problem("method", method, method in methods, f"one of {list(methods)}")
    yield from check.problem("windows", windows, windows >= 1, "at least 1")
    yield from check.problem("documents", documents, documents >= 1, "at least 1")
    if method != "rtn":
        fits = f"one of {list(quant.BITS)} with method {method}, which chooses among integers"
        yield from check.problem("scheme", scheme.name, scheme.name in quant.BITS, fits)
        fits = f"a file of texts or a corpus, which method {method} reads"
        yield from check.problem("calibration", calibrated_on, bool(calibrated_on), fits)


def _length(saved: trained_weights.Saved) -> int:
    """Tokens of a row: those that the run read, or as many as the model has positions."""
    return min(saved.run.data.seq, saved.model.context or saved.run.data.seq)


def _stored(folder: pathlib.Path) -> int:
    """Bytes of the files that hold a run's weights at step 0."""
    files = (folder / "checkpoints" / "0" / "params").rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())


def _calibrated(
    saved: trained_weights.Saved, rows: np.ndarray, scheme: quant.Scheme, method: str
) -> packed_weights.Encode:
    """The Encode of a method, which observes the inputs of the weights in the order in which they
    are asked for."""
    chosen = packed_weights.paths(saved.model.spec)
    observed = calibration.observe(saved.model, saved.params, rows, chosen)
    held: dict[str, calibration.Inputs] = {}

    def make(path: str, i: int, w: jax.Array, p: param.Param) -> quant.Packed:
        if path not in held:
            held.clear()
            name, inputs = next(observed)
            assert name == path
            held[path] = inputs
        gram, magnitude = (x[i] for x in held[path])
        if not p.copies:
            return _chosen(method, w, gram, magnitude, p.inputs, scheme)
        each = [_chosen(method, *parts, p.inputs, scheme) for parts in zip(w, gram, magnitude)]
        return jax.tree.map(lambda *experts: jnp.stack(experts), *each)

    return make


def _chosen(
    method: str,
    w: jax.Array,
    gram: np.ndarray,
    magnitude: np.ndarray,
    inputs: int,
    scheme: quant.Scheme,
) -> quant.Packed:
    """One matrix by its inputs."""
    if method == "gptq":
        return gptq.encode(w, gram, inputs, *scheme.integers)
    sums: list[Any] = [jnp.asarray(x, jnp.float32) for x in (gram, magnitude)]
    return awq.encode(w, *sums, inputs, *scheme.integers)
