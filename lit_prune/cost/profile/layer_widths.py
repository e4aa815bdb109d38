"""How wide a layer is, by its weight."""

from __future__ import annotations

from torch import nn

from lit_prune.common._compat import ConvTransposeNd


def widths_of(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a layer's weight.

    Example:
        >>> widths_of(nn.Conv2d(8, 16, 3)), widths_of(nn.ConvTranspose2d(8, 16, 3)), widths_of(nn.Linear(4, 2))
        ((8, 16), (8, 16), (4, 2))
    """
    first, second = layer.weight.shape[:2]  # type: ignore[index]
    return (first, second) if is_transposed(layer) else (second, first)


def is_transposed(layer: nn.Module) -> bool:
    """Whether the weight's first dimension is that of the input."""
    return isinstance(layer, ConvTransposeNd)
