"""Integers beside a forward that are widths of a module's layers: what merges branches or builds a new head reads them.

A number that the forward itself reads is not touched: the probe has shown what it does there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from types import CodeType
from typing import Any, cast

from torch import nn

from lit_prune.common._compat import ConvNd, NormBase
from lit_prune.common.names import OURS, find_module, modules_of

_WIDTHS = f"{OURS}widths"
"""Where a module keeps which of its integers are widths, and of what: noted before the first cut."""

Sources = tuple[tuple[str, str], ...]
"""Layers by their paths, each with the attribute that is its width."""

_LAYERS = (ConvNd, nn.Linear, NormBase)
_FEATURES = "feature_info"

_INPUTS, _OUTPUTS = ("in_channels", "in_features"), ("out_channels", "out_features", "num_features")
_SIDES = {
    **dict.fromkeys("in inp cin c1 inplanes".split(), _INPUTS),
    **dict.fromkeys("out oup cout c2 outplanes".split(), _OUTPUTS),
    **dict.fromkeys("groups g".split(), ("groups",)),
}
_WORDS = frozenset("channels channel chs chans planes features feats dim dims filters width c hidden".split())
# Of one head, of a kernel, of a recipe: numbers of their own.
_OTHERS = frozenset("head heads kernel reduction ratio patch base growth max min".split())


def note_widths_(network: nn.Module) -> None:
    """Note on each module which of its integers are widths of layers in it; they have to be whole, or noted before."""
    modules = modules_of(network)
    if any(_WIDTHS in vars(module) for _, module in modules):
        return
    kinds: set[Any] = {type(module) for _, module in modules}
    read = {name for kind in kinds for name in _read_by(kind)}
    for _, module in modules:
        if module._modules and not type(module).__module__.startswith("torch."):
            found: dict[str, Sources] = {
                name: _sources(module, name, value)
                for name, value in vars(module).items()
                if type(value) is int and value > 1 and name not in read
            }
            found = {name: sources for name, sources in found.items() if sources}
            found |= {f"{_FEATURES}.{number}": source for number, source in enumerate(_feature_sources(module))}
            if found:
                setattr(module, _WIDTHS, found)


def follow_widths_(module: nn.Module) -> None:
    """Bring the noted integers of one module in line with its layers, where these agree."""
    features = {}
    for name, widths in _widths(module).items():
        if len(widths) == 1:
            if name.startswith(_FEATURES):
                features[int(name.rpartition(".")[2])] = min(widths)
            elif getattr(module, name, None) not in (None, *widths):
                setattr(module, name, min(widths))
    if features:
        _set_features(module, features)


def unclear_widths(network: nn.Module) -> list[str]:
    """Integers of modules, by name and value, that are a width no more: the layers that had it differ now."""
    return [
        f"{path}.{name} = {getattr(module, name)}".removeprefix(".")
        for path, module in modules_of(network)
        for name, widths in _widths(module).items()
        if len(widths) > 1 and getattr(module, name, None) not in (None, *widths)
    ] + [
        # Of a map that is put together from others no layer has the width.
        f"{path}.{_FEATURES}".removeprefix(".")
        for path, module in modules_of(network)
        if any(name.startswith(_FEATURES) and not widths for name, widths in _widths(module).items())
    ]


def _widths(module: nn.Module) -> dict[str, set[int]]:
    """The widths that the layers now have of which each noted integer was the width."""
    return {
        name: {
            getattr(layer, attribute) for path, attribute in sources if (layer := find_module(module, path)) is not None
        }
        for name, sources in vars(module).get(_WIDTHS, {}).items()
    }


def _features(module: nn.Module) -> list[dict[str, Any]]:
    """What timm's models tell of the maps that they can hand out."""
    info = vars(module).get(_FEATURES)
    entries = getattr(info, "info", info)
    return entries if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) else []


def _feature_sources(module: nn.Module) -> Iterator[Sources]:
    """The last layer with the width of each map: in the part that hands it out, or before that if it has no layers."""
    entries = _features(module)
    modules = modules_of(module) if entries else []
    layers = [(path, layer) for path, layer in modules if isinstance(layer, _LAYERS)]
    paths = [path for path, _ in modules]
    for entry in entries:
        name, width = str(entry.get("module", "")), entry.get("num_chs")
        place = next((path for path in (name, name.replace(".", "_"), f"model.{name}") if path in paths), "")
        inside = [(path, layer) for path, layer in layers if f"{path}.".startswith(f"{place}.")] if place else []
        before = [(path, layer) for path, layer in layers if place and paths.index(path) < paths.index(place)]
        found = [
            (path, attribute)
            for path, layer in inside or before
            for attribute in _OUTPUTS
            if getattr(layer, attribute, None) == width
        ]
        yield tuple(found[-1:])


def _set_features(module: nn.Module, widths: Mapping[int, int]) -> None:
    # Copies of a network share what it tells.
    entries = [
        {**entry, "num_chs": widths.get(number, entry["num_chs"])} for number, entry in enumerate(_features(module))
    ]
    info = getattr(module, _FEATURES)
    if isinstance(info, list):
        setattr(module, _FEATURES, entries)
    else:
        own = copy.copy(info)
        own.info = entries
        setattr(module, _FEATURES, own)


def _sources(module: nn.Module, name: str, value: int) -> Sources:
    """The layers in a module, with the attribute, whose width has this name and value."""
    words = name.strip("_").lower().replace("num_", "").split("_")
    attributes = next((_SIDES[word] for word in words if word in _SIDES), None)
    if _OTHERS.intersection(words) or not (attributes or _WORDS.intersection(words)):
        return ()
    # timm's models say what reads their features.
    head = None
    # An encoder made of one may have let its head go.
    with suppress(AttributeError):
        head = cast(Any, module).get_classifier()
    layers = modules_of(module)[1:]
    if isinstance(head, nn.Module) and "features" in words:
        layers = [(path, layer) for path, layer in layers if layer is head] or layers
    sides = (attributes,) if attributes else ((*_INPUTS, *_OUTPUTS),)
    # A branch that is a norm alone has the width of the convolutions that it may be merged into.
    for side in (*sides, _OUTPUTS):
        found = tuple(
            (path, attribute)
            for path, layer in layers
            if isinstance(layer, _LAYERS)
            for attribute in side
            if vars(layer).get(attribute) == value
        )
        if found:
            return found
    return ()


@cache
def _read_by(cls: Any) -> frozenset[str]:
    """The names of attributes that a class's forward, and what it calls of the class, may read."""
    if cls.__module__.startswith("torch."):
        return frozenset()
    names: set[str] = set()
    waiting: list[Any] = [cls.forward] if hasattr(cls, "forward") else []
    seen = set()
    while waiting:
        function = waiting.pop()
        function = inspect.unwrap(function) if callable(function) else function
        code = getattr(getattr(function, "fget", function), "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        own = set(_names_in(code))
        names |= own
        waiting.extend(vars(base)[name] for name in own for base in cls.__mro__ if name in vars(base))
    return frozenset(names)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    inner: Iterable[Any] = code.co_consts
    for constant in inner:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
