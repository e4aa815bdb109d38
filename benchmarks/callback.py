"""What the callback costs: each step between two events, and an event itself in units of training steps.

Between events: one Trainer, after its first event, whose epochs run with the callback and without it by turns
(with, without, without, with, ...), all that an epoch does included. A ratio of 0.99 means that the callback costs one
step in a hundred.

An event: tracing, activations (where the selection looks at them), choosing, trying it out on a copy without weights,
and the cut; beside the median training step of the same run.

Times are the process's CPU seconds, for they do not count what else runs on the machine; wall-clock is beside them.

    python -m benchmarks.callback [--sizes 96 640] [--batch-size 16] [--turns 12]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("YOLO_OFFLINE", "true")

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import ChannelPruning
from lit_prune.activations import Calibration
from lit_prune.data import DigitScenesDataModule
from lit_prune.graph import ChannelGraph
from lit_prune.policy.policy import PruningPolicy
from lit_prune.select import ClusterSelection
from lit_prune.training.pruner import Pruner
from lit_prune.yolo import LitYOLO
from testing.training import quiet_trainer

OUT = Path(__file__).with_suffix(".json")
# Where an event spends its time; what is left is the cut itself, and the Trainer's things with it.
PHASES = {
    "trace": (ChannelGraph, "trace_calls"),
    "activations": ("lit_prune.training.pruner", "calibrate"),
    "choose": (PruningPolicy, "_choose"),
    "try out": (ChannelGraph, "rehearse"),
}
Clock = tuple[float, float]


def now() -> Clock:
    return time.process_time(), time.perf_counter()


def since(start: Clock) -> Clock:
    return time.process_time() - start[0], time.perf_counter() - start[1]


class Small(pl.LightningModule):
    """Steps so short that what the callback adds to each can be seen."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for enters in (3, 16, 16, 16):
            layers += [nn.Conv2d(enters, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class ByTurns(pl.Callback):
    """Comes last: lets every other epoch run without the callback, and times them all."""

    def __init__(self, pruning: ChannelPruning) -> None:
        self.pruning = pruning
        self.seconds: dict[bool, list[Clock]] = {True: [], False: []}
        self.start: Clock | None = None
        self.present = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Epoch 0 is dense, 1 has the event, 2 warms up what is narrower now.
        if trainer.current_epoch >= 3 and self.start is not None:
            cpu, wall = since(self.start)
            steps = trainer.num_training_batches
            self.seconds[self.present].append((cpu / steps, wall / steps))
        self.present = trainer.current_epoch % 4 in (2, 1)
        others = [callback for callback in trainer.callbacks if callback is not self.pruning]
        trainer.callbacks = [self.pruning, *others] if self.present else others
        self.start = now()


def between_events(name: str, module: pl.LightningModule, data: Any, turns: int, steps: int) -> dict[str, Any]:
    pruning = ChannelPruning(0.5, 1, verbose=False)
    turn = ByTurns(pruning)
    fit(module, data, [pruning, turn], max_epochs=3 + 4 * turns, limit_train_batches=steps)
    row: dict[str, Any] = {"network": name, "steps_an_epoch": steps, "epochs_each": 2 * turns}
    for index, clock in enumerate(("cpu", "wall")):
        there, gone = ([each[index] for each in turn.seconds[present]] for present in (True, False))
        # Neighbours in time, so that a busy machine weighs on both.
        ratios = [without / with_it for with_it, without in zip(there, gone, strict=True)]
        row[f"step_ms_{clock}"] = round(1e3 * statistics.median(gone), 4)
        row[f"ratio_{clock}"] = round(statistics.median(ratios), 4)
        row[f"added_us_a_step_{clock}"] = round(
            1e6 * statistics.median(a - b for a, b in zip(there, gone, strict=True)), 1
        )
    return row


class Steps(pl.Callback):
    """CPU and wall-clock time of each training step."""

    def __init__(self) -> None:
        self.seconds: list[Clock] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = now()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(since(self.start))


@contextmanager
def phases() -> Iterator[dict[str, Clock]]:
    """Time spent in each part of every event while open; a part that calls another is charged for both."""
    spent: dict[str, Clock] = defaultdict(lambda: (0.0, 0.0))
    inside: list[str] = []

    def timed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Only what is part of an event, and no part of a part.
            if inside != ([] if name == "event" else ["event"]):
                return original(*args, **kwargs)
            inside.append(name)
            start = now()
            try:
                return original(*args, **kwargs)
            finally:
                cpu, wall = since(start)
                spent[name] = (spent[name][0] + cpu, spent[name][1] + wall)
                inside.pop()

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in {**PHASES, "event": (Pruner, "prune")}.items():
            target = sys.modules[owner] if isinstance(owner, str) else owner
            original = getattr(target, attribute)
            # A class method is bound already.
            wrapped: Any = timed(name, original)
            stack.enter_context(
                mock.patch.object(target, attribute, staticmethod(wrapped) if bound(original) else wrapped)
            )
        yield spent


def bound(function: Any) -> bool:
    return hasattr(function, "__self__")


def event(size: int, batch_size: int, selection: Any, name: str, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    module = LitYOLO("yolov8n.yaml", num_classes=10)
    data = DigitScenesDataModule(scenes=batch_size * steps, val_scenes=4, image_size=size, batch_size=batch_size)
    stopwatch = Steps()
    pruning = ChannelPruning(0.3, 1, selection=selection, verbose=False)
    with phases() as spent:
        fit(module, data, [pruning, stopwatch], max_epochs=2)
    row: dict[str, Any] = {"image_size": size, "batch_size": batch_size, "selection": name}
    for index, clock in enumerate(("cpu", "wall")):
        # The first step makes the optimizer's state.
        step = statistics.median(each[index] for each in stopwatch.seconds[1:steps])
        parts = {part: seconds[index] for part, seconds in spent.items() if part != "event"}
        parts["cut"] = spent["event"][index] - sum(parts.values())
        row[f"step_s_{clock}"] = round(step, 4)
        row[f"event_s_{clock}"] = round(spent["event"][index], 3)
        row[f"event_in_steps_{clock}"] = round(spent["event"][index] / step, 2)
        row[f"parts_s_{clock}"] = {part: round(seconds, 3) for part, seconds in parts.items()}
    return row


def fit(module: pl.LightningModule, data: Any, callbacks: list[pl.Callback], **options: Any) -> None:
    quiet_trainer(*callbacks, limit_val_batches=0, **options).fit(module, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[96, 640], help="image sizes of the events")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=12, help="times four epochs, two with the callback")
    options = parser.parse_args()
    torch.set_num_threads(1)

    images = torch.rand(2000, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    small = DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=8)
    scenes = DigitScenesDataModule(scenes=10 * options.batch_size, val_scenes=4, batch_size=options.batch_size)
    torch.manual_seed(0)
    rows = [
        between_events("four convolutions, 16×16, batch 8", Small(), small, options.turns, len(small)),
        between_events(
            f"yolov8n, 96×96, batch {options.batch_size}",
            LitYOLO("yolov8n.yaml", num_classes=10),
            scenes,
            options.turns,
            10,
        ),
    ]
    table = Table("network", "step (ms)", "ratio, CPU", "ratio, wall", "added (µs a step)", title="Between events")
    for row in rows:
        table.add_row(
            row["network"],
            f"{row['step_ms_cpu']:.2f}",
            f"{row['ratio_cpu']:.4f}",
            f"{row['ratio_wall']:.4f}",
            f"{row['added_us_a_step_cpu']:.0f}",
        )
    Console().print(table)

    # Without a size only what lies between them is measured again.
    events = json.loads(OUT.read_text(encoding="utf-8"))["events"] if not options.sizes and OUT.exists() else []
    for size in options.sizes:
        for name, selection in (
            ("uniform", "uniform"),
            ("macs", "macs"),
            ("clusters", ClusterSelection(calibration=Calibration(match_iou=None))),
        ):
            events.append(event(size, options.batch_size, selection, name, steps=6 if size < 320 else 3))
            sys.stderr.write(json.dumps(events[-1]) + "\n")
    table = Table(
        "image size", "selection", "step (s)", "event (s)", "in steps", "parts (s)", title="An event, CPU time"
    )
    for row in events:
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in row["parts_s_cpu"].items())
        table.add_row(
            str(row["image_size"]),
            row["selection"],
            f"{row['step_s_cpu']:.3f}",
            f"{row['event_s_cpu']:.2f}",
            f"{row['event_in_steps_cpu']:.1f}",
            parts,
        )
    Console().print(table)
    threads = torch.get_num_threads()
    OUT.write_text(json.dumps({"threads": threads, "between_events": rows, "events": events}, indent=2) + "\n")


if __name__ == "__main__":
    main()
