"""Ridge regression around weights that are there: what is left of a layer made to answer as the whole layer did."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-3, 2e-2, 4e-1)
"""Penalties that are tried, relative to the mean variance of the inputs."""


@dataclass
class Evidence:
    """Moments of what enters, and of what is missing in what leaves, summed over the rows of all batches.

    They are taken around the first batch's means, so that single precision is enough.

    Attributes:
        rows: Number of rows.
        entering: ``(groups, inputs)`` sums.
        missing: ``(groups, outputs)`` sums.
        gram: ``(groups, inputs, inputs)`` of products of inputs.
        cross: ``(groups, inputs, outputs)`` of products of inputs and what is missing.
        square: ``(groups,)`` sums of the squares of what is missing.
    """

    rows: int
    entering: Tensor
    missing: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def of(cls, entering: Tensor, missing: Tensor) -> Evidence:
        """Of ``(groups, rows, inputs)`` and ``(groups, rows, outputs)``."""
        transposed = entering.transpose(1, 2)
        return cls(
            entering.shape[1],
            entering.sum(1),
            missing.sum(1),
            transposed @ entering,
            transposed @ missing,
            missing.square().sum((1, 2)),
        )

    def __add__(self, other: Evidence) -> Evidence:
        """That of both."""
        return Evidence(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def moments(self, centred: bool) -> Moments:
        """Means of products a row; ``centred`` where a constant is free, too."""
        gram, cross, square = self.gram / self.rows, self.cross / self.rows, self.square / self.rows
        if centred:
            mean, missing = self.entering / self.rows, self.missing / self.rows
            gram.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)
            cross.baddbmm_(mean[:, :, None], missing[:, None, :], alpha=-1)
            square = square - missing.square().sum(1)
        return Moments(gram, cross, float(square.sum()))

    @property
    def is_finite(self) -> bool:
        """Whether nothing that entered or is missing was infinite or NaN."""
        return bool(self.entering.isfinite().all() and self.square.isfinite().all())


@dataclass(frozen=True)
class Moments:
    """Of what enters, and what is missing.

    Attributes:
        gram: ``(groups, inputs, inputs)``.
        cross: ``(groups, inputs, outputs)``.
        square: Mean square of what is missing, all outputs together.
    """

    gram: Tensor
    cross: Tensor
    square: float

    def solve(self, ridge: float, usual: float = 0.0) -> Tensor:
        """``(groups, inputs, outputs)`` what to add to the weights so that the least is missing.

        Args:
            ridge: Penalty on what is added, relative to the mean variance of the inputs.
            usual: The least variance that counts as theirs. Without it, weights of inputs that happen to be silent
                would grow until they answer.
        """
        gram, cross = self.gram, self.cross
        scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=usual)
        # Inputs that are nothing anywhere need some penalty, too.
        penalty = (ridge * scale).clamp(min=torch.finfo(gram.dtype).tiny ** 0.5)
        factor, failed = torch.linalg.cholesky_ex(_with_diagonal(gram, penalty))
        if bool(failed.any()):
            # Not every device has double precision.
            gram, cross, penalty = (each.cpu().double() for each in (gram, cross, penalty))
            factor = torch.linalg.cholesky(_with_diagonal(gram, penalty + 1e-7))
        return torch.cholesky_solve(cross, factor).to(self.gram)

    def left(self, added: Tensor) -> float:
        """Mean square of what is missing still, once ``added`` is."""
        return max(0.0, self.square + float((added * (self.gram @ added - 2 * self.cross)).sum()))


def best_penalty(fitted: Moments, held_out: Moments, usual: float = 0.0) -> tuple[float | None, float]:
    """The penalty that does best where it was not fitted, None where none helps; and how well it does.

    Returns:
        One of :data:`RIDGES`, and the mean square of what is missing still in the rows that were held out.
    """
    best, least = None, held_out.square
    before = math.inf
    for ridge in RIDGES:
        left = held_out.left(fitted.solve(ridge, usual))
        if left < least:
            best, least = ridge, left
        if left > before:
            # Too much of it from here on.
            break
        before = left
    return best, least


def _with_diagonal(gram: Tensor, added: Tensor) -> Tensor:
    result = gram.clone()
    result.diagonal(dim1=1, dim2=2).add_(added[:, None])
    return result
