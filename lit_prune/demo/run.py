"""The demo from end to end."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_prune.demo.comparison import compare, save_figures
from lit_prune.demo.recipe import Recipe
from lit_prune.demo.training import Run, train
from lit_prune.report import save_json
from lit_prune.yolo import LitYOLO
from lit_prune.yolo.comparison import comparison_table
from lit_prune.yolo.export import export_detector


def run_demo(
    out: str | Path, recipe: Recipe | None = None, console: Console | None = None, *, twin: bool = False
) -> dict[str, Any]:
    """Train a network that is pruned meanwhile, compare what it was with what it became, and write what came out.

    Written are ``report.json``, the figures ``detections.png``, ``channels.png`` and ``history.png``, ``pruned.ckpt``
    (for Lightning) and ``pruned.pt`` (for Ultralytics, without lit_prune).

    Args:
        out: The folder; it is made if need be.
        recipe: How to train and prune.
        console: Where to print.
        twin: Whether to compare with a dense network that is trained as long, by the same schedule, and shares the
            epochs before the first pruning; it takes as long again. If not, the dense network is the one right before
            the first pruning.

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
    console.rule("[bold]lit_prune demo")
    console.print(
        f"{recipe.model} learns from scratch to find handwritten digits: {recipe.scenes:,} scenes of "
        f"{recipe.image_size}×{recipe.image_size}, {recipe.epochs} epochs. Meanwhile it loses channels, "
        f"{len(recipe.prune_at)} times.{' Its dense twin keeps all of them.' if twin else ''}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before.ckpt"
        console.rule("a run with ChannelPruning", style="dim")
        pruned = train(recipe, prune=True, snapshot=before, console=console)
        shared = pruned.epochs[: recipe.prune_at[0]]
        if twin:
            console.rule("its dense twin, from the first pruning on", style="dim")
            dense = train(recipe, prune=False, start=before, console=console)
            dense = replace(dense, epochs=shared + dense.epochs)
        else:
            dense = Run(LitYOLO.load_from_checkpoint(before, map_location="cpu"), shared)
    console.rule("what it costs now", style="dim")
    report = compare(recipe, {"dense": dense, "pruned": pruned})
    save_json(report, out / "report.json")
    save_figures(out, recipe, dense, pruned)
    pruned.detector.trainer.save_checkpoint(out / "pruned.ckpt")
    export_detector(pruned.detector.model, out / "pruned.pt")
    console.print(comparison_table(report))
    if not twin:
        console.print(
            f"\nThe dense network is the one after epoch {len(shared)}, right before its first channel goes. What it "
            f"comes to in all {recipe.epochs}: lit-prune demo --twin, or over seeds benchmarks/demo_baseline.py.",
            highlight=False,
        )
    console.print(_closing(out, recipe), highlight=False, soft_wrap=True)
    return report


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
