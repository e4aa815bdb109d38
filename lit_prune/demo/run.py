"""The demo from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from lit_prune.demo.outcome import compare, cuts_table, save_figures
from lit_prune.demo.runs import cuts, fine_tune, train
from lit_prune.demo.settings import Recipe
from lit_prune.report.tables import save_json
from lit_prune.yolo.comparison import comparison_table
from lit_prune.yolo.export import export_detector
from lit_prune.yolo.package import require_ultralytics


def run_demo(out: str | Path, recipe: Recipe | None = None, console: Console | None = None) -> dict[str, Any]:
    """Train a network to its end, cut it and see what is left at once, fine-tune it to half, and write what came out.

    Written are ``report.json``, the figures ``detections.png``, ``channels.png`` and ``history.png``, ``pruned.ckpt``
    (for Lightning), and ``dense.pt`` and ``pruned.pt`` (for Ultralytics, without lit_prune).

    Args:
        out: The folder; it is made if need be.
        recipe: How to train and prune.
        console: Where to print.

    Returns:
        What ``report.json`` holds.

    Raises:
        MissingPackageError: If a package that the extra `yolo` brings is missing.
        ValueError: If the recipe cannot be carried out.
    """
    require_ultralytics("The demo", "faster-coco-eval", "matplotlib", "pillow", "scikit-learn")
    recipe = recipe or Recipe()
    console = console or Console()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    console.rule("[bold]lit_prune demo")
    console.print(
        f"{recipe.model} learns from scratch to find handwritten digits: {recipe.scenes:,} scenes of "
        f"{recipe.image_size}×{recipe.image_size}, {recipe.epochs} epochs. Then it is cut, and what is left is looked "
        f"at before anything is trained. Then it is fine-tuned for {recipe.fine_tuning} epochs while it is pruned.\n"
    )
    console.rule("a dense network", style="dim")
    dense = train(recipe, console)
    console.rule(f"one cut of {recipe.cut:.0%} of its multiply-adds, nothing trained after it", style="dim")
    left = cuts(recipe, dense)
    console.print(cuts_table(left, dense))
    console.rule(f"fine-tuning with ChannelPruning, down by {recipe.amount:.0%}", style="dim")
    pruned = fine_tune(recipe, dense, console)
    console.rule("what it costs now", style="dim")
    runs = {"dense": dense, "pruned": pruned}
    report = compare(recipe, runs, left)
    save_json(report, out / "report.json")
    save_figures(out, recipe, runs)
    pruned.detector.trainer.save_checkpoint(out / "pruned.ckpt")
    for name, run in runs.items():
        export_detector(run.detector.model, out / f"{name}.pt")
    console.print(comparison_table(report))
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
