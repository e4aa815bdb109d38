"""Make what is left of a network answer as the whole does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common.names import tensors_of
from lit_prune.common.running import eagerly, untouched
from lit_prune.graph.subject import InPlace
from lit_prune.plan import PruningPlan
from lit_prune.repair.passes import Fit, Listening, Repairing

Batches = Callable[[], Iterable[Sequence[Any]]]
"""Makes the inputs of some forwards, the same each time."""


@dataclass
class Repair:
    """How what is left of a network is repaired.

    Args:
        compensation: Whether weights are fitted.
        recalibration: Whether statistics of BatchNorms are moved.
        rows: How many positions of each layer's output are looked at, over all images.
    """

    compensation: bool = True
    recalibration: bool = True
    rows: int = 16384


@dataclass(frozen=True)
class Repaired:
    """What a repair has found.

    Attributes:
        values: Name of a parameter or buffer to the value that it gets, in the shape that the plan leaves.
        fits: Name of a weight to how well its layer answers.
    """

    values: Mapping[str, Tensor]
    fits: Mapping[str, Fit]

    def apply_(self, network: nn.Module, copies: Iterable[nn.Module] = ()) -> None:
        """Give the values to a network that was cut, and to its averages what has changed."""
        own = dict(tensors_of(network))
        with torch.no_grad():
            for name, value in self.values.items():
                before = own[name].detach().clone()
                own[name].copy_(value)
                for copy in copies:
                    tensor = dict(tensors_of(copy)).get(name)
                    if tensor is None or tensor.shape != value.shape:
                        continue
                    if name.endswith("running_var"):
                        tensor.mul_((own[name] / before.clamp(min=1e-12)).to(tensor))
                    else:
                        tensor.add_((own[name] - before).to(tensor))


def repaired(
    network: nn.Module,
    plan: PruningPlan,
    batches: Batches,
    repair: Repair,
    forward: nn.Module | None = None,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Repaired:
    """What is to be changed in a network that is about to be cut; it stays as it is.

    Args:
        network: The live network.
        plan: What it is cut to.
        batches: Inputs.
        repair: What is done.
        forward: Takes the inputs; by default the network.
        precision: Makes a context in which the forward runs.
    """
    forward = network if forward is None else forward
    number = sum(1 for _ in batches())
    names = {id(tensor): name for name, tensor in tensors_of(network)}
    parameters = dict(network.named_parameters())
    outputs = {name: dims for name, dims in plan.kept.items()}
    kept = {name: dims[dim] for name, dims in outputs.items() if (dim := _output_dim(network, name)) in dims}
    listening = Listening(names, kept, max(1, repair.rows // max(1, number)))
    with untouched(network), precision(), listening:
        for inputs in batches():
            listening.begin()
            forward(*inputs)
    subject = InPlace.of(network, [], {}, values=True)
    with subject.running(plan) as left, torch.no_grad(), eagerly():
        for module in left.modules():
            module.training = False
        tensors = dict(tensors_of(left))
        ids = {id(tensor): name for name, tensor in tensors.items()}
        fitted = [name for name, parameter in parameters.items() if name in plan.kept or parameter.requires_grad]
        repairing = Repairing(
            ids, tensors, listening.answers, fitted if repair.compensation else (), repair.recalibration
        )
        with precision(), repairing:
            for inputs in batches():
                repairing.begin()
                forward(*inputs)
        values = {name: tensors[name].detach().clone() for name in sorted(repairing.changed)}
    return Repaired(values, repairing.fits)


def _output_dim(network: nn.Module, name: str) -> int:
    """Which dimension of a tensor counts outputs."""
    layer = network.get_submodule(name.rpartition(".")[0])
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    return 1 if transposed and name.endswith("weight") else 0
