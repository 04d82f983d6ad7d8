"""Flax modules as jaxlm models, and jaxlm models as Flax modules.

`from_flax.model(module, ...)` is a Model over any `flax.nnx` or `flax.linen` module that computes
logits; `to_nnx.module(model, params)` is an `nnx.Module` over any Model. This file is the family of
such modules in a Run: the Config names the function that builds the module, because a module itself
cannot be written into config.json. It does not import Flax.
"""

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal, NoReturn

from jaxlm.core import check, param
from jaxlm.models.model import Model
from jaxlm.parallel.plan import Plan

Scalar = bool | int | float | str
# Modules, separated by commas, whose functions a run's config.json may name.
TRUSTED = "JAXLM_FACTORIES"
# The attribute of a factory that `config` was given.
_GIVEN = "__jaxlm_factory__"


@dataclasses.dataclass(frozen=True)
class Config:
    """A Flax module with logits over tokens, by the function that builds it."""

    KIND = "flax"

    factory: str = ""
    """The function or class that returns the module, as `package.module:name`: one that `config`
    was given in this process, or of a module that JAXLM_FACTORIES names. An argument named `rngs`
    receives nnx.Rngs; a factory without it returns a linen module."""
    vocab: int = 256
    """Number of token ids: the last axis of its logits."""
    context: int = 1024
    """Longest sequence the module can read."""
    arguments: tuple[tuple[str, Scalar], ...] = ()
    """Keyword arguments of the factory, as (name, value) pairs."""
    reads: tuple[str, ...] = ()
    """Keyword arguments that the module's call takes along with tokens int32[B, T], among
    `from_flax.READS`: mask, segment_ids, positions, deterministic."""
    documents: Literal["apart", "joined"] = "apart"
    """Treatment of documents packed into one row: kept apart, for which the module must read `mask`
    or `segment_ids`, or read as one text."""
    axes: tuple[tuple[str, str], ...] = ()
    """(axis name in the module's metadata, axis name of jaxlm) pairs, such as ("mlp", "ffn"), for
    names that have no sharding rule here."""

    def __post_init__(self) -> None:
        check.positive(self, "vocab", "context")

    @property
    def embed(self) -> NoReturn:
        """Raises: ValueError, since a scalar head reads hidden states."""
        raise ValueError(
            f"model.factory: {self.factory!r} given with an objective that puts a scalar head on "
            "hidden states; a Flax module returns logits alone, so choose a jaxlm family"
        )


PRESETS: dict[str, Config] = {}


def config(
    factory: FunctionType | type,
    vocab: int,
    context: int = 1024,
    arguments: tuple[tuple[str, Scalar], ...] = (),
    reads: tuple[str, ...] = (),
    documents: Literal["apart", "joined"] = "apart",
    axes: tuple[tuple[str, str], ...] = (),
) -> Config:
    """The Config of a function or class at the top level of a module, which may be built from then
    on in this process: a config.json alone is not trusted to name code. Fields as in `Config`.

    Raises: ValueError for a factory that a config.json could not name.
    """
    name = f"{factory.__module__}:{factory.__qualname__}"
    if getattr(sys.modules.get(factory.__module__), factory.__qualname__, None) is not factory:
        raise ValueError(f"factory: {name} given; a function or class of a module is needed")
    setattr(factory, _GIVEN, True)
    return Config(name, vocab, context, arguments, reads, documents, axes)


def spec(cfg: Config) -> param.Tree:
    """The weights of the module, without memory for them."""
    return build(cfg).spec


def build(cfg: Config, plan: Plan = Plan()) -> Model:
    """The model of the module that the factory returns; initial weights are drawn by the module.

    Raises: ValueError for a factory that cannot be imported or called, and as `from_flax.model`.
    """
    from jaxlm.models.flax_modules import from_flax  # and with it Flax, which other runs never need

    make, arguments = _factory(cfg), dict(cfg.arguments)
    takes_rngs = _takes_rngs(make, arguments, cfg.factory)
    module = from_flax.Lazy(make, arguments) if takes_rngs else make(**arguments)
    return from_flax.model(
        module,
        vocab=cfg.vocab,
        context=cfg.context,
        reads=cfg.reads,
        documents=cfg.documents,
        axes=cfg.axes,
        plan=plan,
        cfg=cfg,
    )


def _factory(cfg: Config) -> Callable[..., Any]:
    """The factory that a Config names. A run directory of someone else's may name any function of
    any module, so that no module is imported, and none called, that the user has not named."""
    name, _, attribute = cfg.factory.partition(":")
    if name not in os.environ.get(TRUSTED, "").split(","):
        given = getattr(sys.modules.get(name), attribute, None)
        if not getattr(given, _GIVEN, False):
            raise ValueError(
                f"model.factory: {cfg.factory!r} given, which would run code of module {name!r}; "
                f"make the Config by `flax_modules.config(function, ...)`, or trust the module: "
                f"{TRUSTED}={name or 'MODULE'}"
            )
    try:
        return getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model.factory: {cfg.factory!r} given, which cannot be imported ({error}); it must be "
            "'package.module:function' of an importable module"
        ) from error


def _takes_rngs(make: Callable[..., Any], arguments: dict[str, Scalar], name: str) -> bool:
    """Whether the factory has an argument `rngs`. Raises: ValueError for arguments it has not."""
    cls = inspect.isclass(make)
    signature = inspect.signature(make.__init__ if cls else make)
    takes = "rngs" in signature.parameters
    try:
        signature.bind(*[None] * cls, **arguments, **({"rngs": None} if takes else {}))
    except TypeError as error:
        raise ValueError(f"model.arguments: {arguments} given to {name}: {error}") from error
    return takes
