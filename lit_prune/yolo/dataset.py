"""Ultralytics' data sets, built from a `data.yaml`, with errors and warnings that name the file."""

import logging
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_prune.errors import ArgumentError, MissingFileError
from lit_prune.yolo.package import quiet_ultralytics

Split = Literal["train", "val", "test"]

_SHOWN = 5
# The last thing that Ultralytics tries with what no reader of images knows.
_HEIF = re.compile(r"No module named 'pi_heif'$")
_STRIDE = 32  # of the coarsest level of every YOLO; Ultralytics pads to no less either


def read_hyperparameters(given: Mapping[str, Any] | str | Path | None, **changes: Any) -> Any:
    """Ultralytics' settings (`get_cfg`): their defaults, changed by an `args.yaml` or a dict, and by keywords.

    Args:
        given: A file as Ultralytics' trainer writes it (`args.yaml`), or names and values.
        **changes: Further settings; `None` leaves one as it is.

    Raises:
        MissingFileError: If there is no such file.
        ArgumentError: If a name is not one of Ultralytics', or a value is out of range.

    Example:
        >>> read_hyperparameters({"mosaic": 0.5}, imgsz=320).mosaic
        0.5
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import YAML

    values: dict[str, Any] = {}
    if isinstance(given, (str, Path)):
        if not Path(given).is_file():
            raise MissingFileError(f"There is no file {str(given)!r} with hyperparameters.")
        values = YAML.load(given)
    elif given is not None:
        values = dict(given)
    values |= {name: value for name, value in changes.items() if value is not None}
    # Where a run writes to is a matter of Ultralytics' own trainer.
    values.pop("save_dir", None)
    try:
        with quiet_ultralytics():
            return get_cfg(overrides=values)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ArgumentError(f"hyperparameters={given!r} can't be used: {_plain(error)}") from error


def read_data(data: str | Path, split: str = "", task: str = "detect") -> dict[str, Any]:
    """Read a `data.yaml` by Ultralytics' `check_det_dataset`, which downloads what it offers and is not here.

    Args:
        data: A file, a folder with one, or a name that Ultralytics knows (`"coco8.yaml"`); for `"classify"` a folder
            with a folder per split, each with a folder per class, or a name (`"imagenette"`), by `check_cls_dataset`.
        split: A split that has to be there besides `train` and `val`.
        task: Ultralytics' name of the task.

    Returns:
        `names` (class to name), `nc`, `channels`, `path`, and an absolute path for each split.

    Raises:
        MissingFileError: If the file or its validation images are not there.
        ArgumentError: If a key is missing or wrong.
    """
    from ultralytics.data.utils import check_cls_dataset, check_det_dataset

    try:
        if task == "classify":
            found = check_cls_dataset(str(data), split=split)
            # The rest of Ultralytics calls a split by what it is there for: one will do for both.
            return {**found, "val": found["val"] or found["test"]}
        return dict(check_det_dataset(str(data), split=split))
    except FileNotFoundError as error:
        raise MissingFileError(f"data={str(data)!r} can't be used: {_plain(error)}") from error
    except (AssertionError, OSError, RuntimeError, SyntaxError, TypeError, ValueError) as error:
        raise ArgumentError(f"data={str(data)!r} can't be used: {_plain(error)}") from error


def build_dataset(
    settings: Any,
    data: Mapping[str, Any],
    split: Split,
    batch_size: int,
    *,
    augment: bool,
    rect: bool,
    stretched: bool = False,
) -> Any:
    """Build Ultralytics' `YOLODataset` of a split; its `ClassificationDataset` where the settings' task is that.

    Images that can't be used are left out as Ultralytics leaves them out, and a warning names them.

    Args:
        settings: What :func:`read_hyperparameters` returns; it stays as it is.
        data: What :func:`read_data` returns.
        split: `"train"`, `"val"` or `"test"`.
        batch_size: Images of a rectangular batch.
        augment: Whether images are augmented; else they are letterboxed.
        rect: Whether each batch has the least shape that its images fit into.
        stretched: Whether images are stretched to a square instead, as RT-DETR's are.

    Raises:
        MissingFileError: If there are no images.
        ArgumentError: If no image can be used, or no training image has a label.
    """
    from ultralytics.data import ClassificationDataset, build_yolo_dataset
    from ultralytics.models.rtdetr.val import RTDETRDataset

    mode, where = "train" if augment else "val", data[split]
    with _notes() as notes:
        try:
            if settings.task == "classify":
                dataset = ClassificationDataset(where, settings, augment=augment, prefix=split, names=data["names"])
                if not dataset.samples:
                    raise MissingFileError(f"no image of these classes is in {str(where)!r}")
            elif stretched:
                dataset = RTDETRDataset(
                    img_path=where,
                    data=dict(data),
                    imgsz=settings.imgsz,
                    batch_size=batch_size,
                    augment=augment,
                    hyp=copy(settings),
                    cache=settings.cache or None,
                    single_cls=settings.single_cls or False,
                    classes=settings.classes,
                    prefix=f"{mode}: ",
                )
            else:
                dataset = build_yolo_dataset(
                    copy(settings), where, batch_size, dict(data), mode=mode, rect=rect, stride=_STRIDE
                )
        except FileNotFoundError as error:
            raise MissingFileError(f"The {split} split has no images: {_plain(error.__cause__ or error)}") from error
        except (RuntimeError, ValueError) as error:
            told = _plain(error)
            # Not every release says why no image is left.
            why = _listed([note for note in notes if note not in told])
            raise ArgumentError(f"The {split} split of {str(where)!r} can't be used: {told}{why}") from error
    if notes:
        rank_zero_warn(f"Left out of the {split} split: {len(notes)} images.{_listed(notes)}")
    return dataset


def closes_mosaic(epoch: int, epochs: int | None, last: int) -> bool:
    """Whether mosaic is off in an epoch: in the `last` ones of a run of `epochs`, as Ultralytics' trainer has it.

    Example:
        >>> [closes_mosaic(epoch, epochs=5, last=2) for epoch in range(5)]
        [False, False, False, True, True]
    """
    return bool(last) and epochs is not None and epochs > 0 and epoch >= epochs - last


def rescale(images: Tensor, image_size: int, multi_scale: float) -> Tensor:
    """Resize a batch to a random multiple of 32 near `image_size`, as Ultralytics' trainer does.

    Args:
        images: (B, 3, H, W), floating point.
        image_size: The nominal longer side in pixels.
        multi_scale: By which ratio it varies, up and down.

    Example:
        >>> import torch
        >>> random.seed(0)
        >>> [rescale(torch.zeros(1, 3, 96, 96), 96, 0.5).shape[-1] for _ in range(4)]
        [128, 128, 32, 96]
    """
    low = max(_STRIDE, int(image_size * (1 - multi_scale)))
    side = random.randrange(low, int(image_size * (1 + multi_scale) + _STRIDE)) // _STRIDE * _STRIDE
    factor = side / max(images.shape[2:])
    if factor == 1:
        return images
    size = [math.ceil(length * factor / _STRIDE) * _STRIDE for length in images.shape[2:]]
    return nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


@contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect what Ultralytics logs about images that it leaves out; its log goes where it always goes."""
    from ultralytics.utils import LOGGER

    found: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines = map(_plain_text, record.getMessage().splitlines())
            found.extend(_HEIF.sub("it is not an image", line) for line in lines if "ignoring corrupt" in line)

    handler = Notes()
    LOGGER.addHandler(handler)
    try:
        yield found
    finally:
        LOGGER.removeHandler(handler)


def _listed(notes: Sequence[str]) -> str:
    more = [f"and {len(notes) - _SHOWN} more"] if len(notes) > _SHOWN else []
    return "".join(f"\n  {line}" for line in [*notes[:_SHOWN], *more])


def _plain(error: BaseException) -> str:
    return _plain_text(str(error))


def _plain_text(text: str) -> str:
    """Ultralytics' own words, without its colours and signs for the terminal, and without the prefix of its log."""
    from ultralytics.utils import remove_colorstr

    words = " ".join(remove_colorstr(text).replace("❌", "").split())
    return re.sub(r"^(train|val): (?=\S)", "", words)
