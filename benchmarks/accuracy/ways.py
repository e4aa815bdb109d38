"""The ways in which a network gets smaller here."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.rows.base import Row
from benchmarks.accuracy.simpler_repairs import compensated_
from lit_prune import ChannelPruning, Distillation, PruningPlan, Repair, plan_pruning, shrink_
from lit_prune.cost import Cost
from lit_prune.criteria import CRITERIA, Combined, Random
from lit_prune.repair import repaired
from lit_prune.schedule import AtSteps
from lit_prune.select import MacsBudget, Selection

COMBINED = {
    f"{layers} with {channels}": Combined(layers, channels)
    for layers in ("magnitude", "lamp", "taylor")
    for channels in ("obs", "taylor")
    if layers != channels
}
SPREADS = ("uniform", "global", "isomorphic")
REPAIRS: dict[str, Repair | None] = {
    "sliced": None,
    "recalibrated": Repair(compensation=False),
    "repaired": Repair(),
}
# Whether it is sequential.
SIMPLER = {"channel map": False, "sequential channel map": True}
Cut = Callable[[float, int], tuple[nn.Module, float]]
"""An amount and a draw to what is left, and the seconds that a repair took."""


class Ours:
    """Cuts by lit_prune, each plan made once for all its repairs.

    Args:
        row: What is cut.
        round_to: Kept widths are multiples of it.
        selections: What chooses, by name; by default budgets of multiply-adds, by their spread.
    """

    criteria = ("random", *(name for name in CRITERIA if name != "random"), *COMBINED)

    def __init__(self, row: Row, round_to: int, selections: Mapping[str, Selection] | None = None) -> None:
        self.row, self.round_to = row, round_to
        self.selections = selections or {spread: MacsBudget(spread) for spread in SPREADS}
        self._plans: dict[tuple[float, int, str, str], PruningPlan] = {}

    def ways(self) -> Iterator[tuple[str, Cut]]:
        for criterion in self.criteria:
            for selection in self.selections:
                for name, repair in REPAIRS.items():
                    yield f"{criterion}, {selection}; {name}", partial(self.cut, criterion, selection, repair)
                for name, sequential in SIMPLER.items():
                    yield f"{criterion}, {selection}; {name}", partial(self.folded, criterion, selection, sequential)

    def trained(self, epochs: float) -> Iterator[tuple[str, Callable[[float, int], nn.Module]]]:
        """As users do it: the callback, in a Trainer that goes on with the whole network; and one of that size."""
        for events in (1, 3):
            for weight in (0.0, 1.0):
                name = f"in training, {events} event{'s' * (events > 1)}{', distilled' * (weight > 0)}"
                yield name, partial(self._in_training, epochs, events, weight)
        yield "a narrower network from the start", partial(self._from_the_start, epochs)

    def cut(
        self, criterion: str, selection: str, repair: Repair | None, amount: float, draw: int
    ) -> tuple[nn.Module, float]:
        """What is left, and the seconds that a repair took."""
        plan = self._plan(amount, draw, criterion, selection)
        network = shrink_(copy.deepcopy(self.row.network), plan).eval()
        started = time.perf_counter()
        if repair is not None:
            batches = self.row.calibration(draw, repair)
            repaired(self.row.network, plan, lambda: batches, len(batches), repair).apply_(network)
        return network, time.perf_counter() - started

    def folded(
        self, criterion: str, selection: str, sequential: bool, amount: float, draw: int
    ) -> tuple[nn.Module, float]:
        """What is left, compensated in a simpler way, and the seconds that it took."""
        plan = self._plan(amount, draw, criterion, selection)
        network = shrink_(copy.deepcopy(self.row.network), plan).eval()
        started = time.perf_counter()
        images = torch.cat([images for (images,) in self.row.calibration(draw, Repair())])
        compensated_(network, self.row.network, plan, images, sequential)
        return network, time.perf_counter() - started

    def _plan(self, *key: Any) -> PruningPlan:
        if key not in self._plans:
            amount, draw, criterion, selection = key
            network = copy.deepcopy(self.row.network)
            used = Random(draw) if criterion == "random" else COMBINED.get(criterion) or CRITERIA[criterion]()
            self._plans[key] = plan_pruning(
                network,
                self.row.image,
                amount=amount,
                criterion=used,
                selection=self.selections[selection],
                losses=self._losses(network, draw) if used.needs_gradients else None,
                data=self.row.calibration(draw, Repair()) if used.needs_arrivals else None,
                round_to=self.round_to,
            )
        return self._plans[key]

    def _losses(self, network: nn.Module, draw: int) -> Iterator[Tensor]:
        return (self.row.loss(network, batch) for batch in self.row.batches(draw, 16))

    def _in_training(self, epochs: float, events: int, weight: float, amount: float, draw: int) -> nn.Module:
        # Gradients are those of the sixteen steps before each event.
        steps = AtSteps([16 * (event + 1) for event in range(events)])
        pruning = ChannelPruning(
            amount,
            steps,
            criterion="taylor",
            selection=MacsBudget("global"),
            round_to=self.round_to,
            repair=True,
            verbose=False,
        )
        teaching = [Distillation(weight * self.row.loss_scale)] if weight else []
        return self.row.train(copy.deepcopy(self.row.network), epochs, draw, [pruning, *teaching])

    def _from_the_start(self, epochs: float, amount: float, draw: int) -> nn.Module:
        """Every layer narrower by the same share, and trained as the whole network was, for as long in all."""
        plan = self._plan(amount, draw, "random", "uniform")
        return self.row.train_anew(shrink_(copy.deepcopy(self.row.network), plan), epochs, draw)


def macs_of(row: Row, network: nn.Module) -> float:
    return Cost.of(network.eval(), row.image).macs
