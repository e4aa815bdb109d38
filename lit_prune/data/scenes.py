"""Scenes of digits on photographs, drawn from rows of random numbers."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_MAX_OBJECTS = 4
_TRIES = 16  # places tried for an object before it is left out
_SCENE_DRAWS = 6
_OBJECT_DRAWS = 5 + 2 * _TRIES
_SMALLEST, _LARGEST = 0.2, 0.45  # side of a digit, relative to the image
_CROPS = (0.25, 0.35, 0.5)  # height of a background crop, relative to the photograph
_OVERLAP = 0.1  # the ratio of the smaller box that another box may cover
_CONTRAST = 0.35  # least difference of brightness between a digit and what is behind it
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@lru_cache(maxsize=1)
def load_digit_images() -> tuple[Tensor, NDArray[np.int64]]:
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


def draw_scenes(
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
        # Ink too faint to see would widen the boxes.
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
