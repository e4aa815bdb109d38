"""The demo from end to end."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_prune.demo.outcome import compare, save_figures
from lit_prune.demo.runs import train
from lit_prune.demo.settings import Recipe
from lit_prune.report.tables import save_json
from lit_prune.yolo.comparison import comparison_table
from lit_prune.yolo.export import export_detector
from lit_prune.yolo.package import require_ultralytics


def run_demo(out: str | Path, recipe: Recipe | None = None, console: Console | None = None) -> dict[str, Any]:
    """Train a network that is pruned meanwhile, and a dense one as long; compare them, and write what came out.

    Both are one network up to the first pruning, so these epochs are trained once.

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
    first = recipe.prune_at[0]
    console.rule("[bold]lit_prune demo")
    console.print(
        f"{recipe.model} learns from scratch to find handwritten digits: {recipe.scenes:,} scenes of "
        f"{recipe.image_size}×{recipe.image_size}, {recipe.epochs} epochs. Meanwhile it loses channels, "
        f"{len(recipe.prune_at)} times. Then a dense network is trained as long, to compare with.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before.ckpt"
        console.rule("a run with ChannelPruning", style="dim")
        pruned = train(recipe, prune=True, snapshot=before, console=console)
        console.rule(f"the dense network; its first {first} epochs are those above", style="dim")
        rest = train(recipe, prune=False, start=before, console=console)
    dense = replace(rest, epochs=pruned.epochs[:first] + rest.epochs)
    console.rule("what it costs now", style="dim")
    report = compare(recipe, {"dense": dense, "pruned": pruned})
    save_json(report, out / "report.json")
    save_figures(out, recipe, {"dense": dense, "pruned": pruned})
    pruned.detector.trainer.save_checkpoint(out / "pruned.ckpt")
    for name, run in (("dense", dense), ("pruned", pruned)):
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
