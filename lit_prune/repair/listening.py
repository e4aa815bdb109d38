"""The first of two passes over the same batches: the whole network shows how each layer answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_prune.activations.samples import PRODUCTS, Positions, Product
from lit_prune.common.running import in_full_precision
from lit_prune.repair.recalibration import Statistics, as_in_training, of_norm
from lit_prune.repair.routing import Choices

# Of a batch, for each input of an output: a depthwise layer has nine, and thousands of rows would tell no more.
_ROWS_PER_INPUT = 64
Place = tuple[str, int, int]
"""Name of a tensor, number of the batch, and of the call in it."""


@dataclass
class Answers:
    """How the whole network answers.

    Attributes:
        positions: Where each call of a layer was sampled.
        spans: The shape of what it was sampled in.
        leaving: ``(rows, outputs)`` what left there, of the outputs that stay.
        statistics: Of what entered each BatchNorm, of the channels that stay.
        normed: Names of weights behind which a BatchNorm takes any constant out.
        choices: What it chose by values.
    """

    positions: dict[Place, Positions] = field(default_factory=dict)
    spans: dict[Place, tuple[int, ...]] = field(default_factory=dict)
    leaving: dict[Place, Tensor] = field(default_factory=dict)
    statistics: dict[Place, Statistics] = field(default_factory=dict)
    normed: set[str] = field(default_factory=set)
    choices: Choices = field(default_factory=Choices)


class Pass(TorchFunctionMode):
    """Counts calls by the tensors of the network that they take.

    Args:
        names: The id of each tensor of the network to its name.
        choices: Runs what chooses by values.
    """

    def __init__(self, names: Mapping[int, str], choices: Choices) -> None:
        super().__init__()
        self.names = names
        self.choices = choices
        self._batch = -1
        self._calls: Counter[str] = Counter()

    def batch(self) -> Pass:
        """What is open while the next batch runs."""
        self._batch += 1
        self._calls.clear()
        self.choices.next_batch()
        return self

    def place_of(self, tensor: Any) -> Place | None:
        """The place of a call that takes a tensor, counted with this; ``None`` if it is not the network's."""
        name = self.names.get(id(tensor))
        if name is None:
            return None
        self._calls[name] += 1
        return name, self._batch, self._calls[name]


class Listening(Pass):
    """Notes how the whole network answers.

    Args:
        names: The id of each tensor of the network to its name.
        kept: Name of a weight to the outputs of it that stay; of a running mean to the channels that stay.
        rows: How many rows are sampled of each batch.
        kept_up: Names of the running means that a training keeps up; there each batch counts by its own statistics.
    """

    def __init__(
        self, names: Mapping[int, str], kept: Mapping[str, Tensor], rows: int, kept_up: Collection[str] = ()
    ) -> None:
        self.answers = Answers()
        super().__init__(names, self.answers.choices)
        self._kept = kept
        self._rows = rows
        self._kept_up = kept_up
        # Held, so that ids stay theirs.
        self._outputs: dict[int, tuple[Tensor, str]] = {}

    def batch(self) -> Pass:
        """What is open while the next batch runs."""
        self._outputs.clear()
        return super().batch()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = self._normed(of_norm(args, kwargs)) if func is F.batch_norm else None
        if output is None:
            output = self.choices.run(func, args, kwargs)
        if func in PRODUCTS:
            product = Product(func, args, kwargs)
            place = self.place_of(product.weight)
            if place is not None and product.has_batch and output.numel():
                with in_full_precision(output.device):
                    self._note_product(product, place, output)
        return output

    def _note_product(self, product: Product, place: Place, output: Tensor) -> None:
        generator = torch.Generator().manual_seed(hash(place[1:]) % 2**31)
        at = product.positions(output, min(self._rows, _ROWS_PER_INPUT * product.inputs), generator)
        leaving = product.leaving(output.detach(), at).float()
        kept = self._kept.get(place[0])
        self.answers.positions[place], self.answers.spans[place] = at, product.span
        self.answers.leaving[place] = leaving if kept is None else leaving[:, kept.to(leaving.device)]
        self._outputs[id(output)] = output, place[0]

    def _normed(self, given: Mapping[str, Any]) -> Tensor | None:
        """Note what enters a BatchNorm; and what leaves it, if that is not what its function gives."""
        place = self.place_of(given["running_mean"])
        if place is None or given.get("training"):
            return None
        name, values = place[0], given["input"]
        if id(values) in self._outputs:
            self.answers.normed.add(self._outputs[id(values)][1])
        self.answers.statistics[place] = Statistics.of(values).of_channels(self._kept.get(name))
        return as_in_training(given) if name in self._kept_up else None
