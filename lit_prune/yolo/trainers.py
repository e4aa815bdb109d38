"""Ultralytics' own trainer for networks that are pruned. Importing this module imports Ultralytics."""

from typing import Any

from ultralytics.models.yolo.detect import DetectionTrainer

from lit_prune.yolo.networks import adopt_widths_
from lit_prune.yolo.pruning import STATE


class PrunedDetectionTrainer(DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' `DetectionTrainer` that keeps the widths of a pruned network.

    `YOLO("pruned.pt").train(...)` alone builds the dense network anew from its configuration, and takes only those
    weights that happen to fit. With `trainer=PrunedDetectionTrainer` the network stays as it is. Data with another
    number of classes only replaces the last convolutions of the class branch. Dense weights train as always.

    Example:
        ```
        from ultralytics import YOLO
        from lit_prune.yolo import PrunedDetectionTrainer

        YOLO("pruned.pt").train(trainer=PrunedDetectionTrainer, data="data.yaml", epochs=20)
        ```
    """

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the network as the base class does, give it the widths of the weights, then load them."""
        network = super().get_model(cfg=cfg, weights=None, verbose=verbose)
        if weights is not None:
            adopt_widths_(network, weights)
            network.load(weights)
            if hasattr(weights, STATE):
                setattr(network, STATE, getattr(weights, STATE))
        return network
