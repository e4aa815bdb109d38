"""The examples run, on less data."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


def test_a_classifier_of_torchvision():
    pruning = example("classifier")(examples=160, max_epochs=4)
    assert pruning.events[-1]["macs"][1] <= 0.5 * pruning.events[0]["macs"][0]


def test_parts_of_ones_own():
    pruning = example("own_criterion")(scenes=32, max_epochs=2)
    assert [event["epoch"] for event in pruning.events] == [1]
    assert pruning.events[0]["macs"][1] <= 0.6 * pruning.events[0]["macs"][0]


def test_data_of_ones_own():
    pruning = example("own_data")(examples=160, max_epochs=4)
    assert pruning.events[-1]["channels"] == {"net.0": [24, 16], "net.3": [48, 32]}


def test_a_detector_on_a_data_yaml_goes_in_and_out(tmp_path):
    from ultralytics import YOLO

    arguments = "--image-size 64 --epochs 6 --batch-size 16 --out".split()
    pruning = example("detector")([*arguments, str(tmp_path / "pruned.pt")])
    before, after = pruning.events[0]["macs"][0], pruning.events[-1]["macs"][1]
    assert after <= 0.67 * before
    network = YOLO(tmp_path / "pruned.pt").model
    assert sum(parameter.numel() for parameter in network.parameters()) == pruning.events[-1]["params"][1]


@pytest.mark.parametrize("name", ["plain_loop", "fabric", "accelerate_loop"])
def test_without_a_trainer(name):
    network = example(name)(steps=4)
    assert isinstance(network[0], torch.nn.Conv2d)
    assert network[0].out_channels == 16 or network[3].out_channels == 40


def test_every_example_is_run_by_some_test():
    files = {path.stem for path in (ROOT / "examples").glob("*.py")}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in sorted(files) if f'"{name}"' not in tests and f"{name}.py" not in tests]


@pytest.mark.slow
def test_two_processes():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "multi_gpu.py", "--cpu", "2", "--scenes", "64"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Pruned at epoch") == 2
