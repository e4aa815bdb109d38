"""DigitScenes as files: an Ultralytics data set of any task, of PNG images and label files, lossless."""

from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from lit_prune.common.arguments import check_choice
from lit_prune.data.annotations import HEADERS, LABELS, OUTLINES, image_around, require_opencv
from lit_prune.data.digits import DigitScenes, Split, check_scene_arguments
from lit_prune.errors import ExistingFileError

_TASKS = (*LABELS, "classify")


def write_digits(
    folder: str | Path,
    scenes: int = 2000,
    val_scenes: int = 400,
    image_size: int = 96,
    seed: int = 0,
    task: str = "detect",
) -> Path:
    """Write `DigitScenes` as an Ultralytics data set: images, label files and a `data.yaml`.

    Images are PNG files with the very pixels of `DigitScenes`, in `images/train` and `images/val`. Each has a file
    in `labels/train` or `labels/val`, with one line per object: its class, then by the task, normalised,

    - `"detect"`: centre x, centre y, width, height;
    - `"segment"`: the outline of the ink that can be seen, without holes;
    - `"pose"`: the same as to detect, then five keypoints, each x, y and 2: the middles of the topmost and bottommost
      row and of the leftmost and rightmost column of ink, and the ink's centre;
    - `"obb"`: the corners of the smallest rectangle around the ink.

    To `"classify"`, there is an image of each digit alone, in a folder of its class, in `train` and `val`. The folder
    may be moved: `data.yaml` names no absolute path.

    Args:
        folder: Where to; it is made if need be, and must not hold a data set.
        scenes: Number of training scenes.
        val_scenes: Number of validation scenes.
        image_size: Height and width in pixels; a multiple of 32, at least 64.
        seed: Which scenes; a non-negative integer.
        task: What the labels are for.

    Returns:
        The path of `data.yaml`; of the folder itself, which Ultralytics asks for, to classify.

    Raises:
        ExistingFileError: If the folder holds a data set already; nothing of it has changed.
        MissingPackageError: If OpenCV, which draws outlines and comes with Ultralytics, is needed and missing, or what
            `DigitScenes` needs is; nothing has been written.
        ArgumentError: If an argument is outside the range given above.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_digits(folder, scenes=2, val_scenes=1, image_size=64)
        ...     sorted(file.name for file in path.parent.glob("*/train/*"))
        ['000000.png', '000000.txt', '000001.png', '000001.txt']
    """
    folder = Path(folder)
    check_choice("task", task, _TASKS)
    counts: dict[Split, int] = {"train": scenes, "val": val_scenes}
    for count in counts.values():
        check_scene_arguments(scenes=count, image_size=image_size, seed=seed)
    if task in OUTLINES:
        require_opencv()
    content = get_args(Split) if task == "classify" else ("images", "labels", "data.yaml")
    present = [name for name in content if (folder / name).exists()]
    if present:
        raise ExistingFileError(
            f"{str(folder)!r} holds {' and '.join(present)} already, which would be mixed up with the new scenes; "
            f"name another folder, or remove it first."
        )
    write = _write_images if task == "classify" else _write_split
    for split in get_args(Split):
        write(folder, DigitScenes(split, counts[split], image_size, seed), task)
    if task == "classify":
        return folder
    names = "".join(f"  {digit}: {digit}\n" for digit in range(DigitScenes.num_classes))
    path = folder / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\n{HEADERS.get(task, '')}names:\n{names}")
    return path


def _write_split(folder: Path, scenes: DigitScenes, task: str) -> None:
    images, labels = folder / "images" / scenes.split, folder / "labels" / scenes.split
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for number, (pixels, mask) in enumerate(zip(scenes.images, scenes.masks, strict=True)):
        name = f"{number:06d}"
        _as_image(pixels).save(images / f"{name}.png")
        item = scenes[number]
        lines = []
        for k, (digit, box) in enumerate(zip(item["cls"].flatten().tolist(), item["bboxes"].tolist(), strict=True)):
            values = LABELS[task](box, (mask == k + 1).numpy())
            lines.append(f"{int(digit)} {' '.join(f'{value:.9g}' for value in values)}\n")
        (labels / f"{name}.txt").write_text("".join(lines))


def _write_images(folder: Path, scenes: DigitScenes, task: str) -> None:
    for digit in range(scenes.num_classes):  # also of those that no scene shows: the folders are the classes
        (folder / scenes.split / str(digit)).mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(scenes.images):
        item = scenes[number]
        for k, (digit, box) in enumerate(zip(item["cls"].flatten().tolist(), item["bboxes"].tolist(), strict=True)):
            path = folder / scenes.split / str(int(digit)) / f"{number:06d}-{k}.png"
            _as_image(image_around(box, pixels)).save(path)


def _as_image(pixels: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
