"""DigitScenes: real handwritten digits on photographs, a detection data set that needs no download."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_prune.common.arguments import check_choice
from lit_prune.common.packages import require
from lit_prune.data.scenes import draw_scenes, load_digit_images
from lit_prune.errors import ArgumentError

Split = Literal["train", "val"]


class DigitScenes(Dataset[dict[str, Tensor]]):
    """Scenes of 1 to 4 handwritten digits on photographs, with a box around each digit.

    The digits are the 1,797 images of `sklearn.datasets.load_digits`. Every fifth of them appears in validation
    scenes only, whatever the seed. The backgrounds are crops of scikit-learn's two photographs, in both splits.
    Scenes are drawn once, in the constructor (2,000 scenes of 96×96 in less than a second), and depend on the
    arguments alone: every process gets the same bits, the global random states are neither read nor changed, and the
    first scenes of a longer set are those of a shorter one.

    An item is a dict in the vocabulary of Ultralytics' batches: `img` (3, H, W) float32 in 0..1; `cls` (n, 1) float32,
    the digit; `bboxes` (n, 4) float32, centre x, centre y, width, height, normalised. A box is tight around
    the pixels of its digit that can be seen.

    Args:
        split: `"train"` or `"val"`.
        scenes: Number of scenes.
        image_size: Height and width in pixels; a multiple of 32, at least 64.
        seed: Which scenes; a non-negative integer.

    Raises:
        MissingPackageError: If scikit-learn or Pillow is missing.
        ArgumentError: If an argument is outside the range given above.

    Example:
        >>> scenes = DigitScenes("val", scenes=8, image_size=64)
        >>> item = scenes[0]
        >>> item["img"].shape, item["bboxes"].shape[1]
        (torch.Size([3, 64, 64]), 4)
    """

    num_classes = 10

    images: Tensor
    """uint8 (scenes, 3, H, W): every scene."""
    masks: Tensor
    """uint8 (scenes, H, W): 0 where the background is seen, k + 1 where the ink of a scene's object k is."""
    digit_ids: list[Tensor]
    """For each scene the indices (n,) of its digits within `sklearn.datasets.load_digits().images`."""

    def __init__(self, split: Split = "train", scenes: int = 2000, image_size: int = 96, seed: int = 0) -> None:
        check_choice("split", split, get_args(Split))
        check_scene_arguments(scenes=scenes, image_size=image_size, seed=seed)
        require_digits()
        self.split = split
        self.image_size = image_size
        self.seed = seed
        pixels, labels = load_digit_images()
        held_out = np.arange(len(labels)) % 5 == 4
        pool = np.flatnonzero(held_out if split == "val" else ~held_out)
        images, masks, boxes, sources = draw_scenes(pixels, pool, scenes, image_size, seed=[seed, int(split == "val")])
        self.images = torch.from_numpy(images)
        self.masks = torch.from_numpy(masks)
        self.digit_ids = [torch.from_numpy(ids) for ids in sources]
        counts = [len(ids) for ids in sources]
        self._labels = torch.from_numpy(labels[np.concatenate(sources)]).float()[:, None].split_with_sizes(counts)
        self._boxes = _to_xywh(torch.from_numpy(np.concatenate(boxes)), image_size).split_with_sizes(counts)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "img": self.images[index].float().div_(255),
            "cls": self._labels[index].clone(),
            "bboxes": self._boxes[index].clone(),
        }


def collate_detection(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join items into one batch, as Ultralytics' losses expect it.

    Args:
        items: At least one dict with `img` (3, H, W), `cls` (n, 1) and `bboxes` (n, 4); all images of one size.

    Returns:
        `img` (B, 3, H, W), `batch_idx` (M,) float32 (which image an object belongs to), `cls` (M, 1) and
        `bboxes` (M, 4), where M is the number of objects of all images.

    Raises:
        ArgumentError: If there are no items.

    Example:
        >>> scenes = DigitScenes(scenes=3, image_size=64)
        >>> batch = collate_detection([scenes[0], scenes[1], scenes[2]])
        >>> batch["img"].shape, len(batch["batch_idx"]) == len(batch["cls"])
        (torch.Size([3, 3, 64, 64]), True)
    """
    if not items:
        raise ArgumentError("collate_detection needs at least one item, but got none.")
    counts = torch.tensor([len(item["cls"]) for item in items])
    return {
        "img": torch.stack([item["img"] for item in items]),
        "batch_idx": torch.arange(len(items), dtype=torch.float32).repeat_interleave(counts),
        "cls": torch.cat([item["cls"] for item in items]),
        "bboxes": torch.cat([item["bboxes"] for item in items]),
    }


def check_scene_arguments(*, scenes: int, image_size: int, seed: int) -> None:
    """Raise an ArgumentError if `DigitScenes` cannot be drawn with these arguments."""
    if scenes < 1:
        raise ArgumentError(f"scenes must be at least 1, but got {scenes}.")
    if image_size < 64 or image_size % 32:
        raise ArgumentError(
            f"image_size must be a multiple of 32 (the coarsest stride of a YOLO network) and at least 64, "
            f"but got {image_size}; the nearest is {max(64, round(image_size / 32) * 32)}."
        )
    if seed < 0:
        raise ArgumentError(f"seed must not be negative, but got {seed}.")


def require_digits() -> None:
    """Raise a MissingPackageError unless there is what digits and photographs are taken from, and read by."""
    require("DigitScenes", "scikit-learn", "pillow", extra="digits")


def _to_xywh(boxes: Tensor, image_size: int) -> Tensor:
    """Corner boxes in pixels (n, 4) as centre, width and height, normalised."""
    low, high = boxes.float().div(image_size).chunk(2, dim=1)
    return torch.cat([(low + high) / 2, high - low], dim=1)
