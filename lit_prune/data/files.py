"""DigitScenes as files: an Ultralytics data set of PNG pictures and label files, lossless."""

from pathlib import Path
from typing import get_args

from lit_prune.data.digits import DigitScenes, Split, check_scene_arguments

_CONTENT = ("images", "labels", "data.yaml")


def write_digits(
    folder: str | Path, scenes: int = 2000, val_scenes: int = 400, image_size: int = 96, seed: int = 0
) -> Path:
    """Write `DigitScenes` as an Ultralytics detection data set: pictures, label files and a `data.yaml`.

    Pictures are PNG files with the very pixels of `DigitScenes`, in `images/train` and `images/val`. Each has a file
    in `labels/train` or `labels/val`, with one line an object: class, centre x, centre y, width, height, as shares of
    the picture. The folder may be moved: `data.yaml` names no absolute path.

    Args:
        folder: Where to; it is made if need be, and must not hold a data set.
        scenes: Number of training scenes.
        val_scenes: Number of validation scenes.
        image_size: Height and width in pixels; a multiple of 32, at least 64.
        seed: Which scenes; a non-negative integer.

    Returns:
        The path of `data.yaml`.

    Raises:
        FileExistsError: If the folder holds images, labels or a data.yaml; nothing of it has changed.
        ValueError: If an argument is outside the range given above.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_digits(folder, scenes=2, val_scenes=1, image_size=64)
        ...     sorted(file.name for file in path.parent.glob("*/train/*"))
        ['000000.png', '000000.txt', '000001.png', '000001.txt']
    """
    folder = Path(folder)
    counts: dict[Split, int] = {"train": scenes, "val": val_scenes}
    for count in counts.values():
        check_scene_arguments(scenes=count, image_size=image_size, seed=seed)
    present = [name for name in _CONTENT if (folder / name).exists()]
    if present:
        raise FileExistsError(
            f"{str(folder)!r} holds {' and '.join(present)} already, which would be mixed up with the new scenes; "
            f"name another folder, or remove it first."
        )
    for split in get_args(Split):
        _write_split(folder, DigitScenes(split, counts[split], image_size, seed))
    names = "".join(f"  {digit}: {digit}\n" for digit in range(DigitScenes.num_classes))
    path = folder / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    return path


def _write_split(folder: Path, scenes: DigitScenes) -> None:
    # Pillow comes with matplotlib, and Ultralytics reads pictures by it as well.
    from PIL import Image

    images, labels = folder / "images" / scenes.split, folder / "labels" / scenes.split
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(scenes.images):
        name = f"{number:06d}"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(images / f"{name}.png")
        item = scenes[number]
        rows = zip(item["cls"].flatten().tolist(), item["bboxes"].tolist(), strict=True)
        lines = (f"{int(digit)} {' '.join(f'{side:.9g}' for side in box)}\n" for digit, box in rows)
        (labels / f"{name}.txt").write_text("".join(lines))
