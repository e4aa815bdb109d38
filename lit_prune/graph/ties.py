"""What a module class says of its widths where no operation does, so that the probe need not find it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from torch import nn

from lit_prune.attributes import qualified_names
from lit_prune.graph.labels import Row
from lit_prune.graph.recording import Recording, Slot
from lit_prune.lookup import modules_of

Ties = Callable[[Any], Iterable[tuple[Slot, Slot]]]
Fixed = Callable[[Any], Iterable[tuple[Slot, str]]]
Whole = Callable[[Any], Iterable[Slot]]
Entry = TypeVar("Entry")

_TIES: dict[str, Ties] = {}
_FIXED: dict[str, Fixed] = {}
_WHOLE: dict[str, Whole] = {}


def register_ties(cls: type[nn.Module] | str) -> Callable[[Ties], Ties]:
    """Say which dimensions inside a module must shrink together, though no operation joins them.

    Needed where a forward does what ``B, C, H, W = x.shape`` and later ``.view(B, C, H, W)`` of something else do.
    Without an entry such channels are frozen by the probe: an entry frees them.

    Args:
        cls: The class, or its qualified name where importing it would cost a dependency. Subclasses are meant too.

    Example:
        >>> @register_ties("mylib.Attention")
        ... def _attention(module):
        ...     yield ("qkv.weight", 1), ("proj.weight", 1)
        >>> _TIES.pop("mylib.Attention") is _attention
        True
    """
    return _entering(_TIES, cls)


def register_fixed(cls: type[nn.Module] | str) -> Callable[[Fixed], Fixed]:
    """Say which dimensions inside a module can't shrink, each with the reason that users read.

    The probe would find out too, and say how the module failed.

    Args:
        cls: As for :func:`register_ties`.

    Example:
        >>> @register_fixed("mylib.Lookup")
        ... def _lookup(module):
        ...     yield ("table.weight", 1), "is an address"
        >>> _FIXED.pop("mylib.Lookup") is _lookup
        True
    """
    return _entering(_FIXED, cls)


def register_whole(cls: type[nn.Module] | str) -> Callable[[Whole], Whole]:
    """Say which dimensions inside a module hold heads that live and die whole.

    Needed for nothing but speed: the probe finds out that a head can't be narrowed, in a dozen trials.

    Args:
        cls: As for :func:`register_ties`.

    Example:
        >>> @register_whole("mylib.Attention")
        ... def _attention(module):
        ...     yield "qkv.weight", 0
        >>> _WHOLE.pop("mylib.Attention") is _attention
        True
    """
    return _entering(_WHOLE, cls)


def _entering(table: dict[str, Entry], cls: type[nn.Module] | str) -> Callable[[Entry], Entry]:
    name = cls if isinstance(cls, str) else qualified_names(cls)[0]

    def enter(entry: Entry) -> Entry:
        table[name] = entry
        return entry

    return enter


def tie_widths(network: nn.Module, recording: Recording) -> None:
    """Join and freeze what the tables say of the modules of ``network``."""
    slots, labels = recording.slots, recording.labels
    for path, module in modules_of(network):
        prefix = f"{path}." if path else ""
        for name in qualified_names(type(module)):
            if name in _FIXED:
                for (tensor, dim), reason in _FIXED[name](module):
                    row = slots.get((prefix + tensor, dim))
                    if row is not None:
                        labels.freeze(row, f"{reason}, in {path}" if path else reason)
            if name in _TIES:
                for (first, dim), (second, other) in _TIES[name](module):
                    rows = slots.get((prefix + first, dim)), slots.get((prefix + second, other))
                    if rows[0] is not None and rows[1] is not None and len(rows[0]) == len(rows[1]):
                        labels.join(rows[0], rows[1])


def keep_whole(network: nn.Module, recording: Recording) -> None:
    """Make whole the heads that the table names of the modules of ``network``."""
    rows: list[Row | None] = []
    for path, module in modules_of(network):
        prefix = f"{path}." if path else ""
        for name in qualified_names(type(module)):
            if name in _WHOLE:
                rows.extend(recording.slots.get((prefix + tensor, dim)) for tensor, dim in _WHOLE[name](module))
    inside = np.zeros(recording.labels.count, dtype=np.bool_)
    for row in rows:
        if row is not None:
            inside[row] = True
    for fold in recording.labels.folds if rows else []:
        if fold.may_be_whole and not fold.whole and inside[fold.labels].all():
            recording.labels.make_whole(fold)


@register_ties("ultralytics.nn.modules.block.Attention")
def _ultralytics_attention(module: Any) -> Iterable[tuple[Slot, Slot]]:
    yield ("qkv.conv.weight", 1), ("proj.conv.weight", 1)


@register_whole("ultralytics.nn.modules.block.AAttn")
def _ultralytics_area_attention(module: Any) -> Iterable[Slot]:
    # The forward computes the scale from the width of a head.
    yield "qkv.conv.weight", 0


@register_fixed(nn.MultiheadAttention)
def _multihead_attention(module: Any) -> Iterable[tuple[Slot, str]]:
    # Its forward asserts that queries are `embed_dim` wide, and views their projections as that.
    reason = "is the embed_dim of a MultiheadAttention, which its forward insists on"
    for weight in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        yield (weight, 0), reason
        yield (weight, 1), reason
    yield ("out_proj.weight", 1), reason


@register_fixed(nn.RNNBase)
def _recurrent(module: Any) -> Iterable[tuple[Slot, str]]:
    for name, parameter in module.named_parameters():
        for dim in range(parameter.dim()):
            yield (name, dim), f"is a width of a recurrent {type(module).__name__}, which checks it"
