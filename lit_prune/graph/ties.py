"""Widths that a forward reads off one tensor and gives to another: they are in no trace, so a table names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lit_prune.attributes import qualified_names
from lit_prune.graph.recording import Recording, Slot

Ties = Callable[[Any], Iterable[tuple[Slot, Slot]]]

_TIES: dict[str, Ties] = {}


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
    name = cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"

    def register(ties: Ties) -> Ties:
        _TIES[name] = ties
        return ties

    return register


def tie_widths(network: nn.Module, recording: Recording) -> None:
    """Join what the table says of the modules of ``network``."""
    for path, module in network.named_modules():
        for name in qualified_names(type(module)):
            if name in _TIES:
                prefix = f"{path}." if path else ""
                for (first, dim), (second, other) in _TIES[name](module):
                    rows = recording.slots.get((prefix + first, dim)), recording.slots.get((prefix + second, other))
                    if rows[0] is not None and rows[1] is not None and len(rows[0]) == len(rows[1]):
                        recording.labels.join(rows[0], rows[1])


@register_ties("ultralytics.nn.modules.block.Attention")
def _ultralytics_attention(module: Any) -> Iterable[tuple[Slot, Slot]]:
    yield ("qkv.conv.weight", 1), ("proj.conv.weight", 1)
