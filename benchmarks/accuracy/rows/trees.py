"""A YOLO of Ultralytics on crowns of trees, seen from the air."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image

from benchmarks.accuracy.rows.base import QUIET
from benchmarks.accuracy.rows.detecting import Detecting
from benchmarks.accuracy.rows.packages import folder_of
from lit_prune.yolo import LitYOLO, YOLODataModule

# Of three sites the images with all their crowns marked.
_PLACES = (
    "2019_YELL_2_528000_4978000_image_crop2",
    "2019_YELL_2_541000_4977000_image_crop",
    "OSBS_029",
    "SOAP_061",
)
_SEEN = 0.5  # of a crown, at least, to be marked in a crop
_BATCH = 16


class Trees(Detecting):
    """The measure is mAP50 on the right third of each image; training sees the rest. The data are deepforest's.

    Args:
        network: A configuration of Ultralytics; it is trained from random weights.
        weights: Where they are kept.
        data: Not used.
    """

    measure = "mAP50"
    size, lr = 160, 2e-3

    def __init__(self, network: str = "yolo11n.yaml", weights: Path | None = None, data: Path | None = None) -> None:
        self.name, epochs, warmup = network, 24, 0.1
        # It goes with the row.
        self.folder = TemporaryDirectory()
        images = YOLODataModule(
            str(self._written(folder_of("deepforest") / "data")),
            image_size=self.size,
            batch_size=_BATCH,
            num_workers=0,
            # What is seen from above has no upper side; batches are to look as what is judged does.
            hyperparameters={"flipud": 0.5, "mosaic": 0.0, "scale": 0.25},
            rectangular=False,
        )
        seed_everything(0, verbose=False)
        module = LitYOLO(network, num_classes=1, lr=self.lr, warmup_epochs=warmup * epochs)
        if weights is not None and weights.exists():
            module.model.load_state_dict(torch.load(weights))
        else:
            Trainer(max_epochs=epochs, limit_val_batches=0, **QUIET).fit(module, images)
            if weights is not None:
                torch.save(module.model.state_dict(), weights)
        images.setup("fit")
        super().__init__(module, images, self.size, _BATCH, "val/map_50", epochs, warmup)

    def _written(self, source: Path) -> Path:
        """Crops as a data set of Ultralytics: beside each other, those for training half over each other."""
        folder = Path(self.folder.name)
        for split in ("train", "val"):
            step = self.size // 2 if split == "train" else self.size
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True)
            for place in _PLACES:
                image = Image.open(source / f"{place}.png").convert("RGB")
                boxes = list(_boxes(source / f"{place}.xml"))
                edge = image.width * 2 // 3
                start, end = (0, edge) if split == "train" else (edge, image.width)
                for left in range(start, end - self.size + 1, step):
                    for top in range(0, image.height - self.size + 1, step):
                        name = f"{split}/{place}_{left}_{top}"
                        image.crop((left, top, left + self.size, top + self.size)).save(folder / f"images/{name}.png")
                        (folder / f"labels/{name}.txt").write_text("".join(self._lines(boxes, left, top)))
        path = folder / "data.yaml"
        path.write_text("train: images/train\nval: images/val\nnames:\n  0: tree\n")
        return path

    def _lines(self, boxes: list[list[float]], left: int, top: int) -> Iterator[str]:
        for x0, y0, x1, y1 in boxes:
            near, above, far, below = (
                min(max(edge, 0), self.size) for edge in (x0 - left, y0 - top, x1 - left, y1 - top)
            )
            if (far - near) * (below - above) >= _SEEN * (x1 - x0) * (y1 - y0):
                numbers = (near + far) / 2, (above + below) / 2, far - near, below - above
                yield f"0 {' '.join(f'{number / self.size:.6f}' for number in numbers)}\n"


def _boxes(path: Path) -> Iterator[list[float]]:
    for box in ElementTree.parse(path).iter("bndbox"):
        yield [float(box.findtext(edge, "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
