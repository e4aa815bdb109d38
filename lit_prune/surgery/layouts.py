"""Over which dimensions of a parameter each dimension of its optimizer state runs: read off the sizes.

Sizes of one parameter may coincide; those of all parameters that have the same kind of state seldom do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

Place = tuple[int, int]
"""From which dimension of the parameter to which (exclusive): several are flattened, none is a dimension of size 1."""

Layout = tuple[Place, ...]
"""One place for each dimension of the state."""

NOWHERE: Place = (0, 0)


def layouts(shape: Sequence[int], full: Sequence[int]) -> Iterator[Layout]:
    """Every way to read a state of ``shape`` as one of a parameter of shape ``full``.

    Example:
        >>> list(layouts((8, 1), (8, 3)))
        [((0, 1), (0, 0))]
        >>> list(layouts((24,), (8, 3)))
        [((0, 2),)]
    """
    runs = [(first, last) for first in range(len(full)) for last in range(first + 1, len(full) + 1)]
    places = [
        [place for place in runs if prod(full[slice(*place)]) == size] + [NOWHERE] * (size == 1) for size in shape
    ]
    return product(*places)


def in_place(shape: Sequence[int], full: Sequence[int]) -> Layout | None:
    """That of a state with the dimensions of its parameter, some of them reduced to one; ``None`` where it has others.

    Example:
        >>> in_place((8, 1), (8, 8)), in_place((8,), (8, 8))
        (((0, 1), (0, 0)), None)
    """
    if len(shape) != len(full) or any(mine not in (1, whole) for mine, whole in zip(shape, full, strict=True)):
        return None
    return tuple((dim, dim + 1) if size == full[dim] else NOWHERE for dim, size in enumerate(shape))


def per_dimension(number: int, dims: int) -> Layout:
    """That of the ``number``-th of several states of a parameter, one for each of its dimensions."""
    return ((number, number + 1),) * dims


def kept_by(layout: Layout, full: Sequence[int], cut: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """What is kept of each dimension of a state, where ``cut`` says what is kept of the parameter's.

    Example:
        >>> kept_by(((0, 2),), (2, 3), {1: torch.tensor([0, 2])})
        {0: tensor([0, 2, 3, 5])}
    """
    return {
        dim: _kept(range(*place), full, cut) for dim, place in enumerate(layout) if any(d in cut for d in range(*place))
    }


def _kept(run: range, full: Sequence[int], cut: Mapping[int, Tensor]) -> Tensor:
    indices = torch.arange(prod(full[dim] for dim in run)).reshape([full[dim] for dim in run])
    for position, dim in enumerate(run):
        if dim in cut:
            indices = indices.index_select(position, cut[dim].cpu())
    return indices.flatten()


def is_rotation(matrix: Tensor) -> bool:
    """Whether a square matrix turns its dimension into another basis, in which channels have no place.

    Example:
        >>> is_rotation(torch.eye(3)), is_rotation(torch.linalg.qr(torch.rand(3, 3)).Q)
        (False, True)
    """
    if not matrix.is_floating_point() or matrix.is_meta:
        return False
    values = matrix.detach().float()
    one = torch.eye(len(values), device=values.device)
    return bool(((values.T @ values - one).abs().max() < 1e-2) and ((values - values.diag().diag()).abs().max() > 1e-2))
