"""On a CUDA device: training with events in each precision, what an event costs, and the latency of pruned networks.

Training: a YOLOv8 network on random images that lie in pinned memory, with fused AdamW and channels_last, in each
precision, and once compiled. Dense epochs run with the callback and without it by turns; then come two events. Times
are of the wall clock, the device waited for.

Latency: fused networks as they are deployed, half of their multiply-adds gone, with kept widths in several multiples;
launched operation by operation, and as one CUDA graph, in which the host has no part. Dense and pruned take turns.

What is measured is added to the file, in the place of rows of the same kind; a kind for itself fits a short loan.

    python -m benchmarks.gpu [--kinds training latency compiled] [--model yolov8s.yaml] [--image-size 640] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import traceback
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.callback import fit, phases
from lit_prune import ChannelPruning, plan_pruning, shrink_
from lit_prune.cost import Cost, measure_latency
from lit_prune.report.tables import save_json
from lit_prune.yolo import LitYOLO, build_detector

# What runs in each epoch of a training: dense ones by turns with the callback and without it.
WARM_UP, WITH, WITHOUT, EVENT, AFTER = "warm-up", "with", "without", "event", "after"
EPOCHS = [WARM_UP, WITH, WITHOUT, WITHOUT, WITH, WITH, WITHOUT, EVENT, AFTER, EVENT, AFTER]
# Each width of a compiled network is compiled anew.
EPOCHS_COMPILED = [WARM_UP, WITH, WITHOUT, EVENT, AFTER]
KINDS = ["training", "latency", "compiled"]


class Fused(LitYOLO):
    """With the optimizer of which all steps are one kernel."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


class ByTurns(pl.Callback):
    """Comes last: times each epoch, and lets some run without the other callback."""

    def __init__(self, pruning: ChannelPruning, epochs: list[str]) -> None:
        self.pruning = pruning
        self.epochs = epochs
        self.steps_a_second: list[float] = []
        self.peak_gib: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.cuda.synchronize()
        self.steps_a_second.append(trainer.num_training_batches / (time.perf_counter() - self.start))
        self.peak_gib.append(torch.cuda.max_memory_allocated() / 2**30)
        present = self.epochs[min(trainer.current_epoch + 1, len(self.epochs) - 1)] != WITHOUT
        others = [callback for callback in trainer.callbacks if callback is not self.pruning]
        trainer.callbacks = [self.pruning, *others] if present else others

    def median_of(self, kind: str) -> float:
        return statistics.median(
            speed for speed, epoch in zip(self.steps_a_second, self.epochs, strict=True) if epoch == kind
        )


def batches(size: int, batch_size: int, number: int = 4) -> list[dict[str, Tensor]]:
    """Random images with eight objects in each, as a detector trains on them."""
    generator = torch.Generator().manual_seed(0)
    objects = 8 * batch_size
    return [
        {
            "img": torch.rand(batch_size, 3, size, size, generator=generator),
            "batch_idx": torch.arange(batch_size).repeat_interleave(8).float(),
            "cls": torch.randint(10, (objects, 1), generator=generator).float(),
            "bboxes": torch.cat(
                [
                    0.3 + 0.4 * torch.rand(objects, 2, generator=generator),
                    0.1 + 0.3 * torch.rand(objects, 2, generator=generator),
                ],
                dim=1,
            ),
        }
        for _ in range(number)
    ]


def train(options: argparse.Namespace, precision: str, compiled: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    epochs = EPOCHS_COMPILED if compiled else EPOCHS
    module: pl.LightningModule = Fused(options.model, num_classes=10).to(memory_format=torch.channels_last)
    if compiled:
        module.model.compile()
    pruning = ChannelPruning(
        0.5, [epoch for epoch, kind in enumerate(epochs) if kind == EVENT], selection="macs", verbose=False
    )
    turns = ByTurns(pruning, epochs)
    loaded = batches(options.image_size, options.batch_size)
    data = DataLoader(loaded * (options.steps // len(loaded)), batch_size=None, pin_memory=True)
    with phases() as spent:
        fit(module, data, [pruning, turns], accelerator="gpu", precision=precision, max_epochs=len(epochs))
    without = turns.median_of(WITHOUT)
    return {
        "precision": precision,
        "compiled": compiled,
        "steps_a_second": {"without": round(without, 2), "with": round(turns.median_of(WITH), 2)},
        "ratio": round(turns.median_of(WITH) / without, 4),
        "epochs": [[kind, round(speed, 2)] for kind, speed in zip(epochs, turns.steps_a_second, strict=True)],
        "peak_gib": [round(peak, 2) for peak in turns.peak_gib],
        "macs_left": [event["macs"][1] / pruning.events[0]["macs"][0] for event in pruning.events],
        "event_s": round(spent["event"][1] / len(pruning.events), 3),
        "event_in_steps": round(spent["event"][1] / len(pruning.events) * without, 1),
        "parts_s": {part: round(wall / len(pruning.events), 3) for part, (_, wall) in spent.items() if part != "event"},
        "finite": all(bool(parameter.isfinite().all()) for parameter in module.parameters()),
    }


class Graphed(nn.Module):
    """A network as one CUDA graph: replayed for inputs of the shape and place that it was captured with."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self._graph = torch.cuda.CUDAGraph()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(beside):
            for _ in range(3):
                network(images)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._output = network(images)

    def forward(self, images: Tensor) -> Any:
        self._graph.replay()
        return self._output


def latencies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    dense = build_detector(options.model, num_classes=10).cuda().eval()
    image = torch.rand(1, 3, options.image_size, options.image_size, device="cuda")
    networks = {"dense": dense}
    for multiple in options.multiples:
        plan = plan_pruning(dense, image, amount=0.5, round_to=multiple)
        networks[f"multiples of {multiple}"] = shrink_(deepcopy(dense), plan)
    macs = {name: Cost.of(network, image).macs for name, network in networks.items()}
    for dtype in (torch.float32, torch.float16):
        ready = {
            name: deepcopy(network).fuse(verbose=False).to(dtype=dtype, memory_format=torch.channels_last).eval()
            for name, network in networks.items()
        }
        for batch_size in options.batch_sizes:
            images = image.expand(batch_size, -1, -1, -1).to(dtype=dtype, memory_format=torch.channels_last)
            ways = {"eager": ready, "graph": {name: Graphed(network, images) for name, network in ready.items()}}
            for way, found in ways.items():
                measured = measure_latency(found, images, repeats=options.repeats)
                yield {
                    "dtype": str(dtype).removeprefix("torch."),
                    "batch_size": batch_size,
                    "way": way,
                    "ms": {name: round(latency.median_ms, 3) for name, latency in measured.items()},
                    "fastest_ms": {name: round(latency.fastest_ms, 3) for name, latency in measured.items()},
                    "times_faster": {
                        name: round(measured["dense"].median_ms / latency.median_ms, 2)
                        for name, latency in measured.items()
                    },
                    "macs_left": {name: round(count / macs["dense"], 3) for name, count in macs.items()},
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov8s.yaml")
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32, help="in an epoch")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32], help="of the latencies")
    parser.add_argument("--multiples", type=int, nargs="*", default=[1, 8, 16, 32, 64], help="of kept widths")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS, help="what to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "There is no CUDA device here.\n")
    warnings.simplefilter("ignore")
    properties = torch.cuda.get_device_properties(0)
    head = {
        "device": properties.name,
        "torch": torch.__version__,
        "model": options.model,
        "image_size": options.image_size,
        "batch_size": options.batch_size,
    }
    before = json.loads(options.out.read_text()) if options.out.exists() else {}
    if any(before.get(key) != value for key, value in head.items()):
        before = {}
    result: dict[str, Any] = head | {kind: [] if kind in options.kinds else before.get(kind, []) for kind in KINDS}

    def keep(kind: str, row: dict[str, Any]) -> None:
        result[kind].append(row)
        print(json.dumps(row), flush=True)
        # What comes later may fail, or run out of time.
        save_json(result, options.out)

    def train_in(kind: str, precision: str, compiled: bool = False) -> None:
        try:
            keep(kind, train(options, precision, compiled))
        except Exception as error:
            traceback.print_exc()
            keep(kind, {"precision": precision, "compiled": compiled, "failed": f"{type(error).__name__}: {error}"})

    if "training" in options.kinds:
        for precision in ("16-mixed", "bf16-mixed", "32-true"):
            train_in("training", precision)
    if "latency" in options.kinds:
        for row in latencies(options):
            keep("latency", row)
    if "compiled" in options.kinds:
        train_in("compiled", "bf16-mixed", compiled=True)


if __name__ == "__main__":
    main()
