"""Take the figures and the numbers of a demo's folder, and of its benchmark over seeds, into the README.

make demo && .venv/bin/python -m benchmarks.demo_baseline && .venv/bin/python docs/refresh.py demo
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from lit_prune.demo.settings import Recipe
from lit_prune.report.tables import human

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BENCHMARKS = HERE.parent / "benchmarks"
FIGURES = {"detections.png": 1600, "history.png": 1100, "channels.png": 1600}
LIMIT = 500_000


def shrink_figure(source: Path, target: Path, width: int) -> None:
    """Scale a figure down, and give it a palette with as many colours as its size allows."""
    image = Image.open(source).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    for colours in (256, 128, 64, 32):
        palette = image.quantize(colours)
        # Pillow dithers only to a palette that is given.
        image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
        if target.stat().st_size < LIMIT:
            return
    raise SystemExit(f"{target} stays above {LIMIT} bytes; lower its width.")


def headline(report: dict[str, Any], baseline: dict[str, Any]) -> str:
    """What the demo shows: what a cut leaves, what fine-tuning ends at, the callback, and all that over seeds."""
    dense, pruned, recipe = report["dense"], report["pruned"], report["recipe"]
    _check_recipe("The demo", recipe)
    _check_recipe("The benchmark", baseline["recipe"])
    size = recipe["image_size"]
    what = (
        f"One run of the demo: {recipe['model'].removesuffix('.yaml')} learns from scratch to find handwritten digits, "
        f"{recipe['epochs']} epochs of {recipe['scenes']:,} scenes at {size}×{size}, to an mAP50-95 of "
        f"{dense['map']:.3f}. Then it is cut by {recipe['cut']:.0%} of its multiply-adds. What is left at once, with "
        f"nothing trained:"
    )
    left = [f"| {_by(sliced)} | {sliced['map']:.3f} | {repaired['map']:.3f} |" for sliced, repaired in _pairs(report)]
    then = (
        f"Then {recipe['fine_tuning']} epochs of fine-tuning, in which the callback takes half of the multiply-adds, "
        f"beside the dense network at the end of its training:"
    )
    rows = []
    for name, key in (("multiply-adds", "macs"), ("parameters", "params")):
        rows.append((name, human(dense[key]), human(pruned[key]), f"−{1 - pruned[key] / dense[key]:.0%}"))
    for name, key in (("mAP50-95", "map"), ("mAP50", "map_50")):
        rows.append((name, f"{dense[key]:.3f}", f"{pruned[key]:.3f}", f"{pruned[key] - dense[key]:+.3f}"))
    for before, after in zip(dense["latency"], pruned["latency"], strict=True):
        old, new = before["median_ms"], after["median_ms"]
        threads = f", {before['threads']} thread{'s' * (before['threads'] != 1)}" if before["device"] == "cpu" else ""
        name = f"latency, batch {before['batch_size']} ({before['device']}{threads})"
        rows.append((name, f"{old:.1f} ms", f"{new:.1f} ms", f"{old / new:.2f}× faster"))
    runs = baseline["runs"]
    alike = {side: _spread([run[side]["map"] for run in runs]) for side in ("dense", "fine_tuned", "pruned")}
    change = _spread([run["pruned"]["map"] - run["fine_tuned"]["map"] for run in runs])
    seeds = f"{len(runs)} seed{'s' * (len(runs) != 1)}"
    spread = (
        f"Single runs scatter. Over {seeds}, mAP50-95 is {alike['dense']} dense and {alike['pruned']} pruned "
        f"(mean ± standard deviation). A dense network that is fine-tuned for as long comes to {alike['fine_tuned']}, "
        f"so that the pruning costs {change} ([JSON](benchmarks/demo_baseline.json))."
    )
    lines = [
        textwrap.fill(what, 120),
        "",
        "| channels go by | mAP50-95, sliced alone | repaired |",
        "|---|---:|---:|",
        *left,
        "",
        textwrap.fill(then, 120),
        "",
        "| | dense | pruned | |",
        "|---|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(_code(recipe), "", textwrap.fill(spread, 120)),
    ]
    return re.sub(r" -(?=\d)", " −", "\n".join(lines))


def _pairs(report: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(report["cuts"][::2], report["cuts"][1::2], strict=True))


def _by(cut: dict[str, Any]) -> str:
    return {
        ("magnitude", "uniform"): "magnitude, the same ratio of every layer",
        ("taylor", "global"): "what the loss would lose, over all layers",
    }[cut["criterion"], cut["spread"]]


def _check_recipe(what: str, given: dict[str, Any]) -> None:
    """Raise SystemExit unless what was run is the package's recipe, with whatever seed."""
    if given != asdict(replace(Recipe(), seed=given["seed"])):
        raise SystemExit(f"{what} was made by another recipe than that of the package; run it again.")


def _spread(values: list[float]) -> str:
    """Mean and standard deviation; of one value itself."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _code(recipe: dict[str, Any]) -> str:
    """The callback of a recipe, as a reader would write it."""
    return f"""```python
from lit_prune import ChannelPruning
from lit_prune.schedule import AtSteps
from lit_prune.select import MacsBudget

ChannelPruning(
    {recipe["amount"]},
    AtSteps({Recipe(**recipe).events}),
    criterion="taylor",
    selection=MacsBudget("global"),
    repair=True,
    round_to={recipe["round_to"]},
)
```"""


def main() -> None:
    """Read the arguments, write figures and README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `lit-prune demo --out` wrote")
    folder = parser.parse_args().folder
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for name, width in FIGURES.items():
        shrink_figure(folder / name, HERE / name, width)
    (HERE / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    text_of_demo = headline(report, json.loads((BENCHMARKS / "demo_baseline.json").read_text(encoding="utf-8")))
    block = f"<!-- demo: written by docs/refresh.py -->\n{text_of_demo}\n<!-- end of demo -->"
    changed, count = re.subn(r"<!-- demo: .*?<!-- end of demo -->", lambda _: block, text, flags=re.S)
    if count != 1:
        raise SystemExit("README.md has no place for the demo's numbers: two comments, 'demo:' and 'end of demo'.")
    README.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
