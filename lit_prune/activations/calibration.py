"""One pass over some batches, and the class-wise statistics of all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.activations.extractor import ActivationExtractor, find_layers
from lit_prune.activations.moments import ClassMoments, Moments
from lit_prune.activations.objects import CalibrationBatch, Detections, matched, observe
from lit_prune.common._compat import tree_flatten
from lit_prune.common.arguments import check_number, check_whole
from lit_prune.common.ranks import gather
from lit_prune.errors import ArgumentError, ArgumentTypeError, CalibrationError, LitPruneError, NoObjectsError


@dataclass
class Calibration:
    """How much data a calibration pass sees, and which objects count.

    Args:
        batches: Number of batches, over all ranks; evenly spread over the data set.
        batch_size: Examples in each, whatever the batch size of training is.
        match_iou: An object with a box counts only if a prediction of its class overlaps it more than this, in
            [0, 1); ``None`` takes every object. Ignored for objects without boxes.
        num_classes: Number of classes; by default the ``num_classes`` of the LightningModule, or as many as are seen.

    Raises:
        ArgumentError: If an argument is out of range.
    """

    batches: int = 8
    batch_size: int = 32
    match_iou: float | None = 0.5
    num_classes: int | None = None

    def __post_init__(self) -> None:
        for name in ("batches", "batch_size", "num_classes"):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value)
        _check_iou(self.match_iou)


def collect_moments(
    network: nn.Module,
    layers: Sequence[str],
    batches: Iterable[CalibrationBatch],
    num_classes: int | None = None,
    match_iou: float | None = 0.5,
    forward: Callable[..., Any] | None = None,
) -> dict[str, Moments]:
    """Run the live network once over ``batches`` and return the class-wise moments of each layer's activations.

    The network and all random states stay as they are. Each batch takes one forward, which catches all layers; maps
    are reduced to the objects' activations as soon as a layer has run, and these to moments after the batch, so the
    memory that is needed does not grow with the number of batches. Where ranks of ``torch.distributed`` each bring
    their own batches, all receive the moments of all.

    Args:
        network: The network, pruned or not. For ``match_iou`` it has a method ``detect(images)``, which runs it once
            and returns for each image a dict of ``boxes`` (pixels) and ``labels``, as
            :meth:`lit_prune.yolo.LitYOLO.detect` does.
        layers: Qualified names of layers.
        batches: On the device of the network.
        num_classes: Number of classes; by default ``network.num_classes``, or one more than the highest label.
        match_iou: An object with a box counts only if a prediction of its class overlaps it more than this, in
            [0, 1). ``None`` takes every object, and the forward may stop after the last layer.
        forward: Runs the network once on the inputs of a batch; by default it is called.

    Returns:
        Layer name to moments, on the CPU; without layers that do not run in eval mode.

    Raises:
        ArgumentError: If there is no such layer, ``match_iou`` is out of range or needs a missing ``detect``, or
            activations are NaN or infinite (naming the layer).
        CalibrationError: If there is no object to learn from, or another rank failed.

    Example:
        >>> from lit_prune.activations import read_batch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
        >>> batches = [(torch.rand(4, 3, 9, 9), torch.tensor([0, 1, 1, 0])) for _ in range(5)]
        >>> moments = collect_moments(net, ["0", "2"], map(read_batch, batches))
        >>> moments["0"].count.tolist(), moments["2"].mean.shape
        ([10, 10], torch.Size([2, 2]))
    """
    _check_iou(match_iou)
    if num_classes is None and isinstance(getattr(network, "num_classes", None), int):
        num_classes = int(network.num_classes)  # type: ignore[arg-type]
    tally = _Tally(network, list(dict.fromkeys(layers)), num_classes, match_iou, forward or network)
    failure: Exception | None = None
    try:
        for batch in batches:
            tally.take(batch)
    except Exception as error:
        # Kept until all ranks know: the others would wait for this one's part forever.
        failure = error
    return tally.result(failure)


class _Tally:
    """Moments of all layers side by side: one metric, merged once."""

    def __init__(
        self,
        network: nn.Module,
        layers: list[str],
        num_classes: int | None,
        match_iou: float | None,
        forward: Callable[..., Any],
    ) -> None:
        self.network = network
        self.modules = find_layers(network, layers)
        self.num_classes = num_classes
        self.match_iou = match_iou
        self.forward = forward
        self.metric: ClassMoments | None = None
        self.widths: list[int] = []
        self.seen = 0

    def take(self, batch: CalibrationBatch) -> None:
        """Run one batch and take in its objects."""
        if not len(batch):
            return
        self.seen += len(batch)
        iou = None if batch.boxes is None else self.match_iou

        def reduce(layer: str, output: Tensor) -> Tensor:
            return observe(self.modules[layer], output, batch)

        # The first batch shows which layers run outside of training.
        strict = self.metric is not None
        with ActivationExtractor(self.network, self.modules, iou is None, reduce, strict) as extract:
            if iou is None:
                (values, _), labels = extract.run(self.forward, *batch.inputs, **batch.keywords), batch.labels
            else:
                values, found = extract.run(self._detect, batch.inputs[0])
                counted = matched(batch, found, iou)
                values = {layer: part[counted] for layer, part in values.items()}
                labels = batch.labels[counted]
        if not values:
            raise CalibrationError(f"The network runs none of {', '.join(self.modules)} in eval mode.")
        self.modules = {layer: self.modules[layer] for layer in values}
        self._update(values, labels)

    def result(self, failure: Exception | None) -> dict[str, Moments]:
        """Merge with the other ranks; all of them raise where one has failed."""
        classes = self.metric.num_classes if self.metric is not None else 1
        layers = dict(zip(self.modules, self.widths, strict=False))
        parts = gather((None if failure is None else str(failure), layers, classes, self.seen))
        if failure is not None:
            raise failure
        for rank, (message, *_) in enumerate(parts):
            if message is not None:
                raise CalibrationError(f"Rank {rank} could not calibrate: {message}")
        # A rank without data has not seen which layers run.
        layers = next((layers for _, layers, _, _ in parts if layers), {})
        self.modules, self.widths = {layer: self.modules[layer] for layer in layers}, list(layers.values())
        seen = sum(part[3] for part in parts)
        if not seen:
            raise NoObjectsError("The calibration batches hold no labelled object, so there are no statistics.")
        moments = self._widened(max(part[2] for part in parts)).compute()
        if not bool(moments.count.any()):
            raise NoObjectsError(
                f"None of {seen} objects is overlapped by a prediction of its class by more than "
                f"match_iou={self.match_iou}. Prune later in the run, when the network detects, or take every object "
                "with match_iou=None."
            )
        count, mean, var = moments.count.cpu(), self._by_layer(moments.mean.cpu()), self._by_layer(moments.var.cpu())
        return {layer: Moments(count, mean[layer], var[layer]) for layer in self.modules}

    def _detect(self, images: Any) -> Detections:
        detect = getattr(self.network, "detect", None)
        if not callable(detect):
            raise ArgumentError(
                f"match_iou={self.match_iou} takes predictions, but {type(self.network).__name__} has no method "
                "`detect(images)` that returns for each image a dict of `boxes` and `labels`. Write one, or take every "
                "object with match_iou=None."
            )
        found: Detections = detect(images)
        return found

    def _update(self, values: dict[str, Tensor], labels: Tensor) -> None:
        self.widths = [part.shape[1] for part in values.values()]
        # Moments are in double precision, which Apple's GPUs do not have.
        device = torch.device("cpu") if labels.device.type == "mps" else labels.device
        columns = torch.cat([part.to(device).double() for part in values.values()], dim=1)
        labels = labels.to(device)
        highest = int(labels.max()) + 1 if len(labels) else 1
        if self.metric is None or (self.num_classes is None and highest > self.metric.num_classes):
            self.metric = self._widened(self.num_classes or highest).to(device)
        try:
            self.metric.update(columns, labels)
        except ValueError:
            # Which layer it is, is asked only once something is wrong.
            for layer, part in self._by_layer(columns).items():
                ClassMoments(part.shape[1], self.metric.num_classes, name=layer).to(device).update(part, labels)
            raise

    def _by_layer(self, columns: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.modules, torch.split(columns, self.widths, dim=1), strict=True))

    def _widened(self, num_classes: int) -> ClassMoments:
        """A metric with what the present one has seen, and room for more classes."""
        wider = ClassMoments(sum(self.widths), num_classes)
        if self.metric is not None:
            wider.to(self.metric.device).resume(self.metric)
        else:
            wider.to(next((parameter.device for parameter in self.network.parameters()), torch.device("cpu")))
        return wider


def run_batches(
    forward: Callable[..., Any],
    batches: Iterable[CalibrationBatch | Sequence[Any]],
    *within: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Run calibration batches; what goes wrong is told with the number of the batch.

    Args:
        forward: Takes the inputs of a batch.
        batches: The inputs, or positional ones alone.
        *within: What makes the contexts in which each is run.

    Raises:
        CalibrationError: If there is none, one is empty, or the network can't be run on it.
    """
    number = 0
    for number, batch in enumerate(batches, 1):
        by_place, by_name = (batch.inputs, batch.keywords) if isinstance(batch, CalibrationBatch) else (batch, {})
        tensors = [leaf for leaf in tree_flatten((list(by_place), dict(by_name)))[0] if isinstance(leaf, Tensor)]
        if any(tensor.dim() and not len(tensor) for tensor in tensors):
            raise CalibrationError("A calibration batch has no examples: leave empty batches out.")
        try:
            with ExitStack() as stack:
                for make in within:
                    stack.enter_context(make())
                forward(*by_place, **by_name)
        except LitPruneError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"The network can't be run on calibration batch {number}: {type(error).__name__}: "
                f"{str(error).rstrip('. ')}. Each batch is what its forward takes, a tensor, or a tuple or dict of "
                "arguments, without labels; under a Trainer a method `calibration_batch(batch)` of the LightningModule "
                "says so."
            ) from error
    if not number:
        raise CalibrationError("There is no calibration batch to go by: is the data set empty?")


def batches_of(data: Any, most: int | None = None) -> list[CalibrationBatch]:
    """Batches that a user gives, each as the arguments of a forward.

    Args:
        data: A list of batches, or what makes them one by one: a tensor, a tuple of arguments, or a dict of arguments
            by keyword, each.
        most: How many are taken; by default all.

    Raises:
        ArgumentTypeError: If it is no list, empty, or holds something else.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> [(len(batch.inputs), [*batch.keywords]) for batch in batches_of([x, (x, 2.0), {"x": x}])]
        [(1, []), (2, []), (0, ['x'])]
    """
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise ArgumentTypeError(
            f"data is a list of batches, but got a {type(data).__name__}: write data=[images], with a tensor for each."
        )
    batches = list(islice(data, most))
    if not batches:
        raise ArgumentTypeError("data has no batch: give some, or leave it out.")
    return [_given(batch) for batch in batches]


def _given(batch: Any) -> CalibrationBatch:
    if isinstance(batch, Mapping):
        return CalibrationBatch((), keywords=batch)
    if not isinstance(batch, (Tensor, tuple)):
        raise ArgumentTypeError(
            "A batch of data is a tensor, or a tuple or dict of the network's arguments, but got a "
            f"{type(batch).__name__}."
        )
    return CalibrationBatch((batch,) if isinstance(batch, Tensor) else batch)


def _check_iou(match_iou: float | None) -> None:
    if match_iou is not None:
        check_number("match_iou", match_iou)
    if match_iou is not None and not 0 <= match_iou < 1:
        raise ArgumentError(f"match_iou must be in [0, 1), or None to take every object, but got {match_iou}.")
