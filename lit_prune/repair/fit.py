"""Ridge regression around weights that are there: what is left of a layer made to answer as the whole layer did."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

RIDGES = (1e-3, 2e-2, 4e-1)
"""Penalties that are tried, relative to the mean variance of the inputs."""


# Of as many inputs as this, there must be more rows for sums over them to be smaller than the rows are.
_FEW = 2 / 3


class Evidence(ABC):
    """What enters a layer, and what is missing in what leaves it, in the rows of all batches.

    Where rows are fewer than inputs they are kept: to solve for as many unknowns as there are rows takes a fraction of
    the time then. Both are to be counted from the first batch's means, so that single precision is enough.
    """

    @staticmethod
    def of(entering: Tensor, missing: Tensor) -> Evidence:
        """Of ``(groups, rows, inputs)`` and ``(groups, rows, outputs)``."""
        rows = Rows(entering, missing)
        return rows if rows.are_few else rows.sums()

    @abstractmethod
    def __add__(self, other: Evidence) -> Evidence:
        """That of both."""

    @abstractmethod
    def sums(self) -> Sums:
        """The same, as sums over rows."""

    @abstractmethod
    def means(self) -> tuple[Tensor, Tensor]:
        """``(groups, inputs)`` of what enters, and ``(groups, outputs)`` of what is missing."""

    @abstractmethod
    def moments(self, centred: bool) -> Moments:
        """What a fit is solved from; ``centred`` where a constant is free, too."""

    @property
    @abstractmethod
    def is_finite(self) -> bool:
        """Whether nothing that entered or is missing was NaN or infinite, nor are squares of it."""


@dataclass(frozen=True, eq=False)
class Rows(Evidence):
    """The rows themselves.

    Attributes:
        entering: ``(groups, rows, inputs)``.
        missing: ``(groups, rows, outputs)``.
    """

    entering: Tensor
    missing: Tensor

    @property
    def are_few(self) -> bool:
        """Whether it is less work to keep them than to sum them up."""
        _, rows, inputs = self.entering.shape
        return rows < _FEW * inputs

    def __add__(self, other: Evidence) -> Evidence:
        """That of both, as rows where they are few together."""
        if isinstance(other, Rows):
            both = Rows(torch.cat([self.entering, other.entering], 1), torch.cat([self.missing, other.missing], 1))
            if both.are_few:
                return both
        return self.sums() + other.sums()

    def sums(self) -> Sums:
        """The same, as sums over rows."""
        transposed = self.entering.transpose(1, 2)
        return Sums(
            self.entering.shape[1],
            self.entering.sum(1),
            self.missing.sum(1),
            transposed @ self.entering,
            transposed @ self.missing,
            self.missing.square().sum((1, 2)),
        )

    def means(self) -> tuple[Tensor, Tensor]:
        """Of what enters, and of what is missing."""
        return self.entering.mean(1), self.missing.mean(1)

    def moments(self, centred: bool) -> Moments:
        """What a fit is solved from."""
        parts = (each - each.mean(1, keepdim=True) if centred else each for each in (self.entering, self.missing))
        return MomentsOfRows(*parts)

    @property
    def is_finite(self) -> bool:
        """Whether nothing that entered or is missing was NaN or infinite, nor are squares of it."""
        return all(bool(each.square().sum().isfinite()) for each in (self.entering, self.missing))


@dataclass(frozen=True, eq=False)
class Sums(Evidence):
    """Sums over rows.

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

    def __add__(self, other: Evidence) -> Sums:
        """That of both."""
        sums = other.sums()
        return Sums(*(getattr(self, name) + getattr(sums, name) for name in self.__dataclass_fields__))

    def sums(self) -> Sums:
        """Itself."""
        return self

    def means(self) -> tuple[Tensor, Tensor]:
        """Of what enters, and of what is missing."""
        return self.entering / self.rows, self.missing / self.rows

    def moments(self, centred: bool) -> Moments:
        """What a fit is solved from."""
        gram, cross, square = self.gram / self.rows, self.cross / self.rows, self.square / self.rows
        if centred:
            mean, missing = self.means()
            gram.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)
            cross.baddbmm_(mean[:, :, None], missing[:, None, :], alpha=-1)
            square = square - missing.square().sum(1)
        # Rounded, what is nothing may be less.
        return MomentsOfInputs(gram, cross, max(0.0, float(square.sum())))

    @property
    def is_finite(self) -> bool:
        """Whether nothing that entered or is missing was NaN or infinite, nor are squares of it."""
        return bool(self.gram.diagonal(dim1=1, dim2=2).sum().isfinite() and self.square.sum().isfinite())


class Moments(ABC):
    """Of what enters, and what is missing.

    Attributes:
        square: Mean square of what is missing, all outputs together.
    """

    square: float

    @abstractmethod
    def solve(self, ridge: float, usual: float = 0.0) -> Tensor:
        """``(groups, inputs, outputs)`` what to add to the weights so that the least is missing.

        Args:
            ridge: Penalty on what is added, relative to the mean variance of the inputs.
            usual: The least variance that counts as theirs. Without it, weights of inputs that happen to be silent
                would grow until they answer.
        """

    @abstractmethod
    def left(self, added: Tensor) -> float:
        """Mean square of what is missing still, once ``added`` is."""


@dataclass(frozen=True, eq=False)
class MomentsOfInputs(Moments):
    """Products of inputs.

    Attributes:
        gram: ``(groups, inputs, inputs)``.
        cross: ``(groups, inputs, outputs)``.
    """

    gram: Tensor
    cross: Tensor
    square: float

    def solve(self, ridge: float, usual: float = 0.0) -> Tensor:
        """What to add to the weights."""
        variance = self.gram.diagonal(dim1=1, dim2=2).mean(1)
        return _ridge(self.gram, self.cross, ridge * variance.clamp(min=usual))

    def left(self, added: Tensor) -> float:
        """Mean square of what is missing still."""
        return max(0.0, self.square + float((added * (self.gram @ added - 2 * self.cross)).sum()))


class MomentsOfRows(Moments):
    """Products of rows: (XᵀX + λ)⁻¹XᵀY is Xᵀ(XXᵀ + λ)⁻¹Y.

    Args:
        entering: ``(groups, rows, inputs)``.
        missing: ``(groups, rows, outputs)``.
    """

    def __init__(self, entering: Tensor, missing: Tensor) -> None:
        self.entering, self.missing, self.rows = entering, missing, entering.shape[1]
        self.square = float(missing.square().sum()) / self.rows

    @cached_property
    def _gram(self) -> Tensor:
        return self.entering @ self.entering.transpose(1, 2) / self.rows

    def solve(self, ridge: float, usual: float = 0.0) -> Tensor:
        """What to add to the weights."""
        variance = self._gram.diagonal(dim1=1, dim2=2).sum(1) / self.entering.shape[2]
        parts = _ridge(self._gram, self.missing / self.rows, ridge * variance.clamp(min=usual))
        return self.entering.transpose(1, 2) @ parts

    def left(self, added: Tensor) -> float:
        """Mean square of what is missing still."""
        return float((self.missing - self.entering @ added).square().sum()) / self.rows


def best_penalty(fitted: Moments, held_out: Moments, usual: float = 0.0) -> tuple[float | None, Tensor | None, float]:
    """The penalty that does best where it was not fitted.

    Returns:
        One of :data:`RIDGES`, what is added with it, and the mean square of what is missing still in the rows that were
        held out; None and None where no penalty helps.
    """
    best: tuple[float | None, Tensor | None, float] = None, None, held_out.square
    before = math.inf
    for ridge in RIDGES:
        added = fitted.solve(ridge, usual)
        left = held_out.left(added)
        if left < best[2]:
            best = ridge, added, left
        if left > before:
            # Too much of it from here on.
            break
        before = left
    return best


def _ridge(gram: Tensor, wanted: Tensor, penalty: Tensor) -> Tensor:
    """(gram + penalty)⁻¹ wanted, of each group."""
    # What is nothing anywhere needs some penalty, too.
    penalty = penalty.clamp(min=torch.finfo(gram.dtype).tiny ** 0.5)
    factor, failed = torch.linalg.cholesky_ex(_with_diagonal(gram, penalty))
    if bool(failed.any()):
        # Not every device has double precision. What single precision has rounded off may be more than the penalty.
        rounded = torch.finfo(gram.dtype).eps * gram.shape[1] * gram.diagonal(dim1=1, dim2=2).amax(1)
        gram, penalty, rounded = (each.cpu().double() for each in (gram, penalty, rounded))
        factor = torch.linalg.cholesky(_with_diagonal(gram, penalty + rounded.clamp(min=1e-7)))
    return torch.cholesky_solve(wanted.to(factor), factor).to(wanted)


def _with_diagonal(gram: Tensor, added: Tensor) -> Tensor:
    result = gram.clone()
    result.diagonal(dim1=1, dim2=2).add_(added[:, None])
    return result
