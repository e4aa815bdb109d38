"""What a pass over all activations costs: beside a plain forward, and beside a forward for each image and layer.

(a) a plain batched forward; (b) the calibration pass over all convolutions, with class-wise statistics of every object;
(c) image by image and layer by layer: copies of all blocks before the layer, run as an `nn.Sequential`, where the layer
is in a plain chain, else a forward with one hook. (c) is timed on a few images and multiplied. Memory is the peak of a
fresh process that does (b) alone.

    python benchmarks/extraction.py [--images 256] [--image-size 160]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lit_prune.activations import ActivationExtractor, collect_moments, read_batch, sliced_block
from lit_prune.yolo import build_detector

OUT = Path(__file__).with_suffix(".json")


def batches(images: int, size: int, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Scenes of noise with two objects each, made batch by batch so that the data itself takes no memory."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, images, batch_size):
        number = min(batch_size, images - start)
        yield {
            "img": torch.rand(number, 3, size, size, generator=generator),
            "batch_idx": torch.arange(number).repeat_interleave(2).float(),
            "cls": torch.randint(10, (2 * number, 1), generator=generator).float(),
            "bboxes": torch.rand(2 * number, 4, generator=generator) * 0.5 + 0.25,
        }


def network_and_layers() -> tuple[nn.Module, list[str]]:
    torch.manual_seed(0)
    network = build_detector("yolov8n.yaml", 10).eval()
    # The fixed convolution of the box distribution has no channels to choose from.
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and not name.endswith("dfl.conv")
    ]
    return network, layers


def plain(network: nn.Module, data: list[Any]) -> None:
    with torch.no_grad():
        for batch in data:
            network(batch["img"])


def ours(network: nn.Module, layers: list[str], data: Any) -> None:
    collect_moments(network, layers, map(read_batch, data), num_classes=10, match_iou=None)


def as_before(network: nn.Module, layers: list[str], images: torch.Tensor) -> int:
    """Returns how many layers had a slice."""
    slices: dict[str, nn.Module] = {}
    for layer in layers:
        try:
            slices[layer] = sliced_block(network, layer)
        except ValueError:
            continue
    with torch.no_grad():
        for image in images:
            for layer in layers:
                if layer in slices:
                    slices[layer](image[None])
                else:
                    with ActivationExtractor(network, [layer], stop_early=False) as extract:
                        extract(image[None])
    return len(slices)


def seconds(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_mib(images: int, options: argparse.Namespace) -> float:
    """Peak memory of a process that runs (b) on so many images."""
    command = [sys.executable, __file__, "--only-memory", str(images)]
    command += ["--image-size", str(options.image_size), "--batch-size", str(options.batch_size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--old-images", type=int, default=4, help="images that (c) is timed on")
    parser.add_argument("--only-memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    network, layers = network_and_layers()
    if options.only_memory is not None:
        ours(network, layers, batches(options.only_memory, options.image_size, options.batch_size))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return

    data = list(batches(options.images, options.image_size, options.batch_size))
    old = data[0]["img"][: options.old_images]
    plain(network, data[:1])
    ours(network, layers, data[:1])
    a, b, c, slices = [], [], [], 0

    def run_as_before() -> None:
        nonlocal slices
        slices = as_before(network, layers, old)

    # In turns, and the best of each: whatever else the machine does only adds.
    for turn in range(options.repeats):
        a.append(seconds(lambda: plain(network, data)))
        b.append(seconds(lambda: ours(network, layers, data)))
        if turn < 2:
            c.append(seconds(run_as_before) * options.images / len(old))
    memory = {images: peak_mib(images, options) for images in (options.images, 4 * options.images)}
    result = {
        "network": "yolov8n.yaml",
        "layers": len(layers),
        "layers_with_a_slice": slices,
        "images": options.images,
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "a_plain_forward_s": min(a),
        "b_pass_with_statistics_s": min(b),
        "c_image_by_image_layer_by_layer_s": min(c),
        "c_timed_on_images": len(old),
        "b_over_a": min(b) / min(a),
        "c_over_b": min(c) / min(b),
        "peak_mib": memory,
        "runs": {"a": a, "b": b, "c": c},
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"YOLOv8n, {len(layers)} convolutions, {options.images} images of {options.image_size} pixels")
    for column in ("", "seconds", "against (a)"):
        table.add_column(column, justify="left" if not column else "right")
    for name, key in (
        ("(a) plain forward", "a_plain_forward_s"),
        ("(b) one pass, statistics of all layers", "b_pass_with_statistics_s"),
        (
            f"(c) image by image, layer by layer ({len(old)} images × {options.images // len(old)})",
            "c_image_by_image_layer_by_layer_s",
        ),
    ):
        table.add_row(name, f"{result[key]:.2f}", f"{result[key] / result['a_plain_forward_s']:.2f}")
    Console().print(table)
    print(f"b/a {result['b_over_a']:.2f} (at most 1.3)   c/b {result['c_over_b']:.0f} (at least 30)")
    print("peak memory of (b): " + ", ".join(f"{mib:.0f} MiB at {images} images" for images, mib in memory.items()))


if __name__ == "__main__":
    main()
