"""Weights that files hold as several tensors: codes, scales, zeros."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.convert import tensor_files
from jaxlm.convert.quantised import elements
from jaxlm.convert.quantised.elements import Elements
from jaxlm.convert.tensor_files import Tensor

Arrays = dict[str, np.ndarray]


class Compound(NamedTuple):
    """One weight in few bits, of several tensors. decode(the arrays of `parts`) -> its Elements, of
    `shape`; it may raise ValueError."""

    stored: str
    parts: dict[str, Tensor]
    shape: tuple[int, ...]
    decode: Callable[[Arrays], Elements]

    # what a weight of one tensor has, too
    @property
    def dtype(self) -> str:
        """The dtype of the weight that it represents."""
        return "F32"

    def elements(self) -> Elements:
        """Its numbers, read from the files. Raises: ValueError naming the weight, for codes that
        mean nothing."""
        try:
            return self.decode({name: tensor_files.read(t) for name, t in self.parts.items()})
        except ValueError as error:
            raise ValueError(f"{self.stored}: {error}") from error


def read(tensor: Tensor | Compound) -> np.ndarray:
    """A weight as one array: float32, of one that is stored in few bits; else in its own dtype."""
    if isinstance(tensor, Compound):
        return elements.dense(tensor.elements())
    return tensor_files.read(tensor)


Tensors = dict[str, Tensor | Compound]


class Format(NamedTuple):
    """Storage of weights in few bits in files. gather(tensors by name) -> the weights by name,
    those in few bits as Compounds; it raises ValueError for tensors that do not fit. notices: what
    the checkpoint says of computing with them that is not done here."""

    name: str
    gather: Callable[[dict[str, Tensor]], Tensors]
    notices: Sequence[str] = ()


# make(name of the weight, its tensors by part) -> the Compound
Make = Callable[[str, dict[str, Tensor]], Compound]


def gather(
    tensors: dict[str, Tensor],
    suffixes: Mapping[str, str],
    key: str,
    make: Make,
    optional: Sequence[str] = (),
    weight: str = ".weight",
    skipped: Sequence[str] = (),
) -> Tensors:
    """The weights of a checkpoint whose compounds have the tensors NAME + suffix.

    suffixes: by part; those of `optional` may be missing. key: the part that only compounds have.
    weight: what the weight is called, after NAME. skipped: suffixes of a compound's tensors that
    are left out.

    Raises: ValueError for a compound without one of its tensors.
    """
    end = suffixes[key]
    stems = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    if not stems:
        raise ValueError(
            f"config.json says that weights are in few bits, and no tensor is named *{end}"
        )
    used: set[str] = set()
    made: Tensors = {}
    for stem in stems:
        parts = {p: tensors[stem + s] for p, s in suffixes.items() if stem + s in tensors}
        missing = [stem + s for p, s in suffixes.items() if p not in parts and p not in optional]
        if missing:
            raise ValueError(f"{stem}{weight} is in few bits, and tensor {missing[0]} is missing")
        used |= {t.stored for t in parts.values()} | {stem + s for s in skipped}
        made[stem + weight] = make(stem + weight, parts)
    return made | {name: t for name, t in tensors.items() if name not in used}


def expect(name: str, tensor: Tensor, shape: Sequence[int | None], dtypes: Sequence[str]) -> None:
    """Raises: ValueError for a tensor of another shape (None fits any size) or dtype, with what
    would be right."""
    fits = len(shape) == len(tensor.shape) and all(
        a is None or a == b for a, b in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in dtypes:
        sizes = ["any" if n is None else n for n in shape]
        raise ValueError(
            f"{name}: tensor {tensor.stored} is {tensor.dtype} {[*tensor.shape]}; "
            f"{' or '.join(dtypes)} {sizes} follows from quantization_config"
        )


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """The numbers uint8[..., n 32 / bits] in words int32[..., n], from their low bits on."""
    octets = np.ascontiguousarray(words).view(np.uint8)  # little endian
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (octets[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*words.shape[:-1], words.shape[-1] * 32 // bits)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32[..., ceil(n bits / 32)]: the inverse of `unpack`, filled up with zeros."""
    each = 8 // bits
    rest = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % (32 // bits))]
    parts = np.pad(codes, rest).reshape(*codes.shape[:-1], -1, each)
    octets = np.zeros(parts.shape[:-1], np.uint8)
    for i in range(each):
        octets |= parts[..., i] << np.uint8(bits * i)
    return octets.view(np.int32)


def groups(name: str, inputs: int, size: int | None) -> int:
    """The number of groups of `size` inputs, None being all. Raises: ValueError for a size that
    does not divide them."""
    if size is None:
        return 1
    if inputs % size:
        raise ValueError(
            f"{name}: group_size={size} does not divide its {inputs} inputs; the files do not "
            "agree with quantization_config"
        )
    return inputs // size


def spread(x: np.ndarray, size: int) -> np.ndarray:
    """[outputs, groups] for every input: [outputs, groups * size]."""
    each = np.broadcast_to(x[..., None], (*x.shape, size))
    return each.reshape(*x.shape[:-1], math.prod(x.shape[-1:]) * size)
