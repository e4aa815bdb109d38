"""How the demo trains and prunes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lit_prune.errors import ArgumentError

# Of YOLOv8n. Exact boxes need what the early layers and the box branch know, and coarse maps hold few of these small
# objects: at the same MACs this costs less accuracy than the same ratio of every layer.
_FACTORS = {
    "model.model.22.cv2.*": 0.4,
    "model.model.22.cv3.*": 0.8,
    "model.model.[0-4].*": 0.7,
    "model.model.15.*": 0.7,
    "model.model.[89].*": 1.5,
    "model.model.21.*": 1.5,
    "model.model.*": 1.2,
}


@dataclass(frozen=True)
class Recipe:
    """How the demo trains and prunes.

    Attributes:
        model: Configuration of an Ultralytics detection network.
        epochs: Length of both runs, the pruned and the dense one.
        prune_at: Epochs at whose start channels are removed, counted from 0.
        amount: Ratio of the dense network's multiply-adds that is gone after the last of them.
        factors: Pattern of layers to a factor on the ratio of channels that they lose; 1 where none fits.
        round_to: Kept widths are multiples of it; ``None`` as for `ChannelPruning`.
        scenes: Number of training scenes.
        image_size: Height and width of a scene in pixels.
        batch_size: Scenes in a batch.
        lr: The highest learning rate of AdamW.
        warmup: Ratio of the run in which the learning rate rises; then it falls along a cosine.
        seed: Of weights, order and scenes.
    """

    model: str = "yolov8n.yaml"
    epochs: int = 24
    prune_at: tuple[int, ...] = (6, 8, 10)
    amount: float = 0.455
    factors: dict[str, float] = field(default_factory=_FACTORS.copy)
    round_to: int | None = 4
    scenes: int = 2000
    image_size: int = 96
    batch_size: int = 32
    lr: float = 2e-3
    warmup: float = 0.3
    seed: int = 0

    def scaled_to(self, epochs: int) -> Recipe:
        """The same recipe for a run of another length: the events move along.

        Raises:
            ArgumentError: If the run is too short for all events.
        """
        events: list[int] = []
        for event in self.prune_at:
            events.append(max(events[-1] + 1 if events else 1, round(event * epochs / self.epochs)))
        if events[-1] >= epochs:
            raise ArgumentError(
                f"The demo prunes {len(events)} times, with an epoch before, between and after, so it needs at least "
                f"{len(events) + 1} epochs, but got {epochs}."
            )
        return replace(self, epochs=epochs, prune_at=tuple(events))


PLAIN = Recipe(prune_at=(8, 11, 14), amount=0.5, factors={}, round_to=None)
"""The demo's training with the pruning of README's ten lines: every layer loses the same part, by the defaults."""
