"""What a latency table says of each choice of widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lit_prune.cost.profile import LatencyTable, is_transposed, widths_of
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, SelectionError
from lit_prune.select.base import Bundle
from lit_prune.select.knapsack import Choice

Floats = npt.NDArray[np.float64]
Wholes = npt.NDArray[np.int64]


class TableCosts:
    """What a table says of each choice of widths.

    Args:
        table: The table.
        evidence: Of the network.
        bundles: What is chosen for.
        options: The widths that each bundle may have.

    Raises:
        SelectionError: If the table is of another network.
    """

    def __init__(
        self, table: LatencyTable, evidence: Evidence, bundles: Sequence[Bundle], options: Sequence[Wholes] = ()
    ) -> None:
        self.table, self.options = table, options
        try:
            prefix = table.prefix_in(evidence.network, shrinking(evidence))
        except ArgumentError as error:
            raise SelectionError(str(error)) from error
        self.layers = [*table.layers.values()]
        rows = {f"{prefix}{name}": row for row, name in enumerate(table.layers)}
        modules = {name: evidence.network.get_submodule(name) for name in rows}
        self.whole = np.array([widths_of(module) for module in modules.values()])
        self.sizes = np.array([bundle[0].size for bundle in bundles])
        # How many inputs and outputs a layer loses with a channel of each bundle.
        self.lost = np.zeros((len(rows), 2, len(bundles)), dtype=np.int64)
        for number, bundle in enumerate(bundles):
            for group in bundle:
                for (tensor, dim), members in group.members.items():
                    name, _, kind = tensor.rpartition(".")
                    if name in rows and kind == "weight" and dim < 2:
                        side = dim if is_transposed(modules[name]) else 1 - dim
                        self.lost[rows[name], side, number] += len(members.indices) // group.size
        self._kept: tuple[Choice, tuple[Wholes, Wholes, Floats]] | None = None
        self.touched = [np.flatnonzero(self.lost[:, :, number].any(1)) for number in range(len(bundles))]

    def ms(self, widths: Wholes) -> float:
        """Milliseconds at one width of each bundle."""
        return self.table.constant + float(self._rows(widths)[1].sum())

    def along(self, item: int, choice: Choice) -> Floats:
        """As :class:`lit_prune.select.knapsack.Costs` has it."""
        widths, now, ms = self._state(choice)
        gone = widths[item] - self.options[item]
        total = np.full(len(gone), self.table.constant + ms.sum())
        for row in self.touched[item]:
            inputs, outputs = (now[row, side] - self.lost[row, side, item] * gone for side in (0, 1))
            total += self.layers[row].at(inputs, outputs) - ms[row]
        return total

    def _state(self, choice: Choice) -> tuple[Wholes, Wholes, Floats]:
        """(widths of bundles, widths of layers, milliseconds of layers) of a choice; of the last one they are kept."""
        if self._kept is None or choice != self._kept[0]:
            widths = np.array([options[each] for options, each in zip(self.options, choice, strict=True)])
            self._kept = [*choice], (widths, *self._rows(widths))
        return self._kept[1]

    def _rows(self, widths: Wholes) -> tuple[Wholes, Floats]:
        """(widths of layers, milliseconds of layers) at one width of each bundle."""
        now = np.asarray(self.whole - self.lost @ (self.sizes - widths), dtype=np.int64)
        return now, np.array([float(layer.at(*each)) for layer, each in zip(self.layers, now, strict=True)])


def shrinking(evidence: Evidence) -> set[str]:
    """Names of the tensors that lose channels with the groups that take part."""
    return {name for group in evidence.groups for name, _ in group.slots}
