import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lit_prune.common.names import count_parameters
from lit_prune.demo import Recipe, run_demo
from lit_prune.demo.runs import train
from lit_prune.demo.settings import PLAIN
from lit_prune.yolo import LitYOLO
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
        "all at 96×64 pixels; latency: cpu, 2 threads",
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


_SMALL = Recipe(epochs=4, prune_at=(1, 2), scenes=64, batch_size=16, image_size=64)


def test_the_plain_recipe_prunes_as_the_readme_does():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    line = f'ChannelPruning(amount={PLAIN.amount}, epochs={list(PLAIN.prune_at)}, selection="macs")'
    assert line in readme
    assert f"max_epochs={PLAIN.epochs}" in readme
    assert not PLAIN.factors
    assert PLAIN.round_to is None


@pytest.mark.slow
def test_a_small_demo_from_end_to_end(tmp_path):
    console = Console(width=120, file=io.StringIO())
    report = run_demo(tmp_path, _SMALL, console)
    text = console.file.getvalue()

    assert json.loads((tmp_path / "report.json").read_text())["events"] == json.loads(json.dumps(report["events"]))
    for name in ("dense", "pruned"):
        assert {"params", "macs", "map", "map_50", "latency_ms"} <= set(report[name])
        assert report[name]["epochs"] == 4
        assert report[name]["map"] == report["history"][name][-1]["map"]
    assert [event["epoch"] for event in report["events"]] == [1, 2]
    assert report["pruned"]["macs"] == report["events"][-1]["macs"][1] < 0.6 * report["dense"]["macs"]
    dense, pruned = report["history"]["dense"], report["history"]["pruned"]
    assert [epoch["epoch"] for epoch in dense] == [epoch["epoch"] for epoch in pruned] == [0, 1, 2, 3]
    assert dense[0] == pruned[0]
    assert {epoch["macs"] for epoch in dense} == {report["dense"]["macs"]} == {report["events"][0]["macs"][0]}
    for name in ("detections.png", "channels.png", "history.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    for name in ("dense", "pruned"):
        assert count_parameters(LitYOLO(str(tmp_path / f"{name}.pt")).model) == report[name]["params"]

    assert "Before and after" in text
    line = next(line for line in text.splitlines() if "python -c" in line)
    code = line.partition('"')[2].rpartition('"')[0]
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "boxes" in done.stdout


@pytest.mark.slow
def test_the_dense_run_is_that_of_a_training_from_the_start(tmp_path):
    train(_SMALL, prune=True, snapshot=tmp_path / "before.ckpt")
    rest = train(_SMALL, prune=False, start=tmp_path / "before.ckpt")
    whole = train(_SMALL, prune=False)

    assert rest.epochs == whole.epochs[1:]
    weights, expected = rest.detector.model.state_dict(), whole.detector.model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
