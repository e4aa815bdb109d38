import io
import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from lit_prune.common.names import count_parameters
from lit_prune.demo import Recipe, run_demo
from lit_prune.demo.outcome import cuts_table
from lit_prune.demo.runs import Cut, Run, cuts, fine_tune, train
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


_SMALL = Recipe(epochs=3, fine_tuning=1, scenes=64, batch_size=16, image_size=64)


def test_a_recipe_has_steps_before_its_events_and_after():
    assert Recipe().events == [16, 32]
    for recipe in (_SMALL, Recipe(fine_tuning=1, scenes=32), Recipe(fine_tuning=2, scenes=200, batch_size=8)):
        steps = recipe.fine_tuning * -(-recipe.scenes // recipe.batch_size)
        assert 0 < min(recipe.events) <= max(recipe.events) <= max(1, steps // 2)


def test_a_recipe_that_makes_no_sense_is_refused():
    for wrong in ({"epochs": 0}, {"fine_tuning": 0}, {"cut": 30}, {"amount": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Recipe(**wrong)


def test_the_table_of_cuts_shows_what_repair_gives_back():
    left = [
        Cut("magnitude", "uniform", repaired, score, 63_700_000) for repaired, score in ((False, 0.1), (True, 0.75))
    ]
    dense = Run(None, [{"epoch": 23, "map": 0.807, "map_50": 0.96, "macs": 91_000_000, "params": 3_000_000}])
    console = Console(width=100, file=io.StringIO())
    console.print(cuts_table(left, dense))
    text = console.file.getvalue()
    for part in ("magnitude, uniform", "0.100", "0.750", "0.807", "63.7 M", "91.0 M"):
        assert part in text


@pytest.fixture(scope="module")
def whole():
    """A dense run of the small recipe."""
    return train(_SMALL)


@pytest.mark.slow
def test_cuts_leave_the_network_as_it_is(whole):
    before = {name: value.clone() for name, value in whole.detector.state_dict().items()}
    left = cuts(_SMALL, whole)
    after = whole.detector.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [(cut.criterion, cut.repaired) for cut in left] == [
        ("magnitude", False),
        ("magnitude", True),
        ("taylor", False),
        ("taylor", True),
    ]
    assert all(cut.macs <= 0.7 * whole.epochs[-1]["macs"] for cut in left)


@pytest.mark.slow
def test_fine_tuning_without_a_pruning_is_that_of_the_same_network(whole):
    run = fine_tune(_SMALL, whole, prune=False)
    assert [epoch["epoch"] for epoch in run.epochs] == [3]
    assert run.epochs[-1]["macs"] == whole.epochs[-1]["macs"]
    assert not run.events


@pytest.mark.slow
def test_a_small_demo_from_end_to_end(tmp_path):
    console = Console(width=120, file=io.StringIO())
    report = run_demo(tmp_path, _SMALL, console)
    text = console.file.getvalue()

    assert json.loads((tmp_path / "report.json").read_text())["events"] == json.loads(json.dumps(report["events"]))
    for name, epochs in (("dense", 3), ("pruned", 4)):
        assert {"params", "macs", "map", "map_50", "latency_ms"} <= set(report[name])
        assert report[name]["epochs"] == epochs
        assert report[name]["map"] == report["history"][name][-1]["map"]
    assert report["pruned"]["macs"] == report["events"][-1]["macs"][1] <= 0.5 * report["dense"]["macs"]
    assert [epoch["epoch"] for epoch in report["history"]["dense"]] == [0, 1, 2]
    assert [epoch["epoch"] for epoch in report["history"]["pruned"]] == [3]
    assert len(report["cuts"]) == 4
    for name in ("detections.png", "channels.png", "history.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    for name in ("dense", "pruned"):
        assert count_parameters(LitYOLO(str(tmp_path / f"{name}.pt")).model) == report[name]["params"]

    assert "Right after the cut" in text
    assert "Before and after" in text
    line = next(line for line in text.splitlines() if "python -c" in line)
    code = line.partition('"')[2].rpartition('"')[0]
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "boxes" in done.stdout
