import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from lit_prune.demo import Recipe, run_demo
from lit_prune.yolo.comparison import comparison_table


def _measured(**changes):
    latency = {"median_ms": 10.0, "batch_size": 1, "image_size": (96, 64), "threads": 2, "device": "cpu", "repeats": 30}
    return {
        "epochs": 8,
        "params": 3_000_000,
        "macs": 91_000_000,
        "map": 0.8,
        "map_50": 0.95,
        "latency": [latency],
    } | changes


def test_the_table_compares():
    faster = dict(_measured()["latency"][0], median_ms=4.0)
    report = {"dense": _measured(), "pruned": _measured(macs=45_500_000, map=0.805, latency=[faster], epochs=24)}
    console = Console(width=100, file=io.StringIO())
    console.print(comparison_table(report))
    text = console.file.getvalue()

    for part in (
        "after 8 epochs",
        "after 24 epochs",
        "91.0 M",
        "45.5 M",
        "-50%",
        "+0.005",
        "10.0 ms",
        "4.0 ms",
        "2.50× faster",
        "96×64, cpu, 2 threads",
    ):
        assert part in text


def test_a_recipe_moves_its_events_with_its_length():
    recipe = Recipe(epochs=24, prune_at=(6, 9, 12))

    assert recipe.scaled_to(24) == recipe
    assert recipe.scaled_to(8).prune_at == (2, 3, 4)
    assert recipe.scaled_to(48).prune_at == (12, 18, 24)
    assert recipe.scaled_to(4).prune_at == (1, 2, 3)
    with pytest.raises(ValueError, match=r"prunes 3 times, .* needs at least 4 epochs, but got 3"):
        recipe.scaled_to(3)


def _run(folder, **options):
    recipe = Recipe(epochs=4, prune_at=(1, 2), scenes=64, batch_size=16, image_size=64)
    console = Console(width=120, file=io.StringIO())
    return run_demo(folder, recipe, console, **options), console.file.getvalue()


@pytest.mark.slow
def test_a_small_demo_from_end_to_end(tmp_path):
    report, text = _run(tmp_path)

    assert json.loads((tmp_path / "report.json").read_text())["events"] == json.loads(json.dumps(report["events"]))
    for name in ("dense", "pruned"):
        assert {"params", "macs", "map", "map_50", "latency_ms"} <= set(report[name])
    assert [event["epoch"] for event in report["events"]] == [1, 2]
    assert report["pruned"]["macs"] == report["events"][-1]["macs"][1] < 0.6 * report["dense"]["macs"]
    assert report["dense"]["macs"] == report["events"][0]["macs"][0]
    # The dense network is the one right before the first event.
    assert len(report["history"]["pruned"]) == 4
    assert report["history"]["dense"] == report["history"]["pruned"][:1]
    assert report["dense"]["map"] == report["history"]["pruned"][0]["map"]
    for name in ("detections.png", "channels.png", "history.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"

    assert "Before and after" in text
    assert "the one after epoch 1, right before its first channel goes" in text.replace("\n", " ")
    line = next(line for line in text.splitlines() if "python -c" in line)
    code = line.partition('"')[2].rpartition('"')[0]
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "boxes" in done.stdout


@pytest.mark.slow
def test_a_twin_shares_what_comes_before_the_first_event(tmp_path):
    report, _ = _run(tmp_path, twin=True)

    dense, pruned = report["history"]["dense"], report["history"]["pruned"]
    assert [epoch["epoch"] for epoch in dense] == [epoch["epoch"] for epoch in pruned] == [0, 1, 2, 3]
    assert dense[0] == pruned[0]
    assert {epoch["macs"] for epoch in dense} == {report["dense"]["macs"]}
    assert pruned[-1]["macs"] < report["dense"]["macs"]
