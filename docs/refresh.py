"""Take the pictures and the numbers of a demo's folder into the README.

make demo && .venv/bin/python docs/refresh.py demo
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image

from lit_prune.report import human

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
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


def headline(report: dict[str, Any]) -> str:
    """The demo's result in two sentences and a table."""
    dense, pruned, recipe = report["dense"], report["pruned"], report["recipe"]
    cut = 1 - pruned["macs"] / dense["macs"]
    rows = [
        ("multiply-adds", human(dense["macs"]), human(pruned["macs"]), f"−{cut:.0%}"),
        (
            "parameters",
            human(dense["params"]),
            human(pruned["params"]),
            f"−{1 - pruned['params'] / dense['params']:.0%}",
        ),
        ("mAP50-95", f"{dense['map']:.3f}", f"{pruned['map']:.3f}", f"{pruned['map'] - dense['map']:+.3f}"),
        ("mAP50", f"{dense['map_50']:.3f}", f"{pruned['map_50']:.3f}", f"{pruned['map_50'] - dense['map_50']:+.3f}"),
    ]
    for before, after in zip(dense["latency"], pruned["latency"], strict=True):
        old, new = before["median_ms"], after["median_ms"]
        threads = f", {before['threads']} thread{'s' * (before['threads'] != 1)}" if before["device"] == "cpu" else ""
        name = f"latency, batch {before['batch_size']} ({before['device']}{threads})"
        rows.append((name, f"{old:.1f} ms", f"{new:.1f} ms", f"{old / new:.2f}× faster"))
    events = ", ".join(str(epoch) for epoch in recipe["prune_at"])
    size = recipe["image_size"]
    text = (
        f"{recipe['model'].removesuffix('.yaml')}, {recipe['epochs']} epochs from scratch on {recipe['scenes']:,} "
        f"scenes of handwritten digits at {size}×{size}, pruned at the start of epochs {events}, beside its dense "
        f"twin, which shares the epochs before and has the same schedule:"
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
    block = f"<!-- demo: written by docs/refresh.py -->\n{headline(report)}\n<!-- end of demo -->"
    changed, count = re.subn(r"<!-- demo: .*?<!-- end of demo -->", lambda _: block, text, flags=re.S)
    if count != 1:
        raise SystemExit("README.md has no place for the demo's numbers: two comments, 'demo:' and 'end of demo'.")
    README.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
