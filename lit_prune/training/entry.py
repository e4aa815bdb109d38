"""What of its batch a step enters the network with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_prune.activations import CalibrationBatch
from lit_prune.training.batch_parts import Place, part_at, parts

# Small and the same everywhere: nothing tells where one comes from.
_PLAIN = (type(None), bool, int, float, str)
# What a step makes itself of its batch, or without it.
_MADE: dict[str, Any] = {"made": True}


@dataclass(frozen=True)
class Entry:
    """How a step enters a module, as plain data: each input is a value, or lies somewhere in the batch, or was made.

    Attributes:
        module: Qualified name of the module.
        args: Its positional inputs.
        kwargs: Those by keyword.

    Example:
        >>> import torch
        >>> batch = {"label": torch.tensor([0, 1]), "image": torch.rand(2, 3)}
        >>> entry = Entry.of("net", (batch["image"], None), {}, batch)
        >>> other = {"label": torch.tensor([1, 1]), "image": torch.rand(2, 3)}
        >>> entry.is_whole, entry.inputs(other).inputs[0] is other["image"], entry.inputs(other).inputs[1]
        (True, True, None)
        >>> Entry.of("net", (2 * batch["image"],), {}, batch).is_whole
        False
    """

    module: str
    args: tuple[Mapping[str, Any], ...]
    kwargs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, module: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: Any) -> Entry:
        """A call of a module, and the batch of the step that it is in."""
        # Other keys are no plain data.
        known = [each for each in parts(batch) if all(type(key) in (str, int) for key in each[0])]
        return cls(
            module,
            tuple(_described(value, known) for value in args),
            {name: _described(value, known) for name, value in kwargs.items()},
        )

    @property
    def is_whole(self) -> bool:
        """Whether all that enters is known once a batch is."""
        return not any(_is_made(described) for described in (*self.args, *self.kwargs.values()))

    def inputs(self, batch: Any) -> CalibrationBatch:
        """The inputs that a batch gives.

        Raises:
            LookupError: If it has not what they are.
        """
        return CalibrationBatch(
            tuple(_value(described, batch) for described in self.args),
            keywords={name: _value(described, batch) for name, described in self.kwargs.items()},
        )


def _described(value: Any, known: list[tuple[Place, Any]]) -> dict[str, Any]:
    if isinstance(value, _PLAIN):
        # A number may be a size, or grow with the steps; a word or a flag, be the batch's.
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_sure = value is None or not (is_number or any(value is part for _, part in known))
        return {"value": value} if is_sure else _MADE
    for place, part in known:
        if value is part:
            return {"at": list(place)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(each, known) for each in value]}
    if type(value) is dict and all(isinstance(key, (str, int)) for key in value):
        return {"dict": {key: _described(each, known) for key, each in value.items()}}
    return _MADE


def _is_made(described: Mapping[str, Any]) -> bool:
    ((kind, content),) = described.items()
    if kind in ("list", "tuple", "dict"):
        return any(_is_made(each) for each in (content.values() if kind == "dict" else content))
    return kind == "made"


def _value(described: Mapping[str, Any], batch: Any) -> Any:
    ((kind, content),) = described.items()
    if kind == "at":
        return part_at(batch, content)
    if kind == "dict":
        return {key: _value(each, batch) for key, each in content.items()}
    if kind in ("list", "tuple"):
        values = [_value(each, batch) for each in content]
        return values if kind == "list" else tuple(values)
    return content
