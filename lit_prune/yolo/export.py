"""A network for use without lit_prune: a plain Ultralytics file, ONNX, TorchScript, what else Ultralytics writes."""

import shutil
import tempfile
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.imports import RequirementCache

from lit_prune.common._compat import clear_hooks_
from lit_prune.common.arguments import check_choice
from lit_prune.common.packages import missing_packages, require
from lit_prune.errors import ArgumentError, MissingFileError
from lit_prune.yolo.evaluation import forget_anchors_
from lit_prune.yolo.networks import build_detector
from lit_prune.yolo.package import quiet_ultralytics
from lit_prune.yolo.tasks import task_of

# Format to what its exporter imports, with the name of its module. Checked beforehand: Ultralytics would try to install
# it by itself. What is missing here is told once its exporter fails to import it.
_NEEDS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx:onnx",),
    "openvino": ("openvino:openvino",),
    "engine": ("onnx:onnx", "tensorrt:tensorrt"),
    "coreml": ("coremltools:coremltools",),
    "paddle": ("paddlepaddle:paddle", "x2paddle:x2paddle"),
    "mnn": ("onnx:onnx", "MNN:MNN"),
    "ncnn": ("ncnn:ncnn", "pnnx:pnnx"),
    "rknn": ("onnx:onnx", "rknn-toolkit2:rknn"),
    "litert": ("litert-torch:litert_torch", "ai-edge-litert:ai_edge_litert"),
    "executorch": ("executorch:executorch",),
}


def export_detector(network: Any, path: str | Path, format: str = "pt", image_size: int = 640, **options: Any) -> Path:
    """Write a network of any of Ultralytics' tasks, pruned or not, to a file that other programs read.

    Args:
        network: As `build_detector` builds it; it stays as it is.
        path: The file, or for some formats the folder, to write; what is there is replaced. A name that does not end
            as Ultralytics wants that of the format (`.onnx`, `_openvino_model`) gets that end.
        format: `"pt"` (opens with `ultralytics.YOLO`, needs no lit_prune; pickled, so open it only if you trust its
            source), or a format of Ultralytics' exporter: `"onnx"`, `"torchscript"`, `"openvino"`, ...
        image_size: Height and width in pixels that the exported network takes, a multiple of its stride; `"pt"` takes
            any.
        **options: Further arguments of Ultralytics' exporter, such as `dynamic=True`.

    Returns:
        The path written.

    Raises:
        MissingPackageError: If the format needs a package that is missing.
        ArgumentError: If there is no such format, the path is named as another one, or the network can't take images of
            that size.

    Example:
        >>> from lit_prune.yolo import build_detector
        >>> network = build_detector("yolov8n.yaml", num_classes=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_detector(network, f"{folder}/net.pt").name
        'net.pt'
    """
    _check_format(format)
    path = named_for(Path(path), format)
    check_image_size(image_size, network)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _plain_copy(network)
    if format == "pt":
        torch.save({"model": plain, "train_args": vars(plain.args), "epoch": -1}, path)
        return path
    from ultralytics.engine.exporter import Exporter

    # Smaller graphs need onnxslim; the unsimplified graph computes the same.
    extra = {"simplify": bool(RequirementCache("onnxslim"))} if format == "onnx" else {}
    with tempfile.TemporaryDirectory() as folder, quiet_ultralytics():
        plain.pt_path = str(Path(folder) / f"{path.name.removesuffix(_ends()[format])}.pt")
        settings = {"format": format, "imgsz": image_size, "device": "cpu", "batch": 1, **extra, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about what Ultralytics calls
            try:
                written = Path(Exporter(overrides=settings)(model=plain))
            except ModuleNotFoundError as error:
                raise missing_packages(f"Export to {format}", {error.name or str(error): "not installed"}) from error
        if path.is_dir():
            shutil.rmtree(path)
        shutil.move(written, path)
    return path


def load_detector(path: str | Path) -> Any:
    """Load the network of a checkpoint: of a `.ckpt` that a Trainer with LitYOLO saved, or of a `.pt` file.

    Raises:
        MissingFileError: If there is no such file.
        ArgumentError: If it is not a checkpoint of a LitYOLO.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There is no file {str(path)!r}.")
    return build_detector(str(path)).eval()


def check_image_size(image_size: int, network: Any) -> None:
    """Raise an ArgumentError unless a network of Ultralytics takes images of this height and width."""
    stride = int(network.stride.max())
    if image_size < stride or image_size % stride:
        raise ArgumentError(f"image_size must be a multiple of {stride}, the network's stride, but got {image_size}.")


def named_for(path: Path, format: str) -> Path:
    """The path with the end that Ultralytics knows a format by.

    Raises:
        ArgumentError: If the path ends as that of another format.

    Example:
        >>> named_for(Path("pruned"), "openvino").name, named_for(Path("pruned.onnx"), "onnx").name
        ('pruned_openvino_model', 'pruned.onnx')
    """
    ends = _ends()
    if path.name.endswith(ends[format]):
        return path
    for other, end in ends.items():
        if path.name.endswith(end):
            right = path.name.removesuffix(end) + ends[format]
            raise ArgumentError(
                f"{str(path)!r} is named as a file of format {other}, but the format is {format}: give --format "
                f"{other}, or name it {right}."
            )
    return path.with_name(path.name + ends[format])


def _ends() -> dict[str, str]:
    from ultralytics.engine.exporter import export_formats as known

    return dict(zip(export_formats(), (end for end in known()["Suffix"]), strict=True))


def export_formats() -> tuple[str, ...]:
    """Return the names of the formats that the installed Ultralytics can write, `"pt"` first."""
    from ultralytics.engine.exporter import export_formats as known

    return ("pt", *(name for name in known()["Argument"] if name != "-"))


def _check_format(format: str) -> None:
    check_choice("format", format, export_formats())
    require(f"Export to {format}", *_NEEDS.get(format, ()), extra="export" if format == "onnx" else "")


def _plain_copy(network: Any) -> Any:
    """A copy on the CPU that holds classes of torch and Ultralytics only, as Ultralytics' own trainer would save it."""
    criterion, network.criterion = getattr(network, "criterion", None), None
    try:
        copy = deepcopy(network)
    finally:
        network.criterion = criterion
    del copy.criterion
    for module in copy.modules():
        clear_hooks_(module)
    forget_anchors_(copy)
    copy.zero_grad(set_to_none=True)
    copy.task = task_of(copy).name
    return copy.float().cpu().eval()
