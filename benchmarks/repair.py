"""What a repair costs: in training steps, in plain forwards over the same images, and in memory.

The network is YOLOv8n without training, whose layers take as long as those of a trained one; a fifth or half of its
multiply-adds go. A step is forward, loss, backward and AdamW over one batch. All are measured by turns, medians of
several; memory is what a process of its own takes at most, beside one that runs plain forwards.

    python -m benchmarks.repair [--sizes 96 640] [--repeats 5]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.accuracy.budget_tables import repair_table
from benchmarks.extraction import batches
from lit_prune import Repair, plan_pruning, prune_
from lit_prune.yolo import LitYOLO

OUT = Path(__file__).with_suffix(".json")
# Images of a step: those of the demo, and Ultralytics' own default.
STEP = {96: 32, 640: 16}
WAYS = [(amount, selection) for amount in (0.2, 0.5) for selection in ("uniform", "global")]
IMAGES = (128, 1024)


def detector() -> LitYOLO:
    torch.manual_seed(0)
    return LitYOLO("yolov8n.yaml", num_classes=10)


def images(number: int, size: int) -> list[Tensor]:
    return [batch["img"] for batch in batches(number, size, Repair().batch_size)]


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def forwards(network: nn.Module, data: list[Tensor]) -> None:
    with torch.no_grad():
        for each in data:
            network.eval()(each)


def measure(size: int, repeats: int) -> dict[str, Any]:
    """Seconds of a step, of two plain forwards over the images of a repair, and of each repair."""
    module = detector()
    data = images(Repair().batches * Repair().batch_size, size)
    batch = next(batches(STEP[size], size, STEP[size]))
    trained = copy.deepcopy(module).train()
    optimizer = torch.optim.AdamW(trained.parameters())

    def step() -> None:
        loss, _ = trained.model.loss(batch, trained.task.enter(trained.model, batch))
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    plans = {
        f"-{amount:.0%}, {selection}": plan_pruning(
            module.model, data[0][:1], amount=amount, selection=selection, criterion="magnitude"
        )
        for amount, selection in WAYS
    }
    actions: dict[str, Callable[[], Any]] = {
        "step": step,
        "two plain forwards": lambda: forwards(module.model, data * 2),
    }
    taken: dict[str, list[float]] = {name: [] for name in (*actions, *plans)}
    step()
    for _ in range(repeats):
        for name, action in actions.items():
            taken[name].append(seconds(action))
        for name, plan in plans.items():
            network = copy.deepcopy(module.model)
            taken[name].append(seconds(lambda n=network, p=plan: prune_(n, p, data=data)))
    found: dict[str, Any] = {
        name: {"median_s": statistics.median(each), "least_s": min(each), "most_s": max(each)}
        for name, each in taken.items()
    }
    found["step"]["images"] = STEP[size]
    return found


def peak(number: int, repairs: int) -> float:
    """MB that a process takes at most while it goes through so many images, over what it held before."""
    module = detector()
    data = images(number, 96)
    # The measure of the most that was held begins again.
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    if repairs:
        plan = plan_pruning(module.model, data[0][:1], amount=0.5, selection="uniform", criterion="magnitude")
        prune_(module.model, plan, data=data)
    else:
        forwards(module.model, data)
    return held("VmHWM") - before


def held(kind: str) -> float:
    """MB, of what Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


def peak_of(number: int, repairs: int) -> float:
    command = [sys.executable, "-m", "benchmarks.repair", "--peak", str(number), str(repairs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=STEP, default=[*STEP])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(peak(*options.peak))
        return
    # Large images take minutes, and differ less from one time to the next.
    repeats = {96: options.repeats, 640: -(-options.repeats // 3)}
    costs = {str(size): measure(size, repeats[size]) for size in options.sizes}
    memory = {str(n): {"plain_mb": peak_of(n, 0), "repair_mb": peak_of(n, 1)} for n in IMAGES}
    result = {"torch": torch.__version__, "threads": 1, "costs": costs, "memory": memory}
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    console.print(repair_table(result), markup=False, highlight=False, soft_wrap=True)
    for number, each in memory.items():
        console.print(f"{number} images: {each['plain_mb']:.0f} MB for forwards, {each['repair_mb']:.0f} MB to repair")


if __name__ == "__main__":
    main()
