"""DigitScenesDataModule: DigitScenes for a Lightning Trainer."""

from collections.abc import Mapping
from types import MappingProxyType

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lit_prune.data.digits import DigitScenes, Split, check_scene_arguments, collate_detection, require_digits
from lit_prune.errors import ArgumentError


class DigitScenesDataModule(LightningDataModule):
    """Loaders of `DigitScenes`: shuffled training scenes, and validation scenes for every other stage.

    Batches are those of `collate_detection`. Testing and prediction run on the validation scenes, whose digits are
    never trained on, in a fixed order.

    Args:
        scenes: Number of training scenes.
        val_scenes: Number of validation scenes.
        image_size: Height and width in pixels; a multiple of 32, at least 64.
        batch_size: Scenes in a batch.
        num_workers: Worker processes of each loader; the scenes are in memory, so 0 is fastest on few cores.
        seed: Which scenes; a non-negative integer.

    Attributes:
        names: Class to name.
        num_classes: Number of classes.

    Raises:
        ArgumentError: If an argument is outside the range given above.
        MissingPackageError: If scikit-learn or Pillow is missing.

    Example:
        >>> data = DigitScenesDataModule(scenes=8, val_scenes=4, image_size=64, batch_size=4)
        >>> data.setup("validate")
        >>> next(iter(data.val_dataloader()))["img"].shape
        torch.Size([4, 3, 64, 64])
    """

    num_classes = DigitScenes.num_classes
    names: Mapping[int, str] = MappingProxyType({digit: str(digit) for digit in range(num_classes)})

    def __init__(
        self,
        scenes: int = 2000,
        val_scenes: int = 400,
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_scene_arguments(scenes=scenes, image_size=image_size, seed=seed)
        if val_scenes < 1:
            raise ArgumentError(f"val_scenes must be at least 1, but got {val_scenes}.")
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, but got {batch_size}.")
        if num_workers < 0:
            raise ArgumentError(f"num_workers must not be negative, but got {num_workers}.")
        require_digits()
        self.save_hyperparameters()
        self.scenes = scenes
        self.val_scenes = val_scenes
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._drawn: dict[Split, DigitScenes] = {}

    def setup(self, stage: str) -> None:
        """Draw the scenes that a stage needs, once, and tell a network that compares classes which there are."""
        match_classes = getattr(getattr(self.trainer, "lightning_module", None), "match_classes", None)
        if callable(match_classes):
            match_classes(self.names, "DigitScenes")
        if stage == "fit":
            self._scenes("train")
        self._scenes("val")

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Load the training scenes in random order."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Load the validation scenes in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Load the validation scenes in order."""
        return self._loader("val")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Load the validation scenes in order."""
        return self._loader("val")

    def _scenes(self, split: Split) -> DigitScenes:
        if split not in self._drawn:
            count = self.scenes if split == "train" else self.val_scenes
            self._drawn[split] = DigitScenes(split, count, self.image_size, self.seed)
        return self._drawn[split]

    def _loader(self, split: Split) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            self._scenes(split),
            batch_size=self.batch_size,
            shuffle=split == "train",
            num_workers=self.num_workers,
            collate_fn=collate_detection,
            persistent_workers=self.num_workers > 0,
        )
