"""DigitScenes: real handwritten digits on photographs, a detection data set that needs no download."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lit_prune.common.packages import require
from lit_prune.errors import ArgumentError

Split = Literal["train", "val"]

_MAX_OBJECTS = 4
_TRIES = 16  # places tried for an object before it is left out
_SCENE_DRAWS = 6
_OBJECT_DRAWS = 5 + 2 * _TRIES
_SMALLEST, _LARGEST = 0.2, 0.45  # side of a digit, relative to the image
_CROPS = (0.25, 0.35, 0.5)  # height of a background crop, relative to the photograph
_OVERLAP = 0.1  # the ratio of the smaller box that another box may cover
_CONTRAST = 0.35  # least difference of brightness between a digit and what is behind it
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


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
        if split not in get_args(Split):
            raise ArgumentError(f"split must be 'train' or 'val', but got {split!r}.")
        check_scene_arguments(scenes=scenes, image_size=image_size, seed=seed)
        require_digits()
        self.split = split
        self.image_size = image_size
        self.seed = seed
        pixels, labels = _digits()
        held_out = np.arange(len(labels)) % 5 == 4
        pool = np.flatnonzero(held_out if split == "val" else ~held_out)
        images, masks, boxes, sources = _draw(pixels, pool, scenes, image_size, seed=[seed, int(split == "val")])
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


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, NDArray[np.int64]]:
    """All digits: ink (1797, 1, 8, 8) in 0..1, and the digit that each shows (1797,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images / 16.0).float()[:, None], data.target.astype(np.int64)


@lru_cache(maxsize=2)
def _photographs(image_size: int) -> list[NDArray[np.uint8]]:
    """Both photographs (3, h, w) at every zoom from which crops are taken."""
    from sklearn.datasets import load_sample_images

    resized = []
    for photograph in load_sample_images().images:
        pixels = torch.tensor(photograph).permute(2, 0, 1)[None].float()
        height, width = pixels.shape[2:]
        for crop in _CROPS:
            size = (round(image_size / crop), round(image_size / crop * width / height))
            zoomed = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
            resized.append(zoomed[0].round().clamp(0, 255).byte().numpy())
    return resized


def _draw(
    pixels: Tensor, pool: NDArray[np.int64], scenes: int, image_size: int, seed: list[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Draw scenes: images (scenes, 3, H, W), masks (scenes, H, W), for each its boxes (n, 4) and digit indices (n,)."""
    # One row of random numbers a scene: this is why a shorter set is the beginning of a longer one.
    draws = np.random.default_rng(seed).random((scenes, _SCENE_DRAWS + _MAX_OBJECTS * _OBJECT_DRAWS))
    of_scene, of_object = np.split(draws, [_SCENE_DRAWS], axis=1)
    of_object = of_object.reshape(scenes, _MAX_OBJECTS, _OBJECT_DRAWS)
    wanted = np.arange(_MAX_OBJECTS) < 1 + _below(of_scene[:, 0], _MAX_OBJECTS)[:, None]
    sources = pool[_below(of_object[..., 0], len(pool))]
    smallest, largest = round(_SMALLEST * image_size), round(_LARGEST * image_size)
    sizes = smallest + _below(of_object[..., 1], largest - smallest + 1)

    glyphs, shapes = _glyphs(pixels, sources, sizes, wanted)
    boxes, placed = _place(of_object[..., 5:], shapes, wanted, image_size)
    images = _backgrounds(of_scene[:, 1:], image_size)
    masks = np.zeros((scenes, image_size, image_size), dtype=np.uint8)
    number = placed.cumsum(1)  # of an object among those of its scene, from 1 on
    for scene, k in np.argwhere(placed).tolist():
        x0, y0, x1, y1 = boxes[scene, k].tolist()
        _paint(images[scene, :, y0:y1, x0:x1], glyphs[scene, k], of_object[scene, k, 2:5])
        masks[scene, y0:y1, x0:x1][glyphs[scene, k] > 0] = number[scene, k]
    _uncover(boxes, placed, number, masks)
    return (
        images,
        masks,
        [box[keep] for box, keep in zip(boxes, placed, strict=True)],
        [ids[keep] for ids, keep in zip(sources, placed, strict=True)],
    )


def _below(uniform: NDArray[np.float64], bound: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn uniform numbers in [0, 1) into integers in 0..bound-1."""
    return (uniform * bound).astype(np.int64)


def _glyphs(
    pixels: Tensor, sources: NDArray[np.int64], sizes: NDArray[np.int64], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Opacity of every wanted digit at its size, cut to its ink, and the cut's height and width (scenes, K, 2)."""
    glyphs = np.empty(sources.shape, dtype=object)
    shapes = np.zeros((*sources.shape, 2), dtype=np.int64)
    for size in np.unique(sizes[wanted]):
        rows, columns = np.nonzero(wanted & (sizes == size))
        ink = F.interpolate(pixels[sources[rows, columns]], size=(int(size), int(size)), mode="bicubic")
        alpha = ((ink[:, 0] - 0.15) / 0.45).clamp(0, 1)
        # A veil that nobody sees would widen the boxes.
        visible: NDArray[np.float32] = torch.where(alpha < 0.15, 0, alpha).numpy()
        for row, column, one in zip(rows, columns, visible, strict=True):
            x0, y0, x1, y1 = _tight(one > 0)
            glyphs[row, column] = one[y0:y1, x0:x1]
            shapes[row, column] = y1 - y0, x1 - x0
    return glyphs, shapes


def _tight(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the box (x0, y0, x1, y1) around the true cells of a mask (h, w) that has some."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])


def _place(
    uniform: NDArray[np.float64], shapes: NDArray[np.int64], wanted: NDArray[np.bool_], image_size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find boxes (scenes, K, 4) that hardly overlap; an object without a place in any of its tries is left out."""
    scenes, objects = wanted.shape
    places = uniform.reshape(scenes, objects, _TRIES, 2)
    boxes = np.zeros((scenes, objects, 4), dtype=np.int64)
    placed = np.zeros((scenes, objects), dtype=bool)
    for k in range(objects):
        extent = shapes[:, k, None, ::-1]  # width, height
        low = _below(places[:, k], image_size - extent + 1)
        tries = np.concatenate([low, low + extent], axis=-1)[:, :, None]
        others = boxes[:, None, :k]
        sides = np.minimum(tries[..., 2:], others[..., 2:]) - np.maximum(tries[..., :2], others[..., :2])
        covered = sides.clip(0).prod(-1)
        smaller = np.minimum(_area(tries), _area(others))
        free = ((covered <= _OVERLAP * smaller) | ~placed[:, None, :k]).all(-1)
        boxes[:, k] = tries[np.arange(scenes), free.argmax(1), 0]
        placed[:, k] = wanted[:, k] & free.any(1)
    return boxes, placed


def _uncover(
    boxes: NDArray[np.int64], placed: NDArray[np.bool_], number: NDArray[np.int64], masks: NDArray[np.uint8]
) -> None:
    """Tighten, in place, every box of which a later object hides ink."""
    low, high = boxes[..., :2], boxes[..., 2:]
    meet: NDArray[np.bool_] = np.all(low[:, :, None] < high[:, None], axis=-1)
    meet &= meet.transpose(0, 2, 1) & placed[:, :, None] & placed[:, None]
    crowded = meet.sum((1, 2)) > placed.sum(1)  # every object meets itself
    for scene in np.flatnonzero(crowded):
        for k in np.flatnonzero(placed[scene]):
            boxes[scene, k] = _tight(masks[scene] == number[scene, k])


def _area(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    areas: NDArray[np.int64] = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return areas


def _backgrounds(uniform: NDArray[np.float64], image_size: int) -> NDArray[np.uint8]:
    """Crops (scenes, 3, H, W) of the photographs: any photograph, zoom, place, mirrored or not, any brightness."""
    photographs = _photographs(image_size)
    light = (0.5 + 0.5 * uniform[:, 4]).astype(np.float32)
    images = np.empty((len(uniform), 3, image_size, image_size), dtype=np.uint8)
    for image, (which, y, x, mirror, _), brightness in zip(images, uniform.tolist(), light, strict=True):
        photograph = photographs[int(which * len(photographs))]
        top = int(y * (photograph.shape[1] - image_size + 1))
        left = int(x * (photograph.shape[2] - image_size + 1))
        crop = photograph[:, top : top + image_size, left : left + image_size]
        image[...] = crop[..., :: -1 if mirror < 0.5 else 1] * brightness
    return images


def _paint(region: NDArray[np.uint8], alpha: NDArray[np.float32], uniform: NDArray[np.float64]) -> None:
    """Lay one digit (h, w) in a random colour that stands out over a region (3, h, w), in place."""
    behind = region.astype(np.float32)
    brightness = float(_LUMA @ behind.sum((1, 2))) / (255 * alpha.size)
    colour = uniform.astype(np.float32)
    own = float(_LUMA @ colour)
    if abs(own - brightness) < _CONTRAST:
        if brightness < 0.5:
            colour = 1 - (1 - colour) * np.float32((1 - brightness - _CONTRAST) / (1 - own))
        else:
            colour = colour * np.float32((brightness - _CONTRAST) / own)
    behind += alpha * (255 * colour[:, None, None] - behind)
    region[...] = behind + 0.5  # both terms are in 0..255, and the cast truncates


def _to_xywh(boxes: Tensor, image_size: int) -> Tensor:
    """Corner boxes in pixels (n, 4) as centre, width and height, normalised."""
    low, high = boxes.float().div(image_size).chunk(2, dim=1)
    return torch.cat([(low + high) / 2, high - low], dim=1)
