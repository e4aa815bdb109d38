"""Where values come from that a forward makes of numbers alone: those numbers may follow from a width."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common._compat import memory_of
from lit_prune.common.names import modules_of
from lit_prune.graph.made import ALIKE, FILLED, INTEGERS
from lit_prune.graph.operation import Operation, Signature, tensors_among
from lit_prune.graph.outputs import tensors_in
from lit_prune.graph.skeleton import MOST_VALUES, is_remembered, remembered

# Of more numbers than that, and of those of attributes, the values are not compared one by one: a grid that is kept
# from an earlier forward may be made again in a copy.
_FEW = 16


# An origin, and whether it is of values that are alike throughout.
Entry = tuple[int, bool]


class Origins:
    """Follows tensors that no weight has entered, from the operations that make them.

    An origin is a number: it comes from the operations and their numbers, but for shapes, and is zero where it tells
    nothing.

    Args:
        network: What is traced.
        names: The ids of its parameters and buffers.
    """

    def __init__(self, network: nn.Module, names: Container[int]) -> None:
        first = next(network.parameters(), None)
        self.on_meta = first is not None and first.is_meta
        self._names = names
        # The tensors are held so that their ids stay theirs: each with its origin, and whether it is alike throughout.
        self._made: dict[int, tuple[Tensor, int, bool]] = {}
        # By memory: what else was written into it, and what something unknown was written into.
        self._written: dict[int, tuple[Tensor, int]] = {}
        self._spoilt: dict[int, Tensor] = {}
        # What weights or inputs may have entered; where all tensors have values, so may those of attributes.
        self._others: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor] = {}
        if not self.on_meta:
            # A teacher that is no child is held by an attribute.
            held = [value for _, module in modules_of(network) for value in vars(module).values()]
            self._kept = {id(tensor): tensor for tensor in tensors_in(held, in_modules=True)}

    def is_known(self, tensor: Tensor) -> bool:
        """Whether the values that a tensor without values stands for are known, and still hold."""
        if not tensor.is_meta:
            return self.on_meta and tensor.numel() <= MOST_VALUES
        return is_remembered(tensor) and memory_of(tensor) not in self._spoilt

    def is_made(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of numbers alone."""
        return self.entry(tensor) is not None

    def enter(self, inputs: Iterable[Tensor]) -> None:
        """Note what is more than numbers: data, and what was made of them unseen."""
        self._others.update((id(tensor), tensor) for tensor in inputs)

    def is_other(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of more than numbers, or is data."""
        return id(tensor) in self._others

    def begin(self, tensor: Tensor, value: Tensor) -> None:
        """Note a tensor that a forward has made of Python's numbers."""
        self._made[id(tensor)] = (tensor, _digest(value), False)

    def follow(self, func: Any, known: Signature, operation: Operation, entries: Sequence[Entry | None]) -> None:
        """Note what an operation makes of tensors that are all made of numbers alone."""
        made = [entry for entry in entries if entry is not None]
        before, numbers = [entry[0] for entry in made], known.numbers(operation)
        # What was there before the forward, in other places, still tells nothing.
        origin = hash((operation.name, numbers, *before)) if numbers or any(before) or not before else 0
        alike = operation.name in ALIKE or not known.counts or torch.Tag.pointwise in func.tags
        for tensor in tensors_among([operation.arguments[name] for name in known.written]):
            self._written[memory_of(tensor)] = (tensor, hash((self._written.get(memory_of(tensor), (0, 0))[1], origin)))
        for output in tensors_among(operation.outputs()):
            self._made[id(output)] = (output, origin, alike and all(entry[1] for entry in made))

    def leave(self, func: Any, known: Signature, operation: Operation) -> None:
        """Note what an operation makes of tensors that weights may have entered."""
        if known.written:
            for tensor in tensors_among([operation.arguments[name] for name in known.written]):
                self._spoilt[memory_of(tensor)] = tensor
        output = operation.output
        if func in FILLED:
            self._made[id(output)] = (output, hash((operation.name, known.numbers(operation))), True)
        elif isinstance(output, Tensor):
            self._others[id(output)] = output
        else:
            self._others.update((id(each), each) for each in tensors_among(operation.outputs()))

    def numbers(
        self, made: Sequence[tuple[Tensor, Entry]], blank: Container[int]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What tells where tensors come from: the values of small ones, and the origins of others.

        Args:
            made: What enters an operation, with its origin.
            blank: The ids of those that carry no labels.
        """
        values: list[float] = []
        origins: list[float] = []
        for tensor, (origin, alike) in made:
            if id(tensor) in self._names:
                continue
            value = self._value(tensor)
            if alike or value is None or id(tensor) not in blank or tensor.numel() > MOST_VALUES:
                origins.extend([origin] if origin else ())
            elif tensor.numel() > _FEW:
                origins.extend([_digest(value)] if origin else ())
            elif (origin or self.on_meta) and (value.is_floating_point() or value.dtype in INTEGERS):
                values.extend(value.detach().double().flatten().tolist())
        return tuple(values), tuple(origins)

    def _value(self, tensor: Tensor) -> Tensor | None:
        if not tensor.is_meta:
            return tensor
        return remembered(tensor) if self.is_known(tensor) else None

    def entry(self, tensor: Tensor) -> Entry | None:
        """The origin of a tensor, and whether it is alike throughout; None where a weight has entered it."""
        entry = self._made.get(id(tensor))
        if entry is None and (id(tensor) in self._others or (id(tensor) in self._names and not is_remembered(tensor))):
            return None
        written = 0
        # A sparse one has no memory of its own.
        if (self._spoilt or self._written) and tensor.layout is torch.strided:
            memory = memory_of(tensor)
            if memory in self._spoilt:
                return None
            written = self._written.get(memory, (tensor, 0))[1]
        if entry is None:
            if tensor.is_meta and not is_remembered(tensor):
                return None
            # What was there before the forward tells nothing; the rest comes from elsewhere than torch.
            known = tensor.is_meta or id(tensor) in self._kept
            entry = self._made[id(tensor)] = (tensor, 0 if known else _digest(tensor), False)
        return hash((entry[1], written)) if written else entry[1], entry[2]


def _digest(value: Tensor) -> int:
    """A number that stands for the values of a tensor."""
    if value.numel() > MOST_VALUES:
        return 0
    return hash((value.dtype, *value.detach().flatten().tolist()))
