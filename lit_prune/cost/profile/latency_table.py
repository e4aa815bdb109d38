"""How long each layer of a network takes on a device, for every combination of its widths."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lit_prune.errors import ArgumentError, ArgumentTypeError, MissingFileError

if TYPE_CHECKING:
    from torch import nn

Widths = npt.ArrayLike
_FORMAT = 1


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer, by its widths.

    Attributes:
        inputs: Widths of its input that were measured, rising: the weight's, so 1 of a depthwise convolution.
        outputs: Widths of its output, rising.
        ms: ``(inputs, outputs)`` milliseconds.

    Raises:
        ArgumentError: If widths don't rise, or the times are not as many, finite and at least 0.

    Example:
        >>> layer = LayerTimes((8, 16), (8, 16), [[1.0, 2.0], [2.0, 4.0]])
        >>> float(layer.at(16, 12))
        3.0
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "ms", np.asarray(self.ms, dtype=np.float64))
        for name, widths in (("in", self.inputs), ("out", self.outputs)):
            if not widths or any(np.diff(widths) <= 0) or widths[0] < 1:
                raise ArgumentError(f"Widths {name!r} must rise from at least 1, but are {[*widths]}.")
        if self.ms.shape != (len(self.inputs), len(self.outputs)):
            raise ArgumentError(
                f"ms must have a row for each of {len(self.inputs)} input widths and a column for each of "
                f"{len(self.outputs)} output widths, but has the shape {self.ms.shape}."
            )
        if not (np.isfinite(self.ms).all() and (self.ms >= 0).all()):
            raise ArgumentError("ms must hold finite milliseconds of at least 0.")

    def at(self, inputs: Widths, outputs: Widths) -> npt.NDArray[np.float64]:
        """Milliseconds at some widths, between the measured ones in proportion; below the least, those of the least."""
        row, further = self._rows[np.minimum(inputs, self.inputs[-1])].T
        column, right = self._columns[np.minimum(outputs, self.outputs[-1])].T
        row, column = row.astype(np.intp), column.astype(np.intp)
        upper = self._padded[row, column] * (1 - right) + self._padded[row, column + 1] * right
        lower = self._padded[row + 1, column] * (1 - right) + self._padded[row + 1, column + 1] * right
        return np.asarray(upper * (1 - further) + lower * further)

    @cached_property
    def _rows(self) -> npt.NDArray[np.float64]:
        return _places(self.inputs)

    @cached_property
    def _columns(self) -> npt.NDArray[np.float64]:
        return _places(self.outputs)

    @cached_property
    def _padded(self) -> npt.NDArray[np.float64]:
        return np.pad(self.ms, ((0, 1), (0, 1)), mode="edge")


@dataclass(frozen=True)
class LatencyTable:
    """How long each layer of a network takes on a device; together, how long the network takes.

    It is made by :func:`profile_latency` or `lit-prune profile`, or elsewhere: :meth:`load` tells the format.

    Attributes:
        layers: Layer name, in the network that was profiled, to its times.
        constant: Milliseconds that remain whatever the widths are.
        conditions: Under which it was made: ``device``, ``runtime``, ``version``, ``threads``, ``input`` (the shape),
            ``network`` (its class), and ``error`` (the relative error of the networks that were measured for it).

    Example:
        >>> table = LatencyTable({"0": LayerTimes((3,), (8, 16), [[1.0, 2.0]])}, constant=0.5)
        >>> table.ms({"0": (3, 12)}), table.dense_ms
        (2.0, 2.5)
    """

    layers: Mapping[str, LayerTimes]
    constant: float = 0.0
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ArgumentError("A latency table needs the times of at least one layer.")
        if not 0 <= self.constant < math.inf:
            raise ArgumentError(f"The constant of a latency table is milliseconds, 0 or more, but is {self.constant}.")

    @property
    def dense_ms(self) -> float:
        """Milliseconds at the greatest widths."""
        return self.constant + sum(float(layer.ms[-1, -1]) for layer in self.layers.values())

    @property
    def shape(self) -> list[int]:
        """Of the input that it was made with; empty where it does not tell."""
        return [*self.conditions.get("input", ())]

    def ms(self, widths: Mapping[str, tuple[int, int]]) -> float:
        """Milliseconds of the network when its layers have these (input, output) widths."""
        return self.constant + sum(float(layer.at(*widths[name])) for name, layer in self.layers.items())

    def ms_of(self, network: nn.Module) -> float:
        """Milliseconds of a network as wide as it is now.

        Raises:
            ArgumentError: As for :meth:`prefix_in`.
        """
        from lit_prune.cost.profile.layer_widths import widths_of

        prefix = self.prefix_in(network)
        return self.ms({name: widths_of(network.get_submodule(prefix + name)) for name in self.layers})

    def prefix_in(self, network: nn.Module, shrinking: Collection[str] = ()) -> str:
        """What stands before the table's names in the names of a module that holds the network.

        Args:
            network: The module.
            shrinking: Names of tensors: where it holds several such networks, the one that most of these are of counts.

        Raises:
            ArgumentError: If it is not the network that the table is of, or has been widened.
        """
        names = {name for name, _ in network.named_modules(remove_duplicate=False)}
        first = next(iter(self.layers))
        prefixes = [name.removesuffix(first) for name in sorted(names, key=len) if f".{name}".endswith(f".{first}")]
        whole = [prefix for prefix in prefixes if all(f"{prefix}{name}" in names for name in self.layers)]
        if whole:
            counts = [sum(f"{prefix}{name}.weight" in shrinking for name in self.layers) for prefix in whole]
            prefix = str(whole[counts.index(max(counts))])
            self._check(network, prefix)
            return prefix
        lacking = next((name for name in self.layers if (prefixes or [""])[0] + name not in names), first)
        raise ArgumentError(f"{self} does not fit {type(network).__name__}, which has no layer {lacking!r}.")

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table as JSON."""
        content = {
            "format": _FORMAT,
            **self.conditions,
            "constant": self.constant,
            "layers": {
                name: {"in": [*each.inputs], "out": [*each.outputs], "ms": _rounded(each.ms)}
                for name, each in self.layers.items()
            },
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LatencyTable:
        """Read a table from a JSON file.

        Its ``layers`` are the names of layers, each with the widths that were measured as ``in`` and ``out`` and the
        milliseconds ``ms``: a row for each input width, with a number for each output width. ``constant`` and the
        conditions may be there; of ``input`` and ``runtime`` it takes that the clock is read after an event.

        Raises:
            MissingFileError: If there is no such file.
            ArgumentTypeError: If it is no path.
            ArgumentError: If it is no such table.
        """
        if not isinstance(path, (str, PathLike)):
            raise ArgumentTypeError(f"A latency table is a LatencyTable, or the path of one, but got {path!r}.")
        if not Path(path).is_file():
            raise MissingFileError(f"There is no latency table {str(path)!r}: `lit-prune profile` makes one.")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            layers = {
                name: LayerTimes(tuple(each["in"]), tuple(each["out"]), each["ms"])
                for name, each in content.pop("layers").items()
            }
            constant, known = float(content.pop("constant", 0.0)), content.pop("format", _FORMAT)
            table = cls(layers, constant, content)
        except ArgumentError as error:
            raise ArgumentError(f"{path} is no latency table: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(
                f'{path} is no latency table: it needs "layers" with "in", "out" and "ms" of each ({error!r}).'
            ) from error
        if known != _FORMAT:
            raise ArgumentError(f"{path} is a latency table of format {known!r}; this release reads {_FORMAT}.")
        return table

    def __str__(self) -> str:
        """What it is a table of, for messages."""
        told: Mapping[str, Any] = self.conditions
        where = f" on {told['device']} ({told.get('runtime', 'a runtime')})" if "device" in told else ""
        return f"The latency table of {told.get('network') or 'a network'}{where}"

    def _check(self, network: nn.Module, prefix: str) -> None:
        # A table can be read and shown without torch.
        from lit_prune.cost.profile.layer_widths import widths_of

        for name, layer in self.layers.items():
            inputs, outputs = widths_of(network.get_submodule(prefix + name))
            if inputs > layer.inputs[-1] or outputs > layer.outputs[-1]:
                raise ArgumentError(
                    f"{self} does not fit: it knows layer {name!r} with up to {layer.inputs[-1]} inputs and "
                    f"{layer.outputs[-1]} outputs, but it has {inputs} and {outputs}. Profile this network."
                )


def _places(known: Sequence[int]) -> npt.NDArray[np.float64]:
    """For each width up to the greatest: the index of the known one below, and how far it is to the next, in [0, 1]."""
    widths = np.arange(known[-1] + 1)
    exact = np.interp(widths, known, np.arange(len(known)))
    return np.stack([np.floor(exact), exact % 1], 1)


def _rounded(ms: npt.NDArray[np.float64]) -> list[list[float]]:
    return [[float(f"{each:.4g}") for each in row] for row in ms]
