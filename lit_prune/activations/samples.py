"""What enters and leaves a convolution or linear layer at a few sampled positions of its output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_DIMENSIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}
PRODUCTS = frozenset((*_DIMENSIONS, *_TRANSPOSED, F.linear))
"""Functions that a fit knows: each output is a weighted sum of the inputs at some places, and a bias."""

_NAMES: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(_DIMENSIONS, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    **dict.fromkeys(
        _TRANSPOSED, ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    ),
    F.linear: ("input", "weight", "bias"),
}


@dataclass(frozen=True, eq=False)
class Positions:
    """Sampled positions of one output.

    Attributes:
        examples: ``(rows,)`` index in the batch.
        places: ``(rows, spatial dimensions)``.
    """

    examples: Tensor
    places: Tensor


class Product:
    """One call of such a function: its input as rows that the weight is multiplied with.

    Args:
        func: One of :data:`PRODUCTS`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(_NAMES[func], args, strict=False)), **kwargs}
        self.input: Tensor = given["input"]
        self.weight: Tensor = given["weight"]
        self.bias: Tensor | None = given.get("bias")
        self.groups: int = given.get("groups", 1)
        self.is_linear = func is F.linear
        self.is_transposed = func in _TRANSPOSED
        self.rank = 0 if self.is_linear else self.weight.dim() - 2
        self._stride = self._each(given.get("stride", 1))
        self._dilation = self._each(given.get("dilation", 1))
        self._padding = self._pads(given.get("padding", 0))

    @property
    def has_batch(self) -> bool:
        """Whether the first dimension of the input counts examples."""
        return self.input.dim() == (max(2, self.input.dim()) if self.is_linear else self.rank + 2)

    @property
    def span(self) -> tuple[int, ...]:
        """The dimensions of the input but for what is summed over."""
        shape = self.input.shape
        return tuple(shape[:-1]) if self.is_linear else (shape[0], *shape[2:])

    @property
    def inputs(self) -> int:
        """How many inputs each output is a sum of, over all kernel positions."""
        return self.weight.numel() // (self.weight.shape[1] * self.groups if self.is_transposed else len(self.weight))

    def values(self) -> Tensor:
        """``(rows, inputs)`` all that enters, whatever the kernel makes of it."""
        values = self.input.detach()
        if self.is_linear:
            return values.reshape(-1, values.shape[-1])
        if not self.has_batch:
            values = values[None]
        return values.movedim(1, -1).reshape(-1, values.shape[1])

    def positions(self, output: Tensor, rows: int, generator: torch.Generator) -> Positions:
        """About ``rows`` random positions, equally many of each example; all, where there are no more."""
        shape = output.shape[1:-1] if self.is_linear else output.shape[2:]
        whole, each = math.prod(shape), max(1, rows // len(output))
        if whole <= each:
            flat = torch.arange(whole).repeat(len(output))
            examples = torch.arange(len(output)).repeat_interleave(whole)
        else:
            flat = torch.randint(whole, (len(output) * each,), generator=generator)
            examples = torch.arange(len(output)).repeat_interleave(each)
        places = torch.stack(torch.unravel_index(flat, shape), 1) if shape else flat[:, None][:, :0]
        return Positions(examples.to(output.device), places.to(output.device))

    def leaving(self, output: Tensor, at: Positions) -> Tensor:
        """``(rows, outputs)`` what leaves at some positions."""
        channels_last = output if self.is_linear else output.movedim(1, -1)
        leaving: Tensor = channels_last[(at.examples, *at.places.unbind(1))]
        return leaving

    def entering(self, at: Positions) -> Tensor:
        """``(groups, rows, kernel positions · inputs)`` what the weight is multiplied with at some positions."""
        if self.is_linear:
            tokens: Tensor = self.input[(at.examples, *at.places.unbind(1))]
            return tokens[None]
        values = self.input.movedim(1, -1)
        offsets = torch.tensor(list(product(*(range(size) for size in self.weight.shape[2:]))), device=at.places.device)
        indices, inside = self._sources(at.places, offsets, self.input.shape[2:])
        rows = values[(at.examples[:, None], *indices.unbind(2))]
        rows = torch.where(inside[..., None], rows, rows.new_zeros(()))
        # (rows, kernel, groups, inputs of a group)
        return rows.reshape(*rows.shape[:2], self.groups, -1).permute(2, 0, 1, 3).flatten(2)

    def matrix(self, weight: Tensor) -> Tensor:
        """``(groups, kernel positions · inputs, outputs)`` a weight as what rows are multiplied with."""
        if self.is_linear:
            return weight.T[None]
        # (groups, inputs, outputs, kernel), or outputs before inputs
        parts = weight.reshape(self.groups, -1, weight.shape[1], math.prod(weight.shape[2:]))
        return parts.permute((0, 3, 1, 2) if self.is_transposed else (0, 3, 2, 1)).flatten(1, 2)

    def weight_of(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`."""
        if self.is_linear:
            return matrix[0].T
        kernel = self.weight.shape[2:]
        parts = matrix.reshape(self.groups, math.prod(kernel), -1, matrix.shape[2])
        parts = parts.permute((0, 2, 3, 1) if self.is_transposed else (0, 3, 2, 1))
        return parts.reshape(-1, parts.shape[2], *kernel)

    def _sources(self, places: Tensor, offsets: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """``(rows, kernel, dimensions)`` where the inputs of each position lie, and whether they lie inside."""
        stride, dilation, padding = (
            torch.tensor(each, device=places.device) for each in (self._stride, self._dilation, self._padding)
        )
        size = torch.tensor(tuple(shape), device=places.device)
        if self.is_transposed:
            numerators = places[:, None] + padding - offsets * dilation
            indices, inside = numerators.div(stride, rounding_mode="floor"), (numerators % stride == 0).all(2)
        else:
            indices = places[:, None] * stride - padding + offsets * dilation
            inside = torch.ones(indices.shape[:2], dtype=torch.bool, device=places.device)
        inside = inside & ((indices >= 0) & (indices < size)).all(2)
        return indices.clamp(min=torch.zeros_like(size), max=size - 1), inside

    def _each(self, value: Any) -> tuple[int, ...]:
        return (value,) * self.rank if isinstance(value, int) else tuple(value) * (self.rank // len(value))

    def _pads(self, value: Any) -> tuple[int, ...]:
        """How much is added in front, in each dimension."""
        if value == "valid":
            value = 0
        if value == "same":
            # Where the sum is odd the end gets one more.
            sizes = self.weight.shape[2:]
            return tuple(d * (size - 1) // 2 for d, size in zip(self._dilation, sizes, strict=True))
        return self._each(value)
