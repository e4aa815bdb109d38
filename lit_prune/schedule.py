"""Which epochs, and how much has gone after each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

Curve = Literal["linear", "cubic"]


class Schedule(ABC):
    """Says when to prune. A schedule of your own is a subclass with one method.

    Example:
        >>> class EveryTenth(Schedule):
        ...     def events(self, max_epochs):
        ...         return {epoch: (epoch + 1) / max_epochs for epoch in range(9, max_epochs, 10)}
        >>> EveryTenth().events(20)
        {9: 0.5, 19: 1.0}
    """

    @abstractmethod
    def events(self, max_epochs: int | None) -> dict[int, float]:
        """Epoch (from 0, as Lightning counts) to the part of the whole amount that is gone once it has begun.

        Args:
            max_epochs: The length of the run, ``None`` where it has no set end.

        Returns:
            Epochs in rising order; parts in (0, 1], rising.

        Raises:
            ValueError: If an event lies beyond the run.
        """


class AtEpochs(Schedule):
    """Prunes at the start of the given epochs.

    Args:
        epochs: One epoch or several, counted from 0.
        curve: ``"linear"`` removes equally much at each; ``"cubic"`` much at first and little at the end,
            1 − (1 − i/n)³ after event i of n.

    Raises:
        ValueError: If there are no epochs, or one is negative or given twice.

    Example:
        >>> AtEpochs([3, 6]).events(10), AtEpochs([3, 6], curve="cubic").events(10)
        ({3: 0.5, 6: 1.0}, {3: 0.875, 6: 1.0})

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, section 3, for the cubic curve.
    """

    def __init__(self, epochs: int | list[int], curve: Curve = "linear") -> None:
        given = [epochs] if isinstance(epochs, int) else list(epochs)
        if not given:
            raise ValueError("epochs is empty: name at least one epoch at whose start to prune.")
        wrong = [epoch for epoch in given if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0]
        if wrong:
            raise ValueError(f"epochs must be whole numbers from 0 on, but has {wrong[0]!r}.")
        if len(set(given)) < len(given):
            raise ValueError(f"epochs must differ from each other, but are {given}.")
        if curve not in get_args(Curve):
            raise ValueError(f"curve must be one of {', '.join(map(repr, get_args(Curve)))}, but got {curve!r}.")
        self.epochs = sorted(given)
        self.curve = curve

    def events(self, max_epochs: int | None) -> dict[int, float]:
        """One event an epoch given."""
        check_within(self.epochs, max_epochs)
        number = len(self.epochs)
        return {epoch: _part((index + 1) / number, self.curve) for index, epoch in enumerate(self.epochs)}


class Every(AtEpochs):
    """Prunes every so many epochs.

    Args:
        every: Epochs between two events, at least 1.
        first: Epoch of the first event.
        times: Number of events, at least 1.
        curve: As for :class:`AtEpochs`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> Every(3, first=2, times=3).events(12)
        {2: 0.333..., 5: 0.666..., 8: 1.0}
    """

    def __init__(self, every: int, first: int, times: int, curve: Curve = "linear") -> None:
        if every < 1 or times < 1:
            raise ValueError(f"every and times must be at least 1, but got {every} and {times}.")
        super().__init__([first + every * index for index in range(times)], curve)


def check_within(epochs: Sequence[int], max_epochs: int | None) -> None:
    """Raise a ValueError if an event would never come.

    Example:
        >>> check_within([3, 12], max_epochs=10)
        Traceback (most recent call last):
        ValueError: epochs=[3, 12] goes beyond the run: with max_epochs=10 the last epoch is 9, ...
    """
    if max_epochs is not None and any(epoch >= max_epochs for epoch in epochs):
        raise ValueError(
            f"epochs={list(epochs)} goes beyond the run: with max_epochs={max_epochs} the last epoch is "
            f"{max_epochs - 1}, and some should be left for fine-tuning. Prune earlier or train longer."
        )


def _part(time: float, curve: Curve) -> float:
    return time if curve == "linear" else 1 - (1 - time) ** 3
