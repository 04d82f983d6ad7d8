"""Low-rank adapters: any objective, trained on a few weights along with frozen ones. Hu et al. 2021
(LoRA); Dettmers et al. 2023 (QLoRA).

    x w          becomes          x w + scale * (x a) b          w frozen, a and b trained

b starts at 0, so that the first step is that of the weights themselves. A reference policy among
the frozen weights ("the weights this run begins from") is the base of the adapters, and is held
once. An objective's own heads are trained whole.
"""

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check, param, precision
from jaxlm.models import packed_weights
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Frozen, Objective, Stored
from jaxlm.ops import linear
from jaxlm.ops.quant import nf4

ADAPTER, BASE = "adapter", "base"
PACKED = "None: the matrices of `start` are in few bits already, and stay as they are"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the matrices named; all else stays as the run begins from it."""

    rank: int = 8
    """Numbers between `a` and `b`: the rank of what is added to a matrix."""
    alpha: float = 16.0
    """Scale of the added product: alpha / rank, or alpha / sqrt(rank)."""
    targets: tuple[str, ...] = ("stack/*/q", "stack/*/v")
    """Paths of matrices; `*` matches anything, "/" too. "stack/*" is every matrix of the
    layers."""
    scaling: Literal["rank", "root"] = "rank"
    """Divide alpha by the rank (LoRA), or by its square root (Kalajdzievski 2023, rsLoRA)."""
    dropout: float = 0.0
    """Probability with which a number that `a` multiplies is 0 while training. It is drawn in every
    pass, those of a policy in reinforcement learning too."""
    quantise: Literal["nf4", "nf4_double"] | None = None
    """Storage of the layers' frozen matrices: in 4 bits, also with scales of 8 bits, or (None) as
    they are."""

    def __post_init__(self) -> None:
        check.within("adapter", self, "rank", least=1)
        check.within("adapter", self, "alpha", above=0)
        check.within("adapter", self, "dropout", least=0, below=1)
        fits = 'paths such as "stack/*/q"'
        check.field("adapter.targets", self.targets, bool(self.targets), fits)

    @property
    def scale(self) -> float:
        """The factor on the product of `a` and `b`."""
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))


def adapt(
    objective: Objective, model: Model, cfg: Lora, packed: packed_weights.Layout | None = None
) -> Objective:
    """The objective with adapters in place of the model's weights. packed: how the matrices of the
    base are stored in few bits, where the run that it is from has them so.

    spec: {"adapter": {path of a target: {"a", "b"}}}, and the objective's heads, whole. frozen: the
    model's weights as "base", and what else the objective reads; weights that it reads from where
    the run begins are those of the base.

    Raises: ValueError for targets that match no matrix, or one that holds several (experts), and
    for an objective that moves weights by a rule of its own.
    """
    if objective.adjust is not None:
        raise ValueError(
            "adapter: this objective moves weights by a rule of its own (objective.bias_speed), "
            "and an adapter freezes them; set it to 0"
        )
    if BASE in objective.frozen or ADAPTER in objective.spec:
        raise ValueError(f"adapter: this objective has weights called {BASE!r} or {ADAPTER!r}")
    heads = {name: part for name, part in objective.spec.items() if name not in model.spec}
    shared = {
        name: part
        for name, part in objective.frozen.items()
        if part.run is None and part.spec.keys() <= model.spec.keys()
    }
    apart = {name: part for name, part in objective.frozen.items() if name not in shared}
    storage = stored(model.spec, cfg)
    if packed is not None:
        check.field("adapter.quantise", cfg.quantise, cfg.quantise is None, PACKED)
        like = packed_weights.abstract(model.spec, packed)
        storage = Stored(packed_weights.places(model.spec, packed), None, like)

    def weights(params: param.Tree, frozen: param.Tree) -> param.Tree:
        return joined(cfg, frozen[BASE], params[ADAPTER], None) | {n: params[n] for n in heads}

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Any, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        base = frozen[BASE]
        drop = None
        if key is not None and cfg.dropout:
            key, drop = jax.random.split(key)
        adapted = joined(cfg, base, params[ADAPTER], drop) | {n: params[n] for n in heads}
        others = {name: frozen[name] for name in apart}
        for name, part in shared.items():
            others[name] = {weight: base[weight] for weight in part.spec}
        return objective.loss(adapted, others, batch, key)

    return Objective(
        {ADAPTER: spec(model.spec, cfg)} | heads,
        loss,
        report=objective.report,
        frozen={BASE: Frozen(model.spec, None, storage)} | apart,
        weights=weights,
        begun=objective.begun,
    )


def spec(weights: param.Tree, cfg: Lora) -> param.Tree:
    """The adapters of a model's weights: {path of a target: {"a", "b"}}. Raises: as `targets`."""
    chosen = targets(weights, cfg)
    return param.nested({path: _pair(p, cfg.rank) for path, p in chosen.items()})


def targets(spec: param.Tree, cfg: Lora) -> dict[str, param.Param]:
    """The matrices that get adapters, by path.

    Raises: ValueError for a pattern that matches none, with the nearest paths, and for a matrix
    that is not one for each layer.
    """
    flat = param.flatten(spec)
    matrices = {path: p for path, p in flat.items() if p.inputs}
    chosen: dict[str, param.Param] = {}
    for pattern in cfg.targets:
        hits = {path: p for path, p in matrices.items() if fnmatch.fnmatchcase(path, pattern)}
        if not hits:
            near = difflib.get_close_matches(pattern, matrices, 3, 0.0)
            what = "no matrix" if fnmatch.filter(flat, pattern) else "no weight"
            raise ValueError(f"adapter.targets: {pattern!r} matches {what}; the nearest are {near}")
        chosen |= hits
    for path, p in chosen.items():
        if not single(p):
            raise ValueError(
                f"adapter.targets: {path} is a matrix for each of {p.axes[: p.copies]}; adapters "
                "are for matrices of which a layer has one"
            )
        if cfg.dropout and not p.copies:
            raise ValueError(
                f"adapter.dropout: {cfg.dropout} given, and {path} in adapter.targets, which "
                "is not a weight of the layers; it must be 0"
            )
    return {path: chosen[path] for path in flat if path in chosen}


def single(p: param.Param) -> bool:
    """Whether a layer has one of this weight, not one for each expert or head."""
    return set(p.axes[: p.copies]) <= {"layer"}


def _pair(p: param.Param, rank: int) -> dict[str, param.Param]:
    """The adapter of a matrix [copies..., inputs..., outputs...]: a [copies..., inputs..., rank]
    and b [copies..., rank, outputs...], split over the mesh where the matrix is."""
    cut = p.copies + p.inputs
    a = param.Param((*p.shape[:cut], rank), (*p.axes[:cut], "lora"), uniform, p.copies, p.inputs)
    shape = (*p.shape[: p.copies], rank, *p.shape[cut:])
    axes = (*p.axes[: p.copies], "lora", *p.axes[cut:])
    return {"a": a, "b": param.Param(shape, axes, param.zeros, p.copies, 1)}


def uniform(key: jax.Array, p: param.Param) -> jax.Array:
    """Uniform in +-1 / sqrt(inputs): He et al. 2015 with a = sqrt(5), as torch starts a linear
    layer and peft an adapter's `a`."""
    bound = p.fan_in**-0.5
    return jax.random.uniform(key, p.shape, jnp.float32, -bound, bound).astype(precision.wide())


def joined(cfg: Lora, base: param.Tree, adapters: param.Tree, key: jax.Array | None) -> param.Tree:
    """The base with `linear.Lora` where there are adapters: nothing is computed. A key turns
    dropout on."""

    def join(path: str, w: Any) -> Any:
        if f"{path}/a" not in flat:
            return w
        a, b = flat[f"{path}/a"], flat[f"{path}/b"]
        layers = w.shape[: a.ndim + b.ndim - 2 - len(w.shape)]
        keys = None
        if key is not None:
            own = jax.random.fold_in(key, names.index(path))
            keys = jax.random.key_data(jax.random.split(own, layers))
        return linear.Lora(w, a, b, keys, cfg.scale, cfg.dropout)

    flat = param.flatten(adapters)
    names = sorted({path.rpartition("/")[0] for path in flat})
    return _over(base, join)


def _over(tree: param.Tree, f: Callable[[str, Any], Any], where: str = "") -> param.Tree:
    """The tree of f(path, weight), whatever a weight is stored as."""
    if isinstance(tree, dict):
        inside = {k: f"{where}/{k}" if where else k for k in tree}
        return {k: _over(v, f, inside[k]) for k, v in tree.items()}
    return f(where, tree)


def stored(weights: param.Tree, cfg: Lora) -> Stored | None:
    """Storage of the base. In 4 bits: the layers' matrices; embeddings, output matrix, routers,
    experts, norms and biases as they are. None without quantisation."""
    if cfg.quantise is None:
        return None
    double, flat = cfg.quantise == "nf4_double", param.flatten(weights)
    kept = {path for path, p in flat.items() if quantised(p)}

    def make(params: param.Tree) -> param.Tree:
        def store(path: str, w: jax.Array) -> Any:
            p = flat[path]
            return nf4.nf4(w, p.copies, p.inputs, double) if path in kept else w

        return _over(params, store)

    def place(path: str, p: param.Param) -> Any:
        return _places(p, double) if path in kept else p

    return Stored(_over(weights, place), make)


def quantised(p: param.Param) -> bool:
    """Whether a weight is kept in 4 bits where a base is quantised."""
    return bool(p.inputs and p.copies and single(p)) and not {"vocab", "expert"} & {*p.axes}


def _places(p: param.Param, double: bool) -> nf4.Nf4:
    """An Nf4 of Params: the places of its parts on a mesh."""
    lead, layer = p.shape[: p.copies], p.axes[: p.copies]
    sizes = p.shape[p.copies :]
    blocks = -(-math.prod(sizes) // nf4.BLOCK)

    def part(shape: tuple[int, ...], axes: tuple[str, ...]) -> param.Param:
        return param.Param((*lead, *shape), (*layer, *axes), param.zeros, p.copies)

    scales: Any = part((blocks,), ("block",))
    if double:
        groups = -(-blocks // nf4.GROUP)
        scales = nf4.Scales8(scales, part((groups,), ("group",)), part((), ()))  # ty: ignore
    codes: Any = part((blocks, nf4.BLOCK // 2), ("block", "code"))
    return nf4.Nf4(codes, scales, sizes, p.inputs)
