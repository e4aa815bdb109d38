"""A detector of text, pretrained, on words that are written over photographs."""

from __future__ import annotations

import random
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageStat
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as images_of

from benchmarks.accuracy.rows.base import Row
from benchmarks.accuracy.rows.packages import folder_of, photographs
from lit_prune import Repair

_WORDS = """
    above bridge Coffee danger ENTRANCE flower garden Hotel island JOURNEY kitchen ladder Market NORTH orange Platform
    quiet RIVER station ticket umbrella VALLEY window yellow bakery closed Doctor EXIT fresh ground Harbour museum open
    Parking rental SCHOOL street tunnel uphill Welcome
""".split()
# As easyocr's defaults: of text, of links between letters, and of a word's edge.
_THRESHOLDS = 0.7, 0.4, 0.4


class Words(Row):
    """CRAFT as easyocr has it; the measure is F1 of upright boxes at an IoU of 0.5.

    Its loss is the cross-entropy against where the whole network sees text and links: an error against its own answers
    themselves would have no gradient there.

    Args:
        network: `craft` alone.
        weights: Others than easyocr's.
        data: Not used.
    """

    measure = "F1"
    outputs = ("craft.conv_cls.8",)
    size, held, batch_size = 256, 48, 4

    def __init__(self, network: str = "craft", weights: Path | None = None, data: Path | None = None) -> None:
        self.name = network
        self.network = _Maps(_easyocr("craft").CRAFT())
        weights = weights or folder_of("easyocr_en_models") / "models" / "craft_mlt_25k.pth"
        state = torch.load(weights, map_location="cpu")
        self.network.craft.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        self.network.eval()
        self.boxes_of = _easyocr("craft_utils").getDetBoxes
        photos = photographs()
        self.photos, others = photos[: len(photos) // 2], photos[len(photos) // 2 :]
        self.scenes = self._scenes(others, self.held, 0)
        self.image = self.scenes[0][0][None]

    def batches(self, draw: int, number: int) -> list[Tensor]:
        images = [image for image, _ in self._scenes(self.photos, number * self.batch_size, draw)]
        return [*torch.stack(images).split(self.batch_size)]

    def calibration(self, draw: int, repair: Repair) -> list[tuple[Tensor]]:
        # A quarter of what is asked for: maps have many places, and one thread takes minutes.
        number = repair.batches * repair.batch_size // (4 * self.batch_size)
        return [(batch,) for batch in self.batches(draw, number)]

    def inputs(self, batch: Tensor) -> Tensor:
        return batch

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        maps = network.eval()(batch).clamp(1e-3, 1 - 1e-3)
        with torch.no_grad():
            expected = (self.network(batch) > _THRESHOLDS[1]).float()
        return F.binary_cross_entropy(maps, expected)

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        network.eval()
        right, found, there = 0, 0, 0
        for image, words in self.scenes:
            text, links = network(image[None])[0].permute(2, 0, 1).numpy()
            corners = self.boxes_of(text, links, *_THRESHOLDS)[0]
            # Maps have half the size of the image.
            boxes = [[*corner.min(0) * 2, *corner.max(0) * 2] for corner in corners]
            overlaps = box_iou(torch.tensor(boxes).reshape(-1, 4), words)
            pairs = linear_sum_assignment(overlaps.numpy(), maximize=True)
            right += int((overlaps[pairs] >= 0.5).sum())
            found += len(boxes)
            there += len(words)
        return 2 * right / (found + there)

    def _scenes(self, photos: list[Image.Image], number: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Normalised images, and the boxes of their words."""
        draw = random.Random(seed)
        scenes = []
        for _ in range(number):
            image, boxes = _written(draw.choice(photos), self.size, draw)
            pixels = images_of.to_dtype(images_of.to_image(image), torch.float32, scale=True)
            pixels = images_of.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            scenes.append((pixels, torch.tensor(boxes)))
        return scenes


class _Maps(nn.Module):
    """CRAFT without the features that it gives beside its maps of text and links."""

    def __init__(self, craft: Any) -> None:
        super().__init__()
        self.craft = craft

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.craft(images)[0]
        return maps


def _easyocr(name: str) -> Any:
    """A module of easyocr, past its `__init__`: that asks for packages which the detector does not need."""
    if "easyocr" not in sys.modules:
        package = ModuleType("easyocr")
        package.__path__ = [str(folder_of("easyocr"))]
        sys.modules["easyocr"] = package
    return import_module(f"easyocr.{name}")


def _written(photo: Image.Image, size: int, draw: random.Random) -> tuple[Image.Image, list[tuple[float, ...]]]:
    """A crop of a photograph with some words on it, and their boxes."""
    side = draw.randint(size, min(photo.size))
    left, top = (draw.randint(0, extent - side) for extent in photo.size)
    image = photo.crop((left, top, left + side, top + side)).resize((size, size))
    pen = ImageDraw.Draw(image)
    boxes: list[tuple[float, ...]] = []
    wanted = draw.randint(3, 6)
    for _ in range(40):
        if len(boxes) == wanted:
            break
        height, word = draw.randint(16, 36), draw.choice(_WORDS)
        font = ImageFont.load_default(height)
        _, _, right, bottom = pen.textbbox((0, 0), word, font)
        if right > size - 8:
            continue
        place = draw.uniform(4, size - 4 - right), draw.uniform(4, size - 4 - bottom)
        box = pen.textbbox(place, word, font)
        # With as much room between as a letter is wide: nearer words are read as one.
        room = height / 2
        if any(
            box[0] - room < x1 and x0 < box[2] + room and box[1] - room < y1 and y0 < box[3] + room
            for x0, y0, x1, y1 in boxes
        ):
            continue
        behind = ImageStat.Stat(image.convert("L").crop(tuple(map(round, box)))).mean[0]
        bright = behind < 128
        pen.text(place, word, tuple(draw.randint(170, 255) if bright else draw.randint(0, 85) for _ in range(3)), font)
        boxes.append(box)
    return image, boxes
