"""Terms of a loss in which no data are: what is to be said of their weights waits until they meet data after all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from lit_prune.graph.operation import Operation, tensors_among

Action = Callable[[], None]


class Penalties:
    """What a step makes of weights alone (decay, sparsity): of channels that go, it is gone."""

    def __init__(self) -> None:
        # The tensors are held so that their ids stay theirs: each with what is to be said where it meets data.
        self._known: dict[int, tuple[Tensor, list[Action]]] = {}
        self._is_open = False
        self._unsaid: list[Action] = []

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._known)

    def say(self, action: Callable[..., None], *arguments: Any) -> None:
        """Act at once, or, within a penalty, when it meets data."""
        if self._is_open:
            self._unsaid.append(partial(action, *arguments))
        else:
            action(*arguments)

    @contextmanager
    def weighed(
        self, operation: Operation, tensors: Sequence[Tensor], in_step: bool, is_alone: Callable[[Tensor], bool]
    ) -> Iterator[None]:
        """While open, nothing is said if an operation makes one of weights alone.

        Args:
            operation: The operation.
            tensors: What enters it.
            in_step: Whether a step itself computes, and none of the layers.
            is_alone: Whether no data are in a tensor that is no penalty.
        """
        before = [action for tensor in tensors for action in self._known.get(id(tensor), (tensor, ()))[1]]
        self._is_open = in_step and all(id(tensor) in self._known or is_alone(tensor) for tensor in tensors)
        outputs = tensors_among(operation.outputs())
        if before and not self._is_open and any(output.numel() > 1 for output in outputs):
            # Terms are added up; what else a number of the weights enters follows from their widths.
            for action in before:
                action()
        try:
            yield
        finally:
            if self._is_open:
                self._known.update((id(output), (output, before + self._unsaid)) for output in outputs)
            self._is_open, self._unsaid = False, []
