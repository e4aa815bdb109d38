"""Make what is left of a network answer as the whole does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.activations import Calibration, CalibrationBatch
from lit_prune.activations.calibration import run_batches
from lit_prune.common._compat import ConvNd, ConvTransposeNd, NormBase
from lit_prune.common.arguments import check_whole
from lit_prune.common.names import layer_of, tensors_of
from lit_prune.common.ranks import warn_once
from lit_prune.common.running import eagerly, evaluating, untouched
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.graph.subject import InPlace
from lit_prune.plan import PruningPlan, belongs, belongs_to_any
from lit_prune.repair.entering import Usual, entering_as_in_training
from lit_prune.repair.listening import Listening
from lit_prune.repair.recalibration import check_alike
from lit_prune.repair.repairing import Fit, Repairing

Batches = Callable[[], Iterable[CalibrationBatch | Sequence[Any]]]
"""Makes the inputs of some forwards, or positional ones alone; the same each time."""


@dataclass
class Repair:
    """How what is left of a network is made to answer as the whole did, without training.

    What removed channels did can be predicted, to a large part, from those that stay. Each convolution and linear layer
    is fitted anew to answer as the whole network's did, from the first to the last, each to what really enters it then;
    and the statistics of each BatchNorm move as much as those of its inputs did. Where they are being kept up, in train
    mode, they are measured anew, for they lag behind the weights. Layers that run along channels of which some are
    gone, as those of MLP-Mixers between tokens, are sliced alone.

    Args:
        batches: Number of batches that are looked at; evenly spread over the data set.
        batch_size: Examples in each, whatever the batch size of training is.
        rows: How many positions of each layer's output are looked at, over all examples; memory grows with it, and not
            with the number of examples.
        compensation: Whether layers are fitted.
        recalibration: Whether statistics of BatchNorms move.

    Raises:
        ArgumentError: If a number is not positive, or nothing is to be done.

    Example:
        >>> Repair(batches=4, batch_size=64).rows
        8192
    """

    batches: int = 2
    batch_size: int = 64
    rows: int = 8192
    compensation: bool = True
    recalibration: bool = True

    def __post_init__(self) -> None:
        for name in ("batches", "batch_size", "rows"):
            check_whole(name, getattr(self, name))
        for name in ("compensation", "recalibration"):
            if not isinstance(given := getattr(self, name), bool):
                raise ArgumentTypeError(f"{name} must be True or False, but got {given!r}.")
        if not (self.compensation or self.recalibration):
            raise ArgumentError("Repair does nothing without compensation and recalibration: write repair=False.")

    @property
    def calibration(self) -> Calibration:
        """The data, as calibration takes it."""
        return Calibration(self.batches, self.batch_size, match_iou=None)


def as_repair(given: Repair | bool) -> Repair | None:
    """The repair that an argument asks for.

    Raises:
        ArgumentTypeError: If it is something else.

    Example:
        >>> as_repair(True) == Repair(), as_repair(False)
        (True, None)
    """
    if isinstance(given, bool):
        return Repair() if given else None
    if not isinstance(given, Repair):
        raise ArgumentTypeError(
            f"repair must be True, False or a Repair, such as Repair(batches=8), but got {given!r}."
        )
    return given


@dataclass(frozen=True)
class Repaired:
    """What a repair has found.

    Attributes:
        values: Name of a parameter or buffer to the value that it gets, on the CPU, in the shape that the plan leaves.
        fits: Name of a weight to how well its layer answers.
        before: Name of a statistic to what it was in the whole network, where that is not what was kept there.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    fits: Mapping[str, Fit] = field(default_factory=dict)
    before: Mapping[str, Tensor] = field(default_factory=dict)

    def apply_(
        self, network: nn.Module, copies: Iterable[nn.Module] = (), averages: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Give the values to a network that was cut, and to its averages what has changed.

        Args:
            network: As the plan left it.
            copies: Averages beside it, under its names.
            averages: Averages inside of it, as for :func:`lit_prune.plan.extended`.
        """
        own = dict(tensors_of(network))
        beside = [dict(tensors_of(copy)) for copy in copies]
        with torch.no_grad():
            for name, value in self.values.items():
                before = self.before.get(name, own[name].detach().clone()).to(own[name])
                own[name].copy_(value)
                followers = [tensors.get(name) for tensors in beside]
                for average, source in averages.items():
                    if belongs(name, source):
                        followers.append(own.get(average + name.removeprefix(source)))
                for tensor in followers:
                    if tensor is not None and tensor.shape == value.shape:
                        _follow_(tensor, before, own[name], is_scale=name.endswith("running_var"))

    def summary(self) -> dict[str, list[float]]:
        """Name of a layer to the shares of the variance of its answers that are explained: before, and after."""
        return {layer_of(name): [round(fit.before, 4), round(fit.after, 4)] for name, fit in self.fits.items()}


def _follow_(tensor: Tensor, before: Tensor, after: Tensor, is_scale: bool) -> None:
    if is_scale:
        tensor.mul_((after / before.clamp(min=torch.finfo(torch.float32).tiny)).to(tensor))
    else:
        tensor.add_((after - before).to(tensor))


def repaired(
    network: nn.Module,
    plan: PruningPlan,
    batches: Batches,
    number: int,
    repair: Repair,
    forward: Callable[..., Any] | None = None,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    usual: Usual | None = MappingProxyType({}),
    averages: Collection[str] = (),
) -> Repaired:
    """What is to be changed in a network that is about to be cut; it stays as it is.

    Args:
        network: The live network.
        plan: What it is cut to.
        batches: Inputs.
        number: Of these batches, about.
        repair: What is done.
        forward: Takes the inputs; by default the network.
        precision: Makes a context in which the forward runs.
        usual: What enters modules in training, where that is known; ``None`` where what enters is just that.
        averages: Prefixes and names of averages inside of the network: they follow what they are averages of.

    Raises:
        CalibrationError: If there are no inputs, or they are nothing like those of the training, or not finite.
    """
    forward = network if forward is None else forward
    names = {id(tensor): name for name, tensor in tensors_of(network) if not belongs_to_any(name, averages)}
    parameters = dict(network.named_parameters())
    outputs = {name: _kept_outputs(network, name, dims) for name, dims in plan.kept.items()}
    kept = {name: indices for name, indices in outputs.items() if indices is not None}
    kept_up = {
        names[id(module.running_mean)]
        for module in network.modules()
        if repair.recalibration
        and isinstance(module, NormBase)
        and module.training
        and id(module.running_mean) in names
    }
    listening = Listening(names, kept, max(1, repair.rows // max(1, number)), kept_up)
    with untouched(network):
        with entering_as_in_training(network, usual or {}):
            run_batches(forward, batches(), precision, listening.batch)
        if usual is not None and not usual:
            check_alike(network, kept_up, kept, listening.answers.statistics)
    subject = InPlace.of(network, [], {}, values=True)
    with subject.running(plan) as left, evaluating(left), torch.no_grad(), eagerly():
        tensors = dict(tensors_of(left))
        ids = {id(tensor): name for name, tensor in tensors.items() if not belongs_to_any(name, averages)}
        fitted = [name for name, parameter in parameters.items() if name in plan.kept or parameter.requires_grad]
        compensated = fitted if repair.compensation else ()
        repairing = Repairing(ids, listening.answers, compensated, repair.recalibration, kept_up)
        run_batches(forward, batches(), precision, repairing.batch)
        values = {name: tensors[name].detach().cpu().clone() for name in sorted(repairing.changed)}
    if repair.compensation:
        seen = {place[0] for place in listening.answers.spans}
        mine = [name for name in parameters if name in plan.kept and not belongs_to_any(name, averages)]
        _warn_of_unfitted(network, [name for name in mine if name not in seen], bool(repairing.fits))
    return Repaired(values, repairing.fits, repairing.of_whole)


def _warn_of_unfitted(network: nn.Module, unseen: Iterable[str], are_some_fitted: bool) -> None:
    """Say which layers stay as they are sliced, of those whose weights have run in none."""
    if not are_some_fitted:
        warn_once(
            f"No layer of {type(network).__name__} was fitted to answer as it did: none whose weight is a parameter of "
            "its own has run on the calibration batches, on more than one row at a time. Weights that each forward "
            "makes anew (weight norm and other parametrizations, standardised weights) stay as they are sliced."
        )
        return
    kinds = (nn.Linear, ConvNd, ConvTransposeNd)
    layers = [layer_of(name) for name in unseen if name.endswith(".weight")]
    idle = [layer for layer in layers if isinstance(network.get_submodule(layer), kinds)]
    if idle:
        warn_once(
            f"The calibration batches have run no layer with the weights of {', '.join(idle)} (an auxiliary head, say, "
            "or weights that a forward uses by itself): these stay as they are sliced."
        )


def _kept_outputs(network: nn.Module, name: str, dims: Mapping[int, Tensor]) -> Tensor | None:
    """Which outputs of a layer stay, of what is cut of a tensor of its; None for all."""
    layer = network.get_submodule(name.rpartition(".")[0])
    if not (isinstance(layer, ConvTransposeNd) and name.endswith("weight")):
        return dims.get(0)
    if layer.groups == 1:
        return dims.get(1)
    # Its weight counts the outputs of one group; groups stay that have inputs left.
    inputs, each = layer.weight.shape[:2]
    groups: Tensor = torch.unique(dims.get(0, torch.arange(inputs)) // (inputs // layer.groups))
    return (groups[:, None] * each + dims.get(1, torch.arange(each))).flatten()
