"""How the demo trains and prunes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """How the demo trains and prunes; the defaults take minutes on two cores.

    Attributes:
        model: Configuration of an Ultralytics detection network.
        epochs: Length of the run, and of its dense twin.
        prune_at: Epochs at whose start channels are removed, counted from 0.
        amount: Share of the dense network's multiply-adds that is gone after the last of them.
        head: Factor on the share of channels that the layers of the detection head lose; 1 treats all alike.
        round_to: Kept widths are multiples of it.
        scenes: Number of training scenes.
        image_size: Height and width of a scene in pixels.
        batch_size: Scenes in a batch.
        lr: The highest learning rate of AdamW.
        warmup: Share of the run in which the learning rate rises; then it falls along a cosine.
        seed: Of weights, order and scenes.
    """

    model: str = "yolov8n.yaml"
    epochs: int = 32
    prune_at: tuple[int, ...] = (8, 11, 14)
    amount: float = 0.455
    head: float = 1.0
    round_to: int = 4
    scenes: int = 2000
    image_size: int = 96
    batch_size: int = 32
    lr: float = 2e-3
    warmup: float = 0.3
    seed: int = 0

    def scaled_to(self, epochs: int) -> Recipe:
        """The same recipe for a run of another length: the events move along.

        Raises:
            ValueError: If the run is too short for all events.
        """
        events: list[int] = []
        for event in self.prune_at:
            events.append(max(events[-1] + 1 if events else 1, round(event * epochs / self.epochs)))
        if events[-1] >= epochs:
            raise ValueError(
                f"The demo prunes {len(events)} times, with an epoch before, between and after, so it needs at least "
                f"{len(events) + 1} epochs, but got {epochs}."
            )
        return replace(self, epochs=epochs, prune_at=tuple(events))
