"""Files of weights, and the names of Ultralytics' networks that resemble one which is not there."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lit_prune.yolo.tasks import HEADS


def load_weights(path: str) -> Any:
    """The network in a `.pt` file of Ultralytics, as it was saved, in eval mode.

    Raises:
        FileNotFoundError: If there is no such file, and Ultralytics offers none; near names are listed.
        ValueError: If the file can't be read, or its network is quantized.
    """
    from ultralytics.nn.tasks import load_checkpoint, torch_safe_load
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    offered = Path(path).name == path and (path in GITHUB_ASSETS_NAMES or f"{path[:-3]}u.pt" in GITHUB_ASSETS_NAMES)
    if not Path(path).exists() and not offered:
        raise FileNotFoundError(
            f"There is no file {path!r}, and Ultralytics offers none of this name.{near_names(path)}"
        )
    try:
        if Path(path).exists():
            # Ultralytics would install what it needs to restore the quantization.
            refuse_quantized(torch_safe_load(path)[0], path)
        return load_checkpoint(path)[0]
    except (OSError, RuntimeError, TypeError) as error:
        if Path(path).exists():
            raise ValueError(f"{path!r} cannot be read as weights by Ultralytics: {error}") from error
        raise FileNotFoundError(
            f"{path!r} is not here, and Ultralytics could not download it ({error}). Put the file into the working "
            f"directory, or start from {Path(path).stem + '.yaml'!r} without weights."
        ) from error


def refuse_quantized(checkpoint: Mapping[str, Any], path: str) -> None:
    """Raise a ValueError if a file of Ultralytics holds a network that was quantized, or trained to be (QAT).

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
        raise ValueError(
            f"{path!r} holds a quantized network (or one of quantization-aware training), whose channels can't be "
            "pruned, nor its weights loaded here. Take the file from before quantization, and quantize last: prune, "
            "train, then quantize."
        )


def near_names(name: str) -> str:
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
