"""Take the pictures and the numbers of a demo's folder, and of its benchmark over seeds, into the README.

make demo && .venv/bin/python -m benchmarks.demo_baseline && .venv/bin/python docs/refresh.py demo
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image

from lit_prune.report import human

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BASELINE = HERE.parent / "benchmarks" / "demo_baseline.json"
PICTURES = {"detections.png": 1600, "history.png": 1100, "channels.png": 1600}
LIMIT = 500_000


def shrink_picture(source: Path, target: Path, width: int) -> None:
    """Scale a picture down, and give it a palette with as many colours as its size allows."""
    picture = Image.open(source).convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    for colours in (256, 128, 64, 32):
        palette = picture.quantize(colours)
        # Pillow dithers only to a palette that is given.
        picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
        if target.stat().st_size < LIMIT:
            return
    raise SystemExit(f"{target} stays above {LIMIT} bytes; lower its width.")


def headline(report: dict[str, Any], baseline: dict[str, Any]) -> str:
    """What the demo shows, in two sentences and a table: costs of its run, accuracy over the benchmark's seeds."""
    dense, pruned, recipe = report["dense"], report["pruned"], report["recipe"]
    if recipe != baseline["recipe"] | {"seed": recipe["seed"]}:
        raise SystemExit(f"{BASELINE.name} was made by another recipe than the demo; run the benchmark again.")
    rows = []
    for name, key in (("multiply-adds", "macs"), ("parameters", "params")):
        rows.append((name, human(dense[key]), human(pruned[key]), f"−{1 - pruned[key] / dense[key]:.0%}"))
    for name, key in (("mAP50-95", "map"), ("mAP50", "map_50")):
        means = {side: statistics.mean(run[side][key] for run in baseline["runs"]) for side in ("dense", "pruned")}
        change = means["pruned"] - means["dense"]
        rows.append((name, f"{means['dense']:.3f}", f"{means['pruned']:.3f}", f"{change:+.3f}"))
    for before, after in zip(dense["latency"], pruned["latency"], strict=True):
        old, new = before["median_ms"], after["median_ms"]
        threads = f", {before['threads']} thread{'s' * (before['threads'] != 1)}" if before["device"] == "cpu" else ""
        name = f"latency, batch {before['batch_size']} ({before['device']}{threads})"
        rows.append((name, f"{old:.1f} ms", f"{new:.1f} ms", f"{old / new:.2f}× faster"))
    events = ", ".join(str(epoch) for epoch in recipe["prune_at"])
    size = recipe["image_size"]
    text = (
        f"{recipe['model'].removesuffix('.yaml')}, {recipe['epochs']} epochs from scratch on {recipe['scenes']:,} "
        f"scenes of handwritten digits at {size}×{size}, pruned at the start of epochs {events}. The dense network is "
        f"trained as long, by the same schedule; accuracies are means over {len(baseline['runs'])} seeds:"
    )
    lines = [
        textwrap.fill(text, 120),
        "",
        "| | dense | pruned | |",
        "|---|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return re.sub(r" -(?=\d)", " −", "\n".join(lines))


def main() -> None:
    """Read the arguments, write pictures and README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `lit-prune demo --out` wrote")
    folder = parser.parse_args().folder
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for name, width in PICTURES.items():
        shrink_picture(folder / name, HERE / name, width)
    (HERE / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    block = f"<!-- demo: written by docs/refresh.py -->\n{headline(report, baseline)}\n<!-- end of demo -->"
    changed, count = re.subn(r"<!-- demo: .*?<!-- end of demo -->", lambda _: block, text, flags=re.S)
    if count != 1:
        raise SystemExit("README.md has no place for the demo's numbers: two comments, 'demo:' and 'end of demo'.")
    README.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
