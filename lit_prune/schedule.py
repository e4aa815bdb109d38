"""Which epochs or steps, and how much has gone after each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Literal, get_args

from lit_prune.common.arguments import check_choice, check_whole
from lit_prune.errors import ArgumentError

Curve = Literal["linear", "cubic"]
Unit = Literal["epochs", "steps"]


class Schedule(ABC):
    """Says when to prune. A schedule of your own is a subclass with one method.

    Example:
        >>> class EveryTenth(Schedule):
        ...     def events(self, length):
        ...         return {epoch: (epoch + 1) / length for epoch in range(9, length, 10)}
        >>> EveryTenth().events(20)
        {9: 0.5, 19: 1.0}
    """

    unit: Unit = "epochs"
    """What events are counted in: epochs, or optimizer steps (``trainer.global_step``)."""

    @abstractmethod
    def events(self, length: int | None) -> dict[int, float]:
        """Epoch or step (from 0, as Lightning counts) to the part of the whole amount that is gone once it has begun.

        Args:
            length: The length of the run in this unit, ``None`` where it has no set end or is not known yet.

        Returns:
            Points in rising order; parts in (0, 1], rising.

        Raises:
            ArgumentError: If an event lies beyond the run.
        """


class AtEpochs(Schedule):
    """Prunes at the start of the given epochs.

    Args:
        epochs: One epoch or several, counted from 0.
        curve: ``"linear"`` removes equally much at each; ``"cubic"`` much at first and little at the end,
            1 − (1 − i/n)³ after event i of n.

    Raises:
        ArgumentError: If there are no epochs, or one is negative or given twice.

    Example:
        >>> AtEpochs([3, 6]).events(10), AtEpochs([3, 6], curve="cubic").events(10)
        ({3: 0.5, 6: 1.0}, {3: 0.875, 6: 1.0})

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, section 3, for the cubic curve.
    """

    def __init__(self, epochs: int | list[int], curve: Curve = "linear") -> None:
        self.points = _checked_points("epochs", epochs)
        check_choice("curve", curve, get_args(Curve))
        self.curve = curve

    def events(self, length: int | None) -> dict[int, float]:
        """One event for each point given."""
        check_within(self.points, length, self.unit)
        number = len(self.points)
        return {point: _part((index + 1) / number, self.curve) for index, point in enumerate(self.points)}


class AtSteps(AtEpochs):
    """Prunes before the given optimizer steps, within an epoch if need be.

    Args:
        steps: One step or several, counted from 0.
        curve: As for :class:`AtEpochs`.

    Raises:
        ArgumentError: If there are no steps, or one is negative or given twice.

    Example:
        >>> AtSteps([500, 1000]).events(2000)
        {500: 0.5, 1000: 1.0}
    """

    unit: Unit = "steps"

    def __init__(self, steps: int | list[int], curve: Curve = "linear") -> None:
        self.points = _checked_points("steps", steps)
        check_choice("curve", curve, get_args(Curve))
        self.curve = curve


class Every(AtEpochs):
    """Prunes every so many epochs.

    Args:
        every: Epochs between two events, at least 1.
        first: Epoch of the first event.
        times: Number of events, at least 1.
        curve: As for :class:`AtEpochs`.

    Raises:
        ArgumentError: If an argument is out of range.

    Example:
        >>> Every(3, first=2, times=3).events(12)
        {2: 0.333..., 5: 0.666..., 8: 1.0}
    """

    def __init__(self, every: int, first: int, times: int, curve: Curve = "linear") -> None:
        for name, value, least in (("every", every, 1), ("first", first, 0), ("times", times, 1)):
            check_whole(name, value, least)
        super().__init__([first + every * index for index in range(times)], curve)


def check_within(points: Sequence[int], length: int | None, unit: Unit = "epochs") -> None:
    """Raise an ArgumentError if an event would never come.

    Example:
        >>> check_within([3, 12], length=10)
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: epochs=[3, 12] goes beyond the run, which has 10 epochs, 0 to 9; ...
    """
    if length is not None and any(point >= length for point in points):
        raise ArgumentError(
            f"{unit}={list(points)} goes beyond the run, which has {length} {unit}, 0 to {length - 1}; and some "
            "should be left for fine-tuning. Prune earlier or train longer."
        )


def _checked_points(name: str, given: int | list[int]) -> list[int]:
    points = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if not points:
        raise ArgumentError(f"{name} is empty: name at least one of the {name} at whose start to prune.")
    wrong = [point for point in points if not isinstance(point, Integral) or isinstance(point, bool) or point < 0]
    if isinstance(given, str):
        raise ArgumentError(f"{name} must be whole numbers from 0 on, a schedule, or 'before_wrap', but has {given!r}.")
    if wrong:
        raise ArgumentError(f"{name} must be whole numbers from 0 on, but has {wrong[0]!r}.")
    if len(set(points)) < len(points):
        raise ArgumentError(f"{name} must differ from each other, but are {points}.")
    return sorted(map(int, points))


def _part(time: float, curve: Curve) -> float:
    return time if curve == "linear" else 1 - (1 - time) ** 3
