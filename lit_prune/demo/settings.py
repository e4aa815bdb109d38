"""How the demo trains and prunes."""

from __future__ import annotations

from dataclasses import dataclass

from lit_prune.common.arguments import check_ratio, check_whole


@dataclass(frozen=True)
class Recipe:
    """How the demo trains and prunes.

    Attributes:
        model: Configuration of an Ultralytics detection network.
        epochs: How long the dense network is trained, to the end of its schedule.
        cut: Ratio of its multiply-adds that one cut removes, to see what is left at once.
        amount: Ratio that is gone after fine-tuning.
        fine_tuning: Epochs of it.
        round_to: Kept widths are multiples of it.
        scenes: Number of training scenes.
        image_size: Height and width of a scene in pixels.
        batch_size: Scenes in a batch.
        lr: The highest learning rate of AdamW; in fine-tuning half of it.
        warmup: Ratio of the training in which the learning rate rises; then it falls along a cosine.
        seed: Of weights, order and scenes.

    Raises:
        ArgumentError: If a length or a ratio is out of range.
    """

    model: str = "yolov8n.yaml"
    epochs: int = 24
    cut: float = 0.3
    amount: float = 0.5
    fine_tuning: int = 3
    round_to: int = 4
    scenes: int = 2000
    image_size: int = 96
    batch_size: int = 32
    lr: float = 2e-3
    warmup: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("epochs", self.epochs, least=1)
        check_whole("fine_tuning", self.fine_tuning, least=1)
        check_ratio("cut", self.cut)
        check_ratio("amount", self.amount)

    @property
    def events(self) -> list[int]:
        """Steps of fine-tuning before which channels go: the gradients of those before tell which."""
        steps = self.fine_tuning * -(-self.scenes // self.batch_size)
        return sorted({max(1, min(16 * event, event * steps // 6)) for event in (1, 2)})
