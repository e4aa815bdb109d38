"""DrawPredictions: what a network found, drawn on its images by Ultralytics, one file for each image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_prune.errors import ArgumentTypeError
from lit_prune.yolo.package import quiet_ultralytics

_SIDE = 640  # pixels; smaller images are enlarged, or labels would hide them


class DrawPredictions(Callback):
    """Draws every image of `Trainer.predict` with what a `LitYOLO` found in it, as Ultralytics draws its own.

    `lit-prune predict` has it by default. Boxes, masks, keypoints, rotated boxes or classes are drawn, with names and
    scores. Images are drawn as the network saw them, and enlarged to 640 pixels if they are smaller.

    Args:
        folder: Where the files go, each named as its image, or numbered if that has no name; by default
            `predictions` in the folder of the Trainer's logger.

    Example:
        >>> DrawPredictions("drawn").folder.name
        'drawn'
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder.

        Raises:
            ArgumentTypeError: If the module is no `LitYOLO`.
        """
        from lit_prune.yolo.lit_yolo import LitYOLO

        if not isinstance(pl_module, LitYOLO):
            raise ArgumentTypeError(
                f"DrawPredictions draws what a LitYOLO finds, but this is a {type(pl_module).__name__}."
            )
        self.folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "predictions"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._written = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw one batch."""
        images = batch["img"] if isinstance(batch, Mapping) else batch if isinstance(batch, Tensor) else batch[0]
        files = batch.get("im_file") if isinstance(batch, Mapping) else None
        for number, (image, found) in enumerate(zip(images, outputs, strict=True)):
            rank = f"{trainer.global_rank}-" if trainer.world_size > 1 else ""
            name = Path(files[number]).stem if files else f"{rank}{self._written:06d}"
            self._written += 1
            drawn = draw_image(image, found, pl_module.model.names)
            drawn.save((self.folder or Path()) / f"{name}.png")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the files are."""
        from rich.console import Console

        written = torch.tensor(self._written, device=pl_module.device)
        written = trainer.strategy.reduce(written, reduce_op="sum")
        if trainer.is_global_zero:
            Console().print(f"Written: {int(written)} images in {self.folder}", highlight=False, soft_wrap=True)


def draw_image(image: Tensor, found: Mapping[str, Tensor] | Tensor, names: Mapping[int, str]) -> Any:
    """Draw by Ultralytics what was found in one image.

    Args:
        image: (3, H, W) in 0..1.
        found: What `LitYOLO.detect` found in it, or the probabilities (C,) that `LitYOLO.classify` gave.
        names: Class to name.

    Returns:
        A Pillow image, whose longer side is at least 640 pixels.
    """
    from PIL import Image
    from ultralytics.engine.results import Results

    factor = max(1, -(-_SIDE // max(image.shape[1:])))
    pixels = F.interpolate(image[None].float(), scale_factor=float(factor), mode="bicubic" if factor > 1 else "nearest")
    blue_first = pixels[0].clamp(0, 1).mul(255).byte().permute(1, 2, 0).flip(2).contiguous().cpu().numpy()
    parts = {"probs": found} if isinstance(found, Tensor) else _parts(found, factor)
    with quiet_ultralytics():
        drawn = Results(blue_first, path="", names=dict(names), **parts).plot()
    return Image.fromarray(np.ascontiguousarray(drawn[..., ::-1]))


def _parts(found: Mapping[str, Tensor], factor: int) -> dict[str, Tensor]:
    """What was found in Ultralytics' own terms, in an image that was enlarged."""
    ends = [found["scores"][:, None], found["labels"][:, None].float()]
    if "rotated" in found:
        rotated = found["rotated"].clone()
        rotated[:, :4] *= factor
        return {"obb": torch.cat([rotated, *ends], dim=1).cpu()}
    parts = {"boxes": torch.cat([found["boxes"] * factor, *ends], dim=1).cpu()}
    if "masks" in found and len(found["masks"]):
        masks = found["masks"].repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        parts["masks"] = masks.float().cpu()
    if "keypoints" in found:
        keypoints = found["keypoints"].clone()
        keypoints[..., :2] *= factor
        parts["keypoints"] = keypoints.cpu()
    return parts
