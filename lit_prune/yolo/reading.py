"""Files with Ultralytics' networks: weights of theirs, and checkpoints that a Trainer saved of a LitYOLO."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_prune.checkpoint import weights_of
from lit_prune.common.reading import read_checkpoint
from lit_prune.errors import ArgumentError, CheckpointError, MissingFileError
from lit_prune.yolo.tasks import HEADS


def load_weights(path: str) -> Any:
    """The network in a `.pt` file of Ultralytics, in eval mode; one that Ultralytics offers is downloaded.

    Raises:
        MissingFileError: If there is no such file, nor a download.
        ArgumentError: If it holds no network or a quantized one, or can't be read.
    """
    from ultralytics.nn.tasks import load_checkpoint, torch_safe_load
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    offered = Path(path).name == path and (path in GITHUB_ASSETS_NAMES or f"{path[:-3]}u.pt" in GITHUB_ASSETS_NAMES)
    if not Path(path).exists() and not offered:
        raise MissingFileError(f"There is no file {path!r}, and Ultralytics offers none of this name.{near(path)}")
    try:
        if Path(path).exists():
            # Ultralytics would install what it needs to restore the quantization.
            refuse_quantized(torch_safe_load(path)[0], path)
        return load_checkpoint(path)[0]
    except (OSError, RuntimeError, TypeError, ImportError, AttributeError) as error:
        if not Path(path).exists():
            raise MissingFileError(
                f"{path!r} is not here, and Ultralytics could not download it ({error}). Put the file into the working "
                f"directory, or start from {Path(path).stem + '.yaml'!r} without weights."
            ) from error
        raise ArgumentError(f"{path!r} cannot be read as weights by Ultralytics: {_cause(error)}") from error


def refuse_quantized(checkpoint: Mapping[str, Any], path: str) -> None:
    """Raise an ArgumentError if a file of Ultralytics holds a network that was quantized, or trained to be (QAT).

    Args:
        checkpoint: What the file holds.
        path: The file, for the message.
    """
    network = checkpoint.get("ema") or checkpoint.get("model")
    layers = network.modules() if isinstance(network, nn.Module) else ()
    quantized = any(
        type(layer).__name__ == "TensorQuantizer" or ".quantized" in type(layer).__module__ for layer in layers
    )
    if checkpoint.get("modelopt") or quantized:
        raise ArgumentError(
            f"{path!r} holds a quantized network (or one of quantization-aware training), whose channels can't be "
            "pruned, nor its weights loaded here. Take the file from before quantization, and quantize last: prune, "
            "train, then quantize."
        )


def _cause(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ImportError) or "Can't get attribute" in text:
        return (
            f"it holds an object whose class is not found here ({text}). Install or import what defines it, under the "
            "name that it had when the file was written."
        )
    if isinstance(error, AttributeError) or "outside the supported" in text:
        return (
            "it is whole, but holds no network. A state dict alone is not enough: save the network, by "
            "`YOLO(...).save(path)` or `lit-prune export`."
        )
    return text


def read_lit_checkpoint(path: str) -> tuple[dict[str, Any], Mapping[str, Tensor], dict[int, str] | None]:
    """Read a checkpoint that a Trainer saved of a LitYOLO.

    Returns:
        The configuration of the network, its state dict, and the names of its classes if they are known.

    Raises:
        MissingFileError: If there is no such file.
        ArgumentError: If it is not such a checkpoint, is damaged, or holds more than weights and plain data.
    """
    checkpoint = read_checkpoint(path, remedy="load it by LitYOLO.load_from_checkpoint(..., weights_only=False)")
    try:
        config = checkpoint["hyper_parameters"]["model"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path!r} is not a Trainer's checkpoint of a LitYOLO: it lacks {error}. A checkpoint of another "
            "LightningModule is read by lit_prune.load_pruned(TheClass, path)."
        ) from error
    state = weights_of(checkpoint, path)
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    return config, weights, checkpoint.get("class_names")


def near(name: str) -> str:
    """End of an error message: the known names that resemble this one."""
    import ultralytics
    from ultralytics.utils import YAML
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    stem, suffix = Path(name).stem, Path(name).suffix
    if suffix == ".pt":
        known = {
            asset
            for asset in GITHUB_ASSETS_NAMES
            if re.fullmatch(r"(yolo[^-]*(-(seg|pose|obb|cls))?|rtdetr-\w+)\.pt", asset)
        }
    else:
        suffix = ".yaml"
        known = set()
        for path in (Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"):
            config = YAML.load(path)
            if config["head"][-1][2] in HEADS:
                scales = (not path.stem.startswith("rtdetr") and config.get("scales")) or [""]
                known |= {re.sub(r"(\d+)(?=$|-)", rf"\g<1>{scale}", path.stem, count=1) + suffix for scale in scales}
    near = difflib.get_close_matches(stem + suffix, sorted(known), n=4, cutoff=0.4)
    return f" Did you mean {', '.join(near)}?" if near else f" Known are {', '.join(sorted(known))}."
