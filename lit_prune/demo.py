"""The whole story on real input: train a detector, prune it meanwhile, and compare it with its dense twin."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.table import Table

from lit_prune.callback import ChannelPruning
from lit_prune.cost import Cost, Latency, measure_latency
from lit_prune.data import DigitScenes, DigitScenesDataModule, collate_detection
from lit_prune.report import channels_figure, history_figure, human, save_json
from lit_prune.yolo import LitYOLO, draw_detections
from lit_prune.yolo.batches import box_targets
from lit_prune.yolo.export import export_detector

_BATCHES = (1, 32)  # batch sizes at which latency is measured
_SHOWN = 6  # scenes in the figure of detections


@dataclass(frozen=True)
class Recipe:
    """How the demo trains and prunes; the defaults take minutes on two cores.

    Attributes:
        model: Configuration of an Ultralytics detection network.
        epochs: Length of both runs.
        prune_at: Epochs at whose start channels are removed, counted from 0.
        amount: Share of each layer's channels that is gone after the last of them.
        round_to: Kept widths are multiples of it.
        scenes: Number of training scenes.
        image_size: Height and width of a scene in pixels.
        batch_size: Scenes in a batch.
        lr: The highest learning rate of AdamW.
        warmup: Share of the run in which the learning rate rises; then it falls along a cosine.
        seed: Of weights, order and scenes.
    """

    model: str = "yolov8n.yaml"
    epochs: int = 24
    prune_at: tuple[int, ...] = (6, 9, 12)
    amount: float = 0.3
    round_to: int = 4
    scenes: int = 2000
    image_size: int = 96
    batch_size: int = 32
    lr: float = 2e-3
    warmup: float = 0.3
    seed: int = 0

    def scaled_to(self, epochs: int) -> Recipe:
        """The same recipe for a run of another length: the events move along.

        Raises:
            ValueError: If the run is too short for all events.
        """
        events = tuple(max(1, round(event * epochs / self.epochs)) for event in self.prune_at)
        if len(set(events)) < len(events) or events[-1] >= epochs:
            raise ValueError(
                f"The demo prunes {len(events)} times and needs at least {2 * len(events)} epochs, but got {epochs}."
            )
        return Recipe(**{**asdict(self), "epochs": epochs, "prune_at": events})


@dataclass(frozen=True)
class Run:
    """A trained detector, and what was seen on the way.

    Attributes:
        detector: The network after its last epoch.
        epochs: One dict an epoch: ``epoch``, ``map``, ``map_50``, ``macs``, ``params``.
        events: The records of the prunings.
        seconds: How long it took.
    """

    detector: LitYOLO
    epochs: list[dict[str, float]]
    events: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def run_demo(out: str | Path, recipe: Recipe | None = None, console: Console | None = None) -> dict[str, Any]:
    """Train the dense twin and the pruned network alike, compare them, and write what came out to a folder.

    Written are ``report.json``, the figures ``detections.png``, ``channels.png`` and ``history.png``, ``pruned.ckpt``
    (for Lightning) and ``pruned.pt`` (for Ultralytics, without lit_prune).

    Args:
        out: The folder; it is made if need be.
        recipe: How to train and prune.
        console: Where to print.

    Returns:
        What ``report.json`` holds.

    Raises:
        ImportError: If Ultralytics is missing.
        ValueError: If the recipe cannot be carried out.
    """
    recipe = recipe or Recipe()
    console = console or Console()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    size = f"{recipe.image_size}×{recipe.image_size}"
    console.rule("[bold]lit_prune demo")
    console.print(
        f"{recipe.model} learns to find handwritten digits in {recipe.scenes:,} scenes of {size}, from scratch, "
        f"{recipe.epochs} epochs, twice: dense, and pruned in {len(recipe.prune_at)} events on the way.\n"
    )
    console.rule("1 of 3: the dense twin", style="dim")
    dense = train(recipe, prune=False, console=console)
    console.rule("2 of 3: the same run with ChannelPruning", style="dim")
    pruned = train(recipe, prune=True, console=console)
    console.rule("3 of 3: what it costs now", style="dim")
    report = compare(recipe, {"dense": dense, "pruned": pruned})
    save_json(report, out / "report.json")
    save_figures(out, recipe, dense, pruned)
    pruned.detector.trainer.save_checkpoint(out / "pruned.ckpt")
    export_detector(pruned.detector.model, out / "pruned.pt")
    console.print(comparison_table(report))
    console.print(_closing(out, recipe), highlight=False, soft_wrap=True)
    return report


def train(recipe: Recipe, *, prune: bool, console: Console | None = None) -> Run:
    """Train one detector by the recipe, with or without its prunings.

    Both runs start from the same weights and see the same batches in the same order.
    """
    started = time.perf_counter()
    seed_everything(recipe.seed, verbose=False)
    detector = LitYOLO(
        recipe.model,
        num_classes=DigitScenes.num_classes,
        lr=recipe.lr,
        warmup_epochs=recipe.warmup * recipe.epochs,
        final_lr=0.001,
    )
    detector.to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    data = DigitScenesDataModule(
        scenes=recipe.scenes, image_size=recipe.image_size, batch_size=recipe.batch_size, seed=recipe.seed
    )
    watch = _Watch(console)
    callbacks: list[Callback] = [watch]
    if console is not None:
        callbacks.append(RichProgressBar(leave=False))
    pruning = ChannelPruning(
        recipe.amount, list(recipe.prune_at), round_to=recipe.round_to, verbose=console is not None
    )
    if prune:
        callbacks.append(pruning)
    with _quiet_lightning():
        _trainer(recipe, callbacks, console).fit(detector, data)
    return Run(detector, watch.epochs, pruning.events, time.perf_counter() - started)


def _trainer(recipe: Recipe, callbacks: list[Callback], console: Console | None) -> Trainer:
    return Trainer(
        max_epochs=recipe.epochs,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=console is not None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=callbacks,
    )


def compare(recipe: Recipe, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Measure the networks of several runs side by side, and put all that is known of them into plain data."""
    networks = {name: run.detector.model.cpu().eval() for name, run in runs.items()}
    shape = (3, recipe.image_size, recipe.image_size)
    measured: dict[str, list[Latency]] = {name: [] for name in runs}
    for batch in _BATCHES:
        for name, latency in measure_latency(networks, torch.rand(batch, *shape)).items():
            measured[name].append(latency)
    report: dict[str, Any] = {}
    for name, run in runs.items():
        cost = Cost.of(networks[name], torch.zeros(1, *shape))
        report[name] = {
            **cost.to_dict(),
            "map": run.epochs[-1]["map"],
            "map_50": run.epochs[-1]["map_50"],
            "latency_ms": measured[name][0].median_ms,
            "latency": [latency.to_dict() for latency in measured[name]],
            "training_seconds": run.seconds,
        }
    report["events"] = [event for run in runs.values() for event in run.events]
    report["history"] = {name: run.epochs for name, run in runs.items()}
    report["recipe"] = asdict(recipe)
    report["torch"] = torch.__version__
    return report


def comparison_table(report: Mapping[str, Any]) -> Table:
    """The dense and the pruned network of a report as a table."""
    dense, pruned = report["dense"], report["pruned"]
    table = Table(title="Before and after", title_style="bold", header_style="bold", caption_justify="left")
    table.add_column("")
    for heading in ("dense", "pruned", "change"):
        table.add_column(heading, justify="right")
    for title, key in (("parameters", "params"), ("multiply-adds", "macs")):
        table.add_row(title, human(dense[key]), human(pruned[key]), f"{pruned[key] / dense[key] - 1:+.0%}")
    for title, key in (("mAP50-95", "map"), ("mAP50", "map_50")):
        table.add_row(title, f"{dense[key]:.3f}", f"{pruned[key]:.3f}", f"{pruned[key] - dense[key]:+.3f}")
    for before, after in zip(dense["latency"], pruned["latency"], strict=True):
        old, new = before["median_ms"], after["median_ms"]
        title = f"latency, batch {before['batch_size']}"
        table.add_row(title, f"{old:.1f} ms", f"{new:.1f} ms", f"{old / new:.2f}× faster")
    first = dense["latency"][0]
    threads = f", {first['threads']} threads" if first["device"] == "cpu" else ""
    height, width = first["image_size"]
    table.caption = f"latency: {height}×{width}, {first['device']}{threads}, median of {first['repeats']}, side by side"
    return table


def save_figures(out: Path, recipe: Recipe, dense: Run, pruned: Run) -> None:
    """Write ``detections.png``, ``channels.png`` and ``history.png``."""
    scenes = DigitScenes("val", 100, recipe.image_size, recipe.seed)
    # Scenes with much to find say more.
    chosen = [scene for scene in (scenes[k] for k in range(100)) if len(scene["cls"]) >= 3][:_SHOWN]
    batch = collate_detection(chosen)
    rows = {}
    for name, run in (("dense", dense), ("pruned", pruned)):
        title = f"{name} · {human(run.epochs[-1]['macs'])} MACs"
        rows[title] = run.detector.cpu().detect(batch["img"])
    draw_detections(batch["img"], rows, box_targets(batch)).savefig(out / "detections.png")
    channels_figure(pruned.events).savefig(out / "channels.png")
    history = {"dense": dense.epochs, "pruned": pruned.epochs}
    history_figure(history, pruned.events).savefig(out / "history.png")


class _Watch(Callback):
    """Keeps the figures of every epoch, and prints a line of them."""

    def __init__(self, console: Console | None) -> None:
        self.epochs: list[dict[str, float]] = []
        self._console = console
        self._macs: dict[int, int] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        size = trainer.datamodule.image_size  # type: ignore[attr-defined]
        image = torch.zeros(1, 3, size, size, device=pl_module.device)
        cost = Cost.of(pl_module.model, image)  # type: ignore[arg-type]
        seen = {name: float(trainer.callback_metrics[f"val/{name}"]) for name in ("map", "map_50")}
        self.epochs.append({"epoch": trainer.current_epoch, **seen, **cost.to_dict()})
        if self._console is None:
            return
        progress: Any = getattr(trainer.progress_bar_callback, "progress", None)
        (getattr(progress, "console", None) or self._console).print(
            f"epoch {trainer.current_epoch + 1:>2} of {trainer.max_epochs}   mAP50-95 {seen['map']:.3f}   "
            f"mAP50 {seen['map_50']:.3f}   {human(cost.macs)} MACs   {human(cost.params)} parameters",
            highlight=False,
        )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes about devices from between the demo's lines."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _closing(out: Path, recipe: Recipe) -> str:
    load = (
        "from lit_prune.yolo import LitYOLO; from lit_prune.data import DigitScenes; "
        f"print(LitYOLO.load_from_checkpoint('{out}/pruned.ckpt', map_location='cpu')"
        f".detect(DigitScenes('val', 1, {recipe.image_size})[0]['img'][None]))"
    )
    return (
        f"\nFigures: {out}/detections.png, {out}/channels.png, {out}/history.png. Numbers: {out}/report.json.\n"
        f"Load the pruned network in a fresh process and predict:\n\n"
        f'  python -c "{load}"\n\n'
        f"Or without lit_prune: yolo predict model={out}/pruned.pt imgsz={recipe.image_size} source=IMAGE"
    )
