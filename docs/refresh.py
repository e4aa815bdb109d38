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

from lit_prune.demo.settings import PLAIN, Recipe
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


def headline(report: dict[str, Any], baseline: dict[str, Any], plain: dict[str, Any]) -> str:
    """What the demo shows: its run in a table, its recipe, and both that and the plain one over seeds."""
    dense, pruned, recipe = report["dense"], report["pruned"], report["recipe"]
    _check_recipe("The demo", recipe, Recipe())
    _check_recipe("The benchmark", baseline["recipe"], Recipe())
    _check_recipe("The benchmark of the plain recipe", plain["recipe"], PLAIN)
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
    events, size = _listed(recipe["prune_at"]), recipe["image_size"]
    what = (
        f"One run of the demo: {recipe['model'].removesuffix('.yaml')}, {recipe['epochs']} epochs from scratch on "
        f"{recipe['scenes']:,} scenes of handwritten digits at {size}×{size}, pruned at the start of epochs {events}. "
        f"The dense network is the same up to the first of them, and is trained as long, by the same schedule:"
    )
    alike = {side: _spread([run[side]["map"] for run in baseline["runs"]]) for side in ("dense", "pruned")}
    change = _spread([run["pruned"]["map"] - run["dense"]["map"] for run in baseline["runs"]])
    cut = 1 - pruned["macs"] / dense["macs"]
    spread = (
        f"Single runs scatter. With {baseline['recipe']['epochs']} epochs, over {len(baseline['runs'])} seeds, "
        f"mAP50-95 is {alike['dense']} dense and {alike['pruned']} pruned (mean ± standard deviation); the change of "
        f"a seed is {change} ([JSON](benchmarks/demo_baseline.json))."
    )
    made = (
        "This recipe was made for YOLOv8n on these scenes, by trials: exact boxes need what the early layers and the "
        "box branch know, so these lose less than others:"
    )
    ends = [run["pruned"] for run in plain["runs"]]
    seeds = "1 seed" if len(ends) == 1 else f"{len(ends)} seeds"
    saved = 1 - ends[0]["macs"] / dense["macs"]
    simple = (
        f"The ten lines below use none of that: every layer loses the same ratio, in multiples of 8, at epochs "
        f"{_listed(plain['recipe']['prune_at'])} of {plain['recipe']['epochs']}. Trained by the demo's schedule this "
        f"saves {saved:.0%} of the multiply-adds where the demo's recipe saves {cut:.0%}, and ends at an mAP50-95 of "
        f"{_spread([end['map'] for end in ends])} ({seeds}; [JSON](benchmarks/demo_baseline_plain.json))."
    )
    lines = [
        textwrap.fill(what, 120),
        "",
        "| | dense | pruned | |",
        "|---|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(textwrap.fill(spread, 120), "", textwrap.fill(made, 120), "", _code(recipe), "", textwrap.fill(simple, 120)),
    ]
    return re.sub(r" -(?=\d)", " −", "\n".join(lines))


def _check_recipe(what: str, given: dict[str, Any], recipe: Recipe) -> None:
    """Raise SystemExit unless what was run is the recipe, in whatever length and with whatever seed."""
    expected = asdict(replace(recipe.scaled_to(given["epochs"]), seed=given["seed"]))
    # JSON has lists where a recipe has tuples.
    if given != json.loads(json.dumps(expected)):
        raise SystemExit(f"{what} was made by another recipe than that of the package; run it again.")


def _listed(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _spread(values: list[float]) -> str:
    """Mean and standard deviation; of one value itself."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _code(recipe: dict[str, Any]) -> str:
    """The callback of a recipe, as a reader would write it."""
    factors = "\n".join(f'    "{pattern}": {factor},' for pattern, factor in recipe["factors"].items())
    return f"""```python
from lit_prune import ChannelPruning
from lit_prune.select import MacsBudget, Weighted

factors = {{
{factors}
}}
selection = MacsBudget(spread=Weighted(factors))
ChannelPruning({recipe["amount"]}, {recipe["prune_at"]}, selection=selection, round_to={recipe["round_to"]})
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
    seeds = (BENCHMARKS / name for name in ("demo_baseline.json", "demo_baseline_plain.json"))
    text_of_demo = headline(report, *(json.loads(path.read_text(encoding="utf-8")) for path in seeds))
    block = f"<!-- demo: written by docs/refresh.py -->\n{text_of_demo}\n<!-- end of demo -->"
    changed, count = re.subn(r"<!-- demo: .*?<!-- end of demo -->", lambda _: block, text, flags=re.S)
    if count != 1:
        raise SystemExit("README.md has no place for the demo's numbers: two comments, 'demo:' and 'end of demo'.")
    README.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
