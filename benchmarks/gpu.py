"""On a CUDA device: training with events in each precision, what an event costs, and the latency of pruned networks.

Training: a YOLOv8 network on random images that lie in pinned memory, with fused AdamW and channels_last, in each
precision, and once compiled. Dense epochs run with the callback and without it by turns; then come two events. Times
are of the wall clock, the device waited for.

Repaired: the same with channels chosen by what the loss would lose, a repair after each event, and the whole network as
a teacher.

Latency: fused networks as they are deployed, half of their multiply-adds gone, with kept widths in several multiples;
launched operation by operation, and as one CUDA graph, in which the host has no part. Dense and pruned take turns.

Budgets: widths by a table of the GPU, float16 and channels_last, and what the clock says of them; and again after the
table was scaled once to the clock. Memory: the peak of a forward as it is foretold, and as torch's allocator has it.

What is measured is added to the file, in the place of rows of the same kind; a kind for itself fits a short loan.

    python -m benchmarks.gpu [--kinds training repaired] [--model yolov8s.yaml] [--image-size 640] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.budgets import against_allocator, at_ratio
from benchmarks.callback import fit, phases
from lit_prune import ChannelPruning, Distillation, plan_pruning, shrink_
from lit_prune.cli.networks import load_network
from lit_prune.cost import Cost, measure_latency, profile_latency
from lit_prune.cost.profile.torch_runtime import CudaGraphRuntime, captured
from lit_prune.report.tables import save_json
from lit_prune.select import MacsBudget
from lit_prune.yolo import LitYOLO, build_detector

# What runs in each epoch of a training: dense ones by turns with the callback and without it.
WARM_UP, WITH, WITHOUT, EVENT, AFTER = "warm-up", "with", "without", "event", "after"
EPOCHS = [WARM_UP, WITH, WITHOUT, WITHOUT, WITH, WITH, WITHOUT, EVENT, AFTER, EVENT, AFTER]
# Each width of a compiled network is compiled anew.
EPOCHS_COMPILED = [WARM_UP, WITH, WITHOUT, EVENT, AFTER]
EPOCHS_REPAIRED = [WARM_UP, WITH, WITHOUT, EVENT, AFTER, EVENT, AFTER]
KINDS = ["training", "repaired", "latency", "budgets", "memory", "compiled"]
NETWORKS = ["yolov8n.yaml", "yolov8s.yaml", "torchvision:resnet50", "torchvision:mobilenet_v3_large"]


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


def train(options: argparse.Namespace, kind: str, precision: str) -> dict[str, Any]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    compiled, repaired = kind == "compiled", kind == "repaired"
    epochs = EPOCHS_COMPILED if compiled else EPOCHS_REPAIRED if repaired else EPOCHS
    module: pl.LightningModule = Fused(options.model, num_classes=10).to(memory_format=torch.channels_last)
    if compiled:
        module.model.compile()
    how: dict[str, Any] = {"selection": "macs"}
    if repaired:
        how = {"criterion": "taylor", "selection": MacsBudget("global"), "repair": True, "round_to": 32}
    pruning = ChannelPruning(0.5, [epoch for epoch, each in enumerate(epochs) if each == EVENT], verbose=False, **how)
    # Ultralytics' loss is a sum over images.
    others: list[pl.Callback] = [Distillation(float(options.batch_size))] if repaired else []
    turns = ByTurns(pruning, epochs)
    loaded = batches(options.image_size, options.batch_size)
    data = DataLoader(loaded * (options.steps // len(loaded)), batch_size=None, pin_memory=True)
    with phases() as spent:
        fit(module, data, [pruning, *others, turns], accelerator="gpu", precision=precision, max_epochs=len(epochs))
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
        with torch.no_grad():
            self._replay = captured(network, images)

    def forward(self, images: Tensor) -> Any:
        return self._replay()


def latencies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    dense = build_detector(options.model, num_classes=10).cuda().eval()
    image = torch.rand(1, 3, options.image_size, options.image_size, device="cuda")
    networks = {"dense": dense}
    for multiple in options.multiples:
        plan = plan_pruning(dense, image, amount=0.5, round_to=multiple)
        networks[f"multiples of {multiple}"] = shrink_(copy.deepcopy(dense), plan)
    macs = {name: Cost.of(network, image).macs for name, network in networks.items()}
    for dtype in (torch.float32, torch.float16):
        ready = {
            name: copy.deepcopy(network).fuse(verbose=False).to(dtype=dtype, memory_format=torch.channels_last).eval()
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


def budgets(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in options.networks:
        network, image = load_network(name, options.image_size if name.startswith("yolo") else None)
        for batch_size in options.batch_sizes:
            images = image.expand(batch_size, -1, -1, -1).to("cuda", torch.float16, memory_format=torch.channels_last)
            for multiple in options.multiples:
                if multiple >= 8:
                    yield {"network": name, "batch_size": batch_size} | budget(network, images, multiple, options)


def budget(network: nn.Module, images: Tensor, multiple: int, options: argparse.Namespace) -> dict[str, Any]:
    """A profile, and networks cut by it to some ratios of the dense latency: what was foretold, and the clock."""
    torch.manual_seed(0)
    started = time.perf_counter()
    timer = CudaGraphRuntime(seconds=0.1)
    table = profile_latency(network, images, timer, round_to=multiple)
    found: dict[str, Any] = {
        "multiple": multiple,
        "profile_s": round(time.perf_counter() - started, 1),
        "error_of_fit": table.conditions["error"],
        "dense_ms": table.dense_ms,
    }

    def clock(left: nn.Module) -> float:
        ready = {
            name: timer.ready(copy.deepcopy(each), images) for name, each in {"dense": network, "left": left}.items()
        }
        graphs = {name: Graphed(each.eval(), images) for name, each in ready.items()}
        measured = measure_latency(graphs, images, repeats=options.repeats)
        return measured["left"].median_ms / measured["dense"].median_ms

    image = images[:1].float().cpu()
    found["budgets"] = [at_ratio(network, image, table, ratio, multiple, clock) for ratio in options.ratios]
    return found


def memories(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in options.networks:
        for found in against_allocator(name, options.image_size, peak_on_device):
            if "allocator" in found:
                found["ratio"] = round(found["predicted"] / found["allocator"], 4)
            yield {"network": name} | found


def peak_on_device(network: nn.Module, images: Tensor) -> int:
    """The most bytes that one forward on the GPU has taken at once, with its input, beside the weights."""
    there, given = copy.deepcopy(network).cuda().eval(), images.cuda()
    with torch.no_grad():
        # The first forward may leave caches behind.
        there(given)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - given.numel() * given.element_size()
        there(given)
        torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov8s.yaml")
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32, help="in an epoch")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32], help="of the latencies")
    parser.add_argument("--multiples", type=int, nargs="*", default=[1, 8, 16, 32, 64], help="of kept widths")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="of the budgets and of the memory")
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.7, 0.5], help="budgets, of the dense latency")
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

    def keep_all(kind: str, rows: Iterator[dict[str, Any]]) -> None:
        try:
            for row in rows:
                keep(kind, row)
        except Exception as error:
            traceback.print_exc()
            keep(kind, {"failed": f"{type(error).__name__}: {error}"})

    def training(kind: str, precisions: Sequence[str]) -> Iterator[dict[str, Any]]:
        for precision in precisions:
            yield train(options, kind, precision)

    measurements = {
        "training": training("training", ("16-mixed", "bf16-mixed", "32-true")),
        "repaired": training("repaired", ("16-mixed", "bf16-mixed")),
        "latency": latencies(options),
        "budgets": budgets(options),
        "memory": memories(options),
        "compiled": training("compiled", ("bf16-mixed",)),
    }
    for kind in options.kinds:
        keep_all(kind, measurements[kind])


if __name__ == "__main__":
    main()
