"""How calibration batches enter a network: as training enters it, as far as that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from lit_prune.activations import CalibrationBatch, read_batch
from lit_prune.activations.objects import Reader
from lit_prune.errors import ArgumentTypeError, CalibrationError
from lit_prune.graph import Call
from lit_prune.training.batch_inputs import inputs_like
from lit_prune.training.entry import Entry
from lit_prune.training.replay import Replay
from lit_prune.training.seeing import Sight
from lit_prune.training.step import StepCall


@dataclass(frozen=True)
class Entrance:
    """How calibration batches enter a network.

    Attributes:
        forward: Takes the inputs of a batch.
        read: Finds these in a batch as the data loader gives it, and the objects.
        replays: Whether it is a step of the training.
    """

    forward: Callable[..., Any]
    read: Reader
    replays: bool = False


def entrance(network: nn.Module, sight: Sight) -> Entrance:
    """How batches enter for what asks for no objects in them.

    What the network's own ``calibration_batch`` says comes first. Else a batch gives what of a batch a step has entered
    the network with; and where a step makes that itself, or enters several networks, the step is made.

    Args:
        network: The live network.
        sight: How training enters it.

    Raises:
        CalibrationError: If it is not known how a batch would enter.
    """
    own, entries = own_reader(network), sight.entries
    if own is not None:
        return Entrance(entered(network, sight.forwards), own)
    read = partial(_read, network, sight.forwards)
    if entries:
        first = entries[0]
        if len(entries) > 1 or not first.is_whole:
            step = next((call for call in sight.calls if isinstance(call, StepCall) and call.is_of_training), None)
            if step is not None:
                replay = Replay(network, step)
                return Entrance(replay.make, replay.read, replays=True)
        if first.is_whole and all(entry.module == first.module for entry in entries):
            return Entrance(network.get_submodule(first.module), partial(_placed, first, read))
    return Entrance(entered(network, sight.forwards), read)


def entrance_with_objects(network: nn.Module, sight: Sight) -> Entrance:
    """How batches enter where the objects in them count: likewise; with boxes, by their images.

    Args:
        network: As for :func:`entrance`.
        sight: As for :func:`entrance`.

    Raises:
        CalibrationError: As for :func:`entrance`.
    """
    enters = entrance(network, sight)
    if own_reader(network) is not None:
        return enters

    def read(batch: Any) -> CalibrationBatch:
        objects = read_batch(batch)
        # Boxes may be matched with what the network detects on the images.
        return objects if objects.boxes is not None else replace(objects, inputs=(enters.read(batch),))

    def forward(*inputs: Any) -> Any:
        first = inputs[0]
        if isinstance(first, CalibrationBatch):
            return enters.forward(*first.inputs, **first.keywords)
        return entered(network, sight.forwards)(*inputs)

    return Entrance(forward, read)


def entered(network: nn.Module, calls: Sequence[Call]) -> nn.Module:
    """What takes the inputs of a batch: the network, or the one network that its steps call.

    Raises:
        CalibrationError: If there is no single one.
    """
    # By name: two packages have a LightningModule, and neither is a class of the other.
    bases = [base for base in type(network).__mro__ if base.__name__ in ("LightningModule", "Module")]
    if all(type(network).forward is not vars(base).get("forward") for base in bases):
        return network
    names = list(dict.fromkeys(call.module for call in calls))
    if len(names) != 1:
        raise CalibrationError(
            f"{type(network).__name__} has no `forward`, and its training step calls "
            f"{', '.join(names) or 'no network'}: it is not known how a calibration batch runs through that. Write a "
            "`forward` that takes the inputs of a batch and runs the network."
        )
    return network.get_submodule(names[0])


def own_reader(network: nn.Module) -> Reader | None:
    """What the network itself says of batches."""
    own = getattr(network, "calibration_batch", None)
    if own is None:
        return None

    def read(batch: Any) -> CalibrationBatch:
        found = own(batch)
        if not isinstance(found, CalibrationBatch):
            raise ArgumentTypeError(
                f"{type(network).__name__}.calibration_batch must return a lit_prune.activations.CalibrationBatch, but "
                f"returned a {type(found).__name__}."
            )
        return found

    return read


def _placed(entry: Entry, other: Reader, batch: Any) -> CalibrationBatch:
    try:
        return entry.inputs(batch)
    except LookupError:
        # Calibration data of their own may come in batches of another form.
        return other(batch)


def _read(network: nn.Module, calls: Sequence[Call], batch: Any) -> CalibrationBatch:
    try:
        return read_batch(batch)
    except ArgumentTypeError:
        inputs = inputs_like(network, calls, batch)
        if inputs is None:
            raise
        return CalibrationBatch(inputs)
