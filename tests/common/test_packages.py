"""What an extra brings is asked for when a user asks for what needs it; the message has the command."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch

from lit_prune import ChannelPruning, MissingPackageError
from lit_prune.cli.networks import load_network
from lit_prune.common.packages import require
from lit_prune.data import DigitScenes, DigitScenesDataModule, write_digits
from lit_prune.demo import run_demo
from lit_prune.report import channels_figure, history_figure
from lit_prune.select import ClusterSelection
from lit_prune.select.clustering import draw_decision
from lit_prune.yolo import LitYOLO, YOLODataModule, build_detector, draw_detections
from lit_prune.yolo.comparison import compare_networks
from lit_prune.yolo.export import export_detector
from lit_prune.yolo.metrics import BoxPrecision
from tests.absent import hidden
from tests.oldest import requirements

RECORD = {"epoch": 1, "channels": {"conv": (16, 8)}, "macs": (2, 1)}


def draw():
    draw_detections(torch.zeros(1, 3, 32, 32), [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}])


def compare():
    compare_networks("dense.pt", "pruned.pt", SimpleNamespace(), "out")


ASKS = {
    "clusters": [lambda: ChannelPruning(None, [50], selection="clusters"), ClusterSelection],
    "digits": [DigitScenes, DigitScenesDataModule, lambda: write_digits("digits")],
    "figures": [
        lambda: channels_figure([RECORD]),
        lambda: history_figure({"run": [{"epoch": 0, "map": 0.5, "macs": 1}]}, [RECORD]),
        lambda: draw_decision(None),
        draw,
        compare,
    ],
    "yolo": [
        lambda: LitYOLO("yolov8n.yaml"),
        lambda: YOLODataModule("yolov8n.yaml"),
        lambda: build_detector("yolov8n.yaml"),
        lambda: run_demo("demo"),
        lambda: write_digits("digits", task="segment"),
        BoxPrecision,
    ],
    "export": [lambda: export_detector(None, "net.onnx", "onnx")],
}
"""Extra to what can't be done without it."""

# What an extra brings to what needs it, where not all of it does: to `ASKS` by their place.
ONLY = {
    "ultralytics": [0, 1, 2, 3],
    "faster-coco-eval": [3, 5],
    "torchvision": [5],
    "opencv-python": [4],
    "onnx": [0],
}
# Needed by the version alone, or to run what was exported.
ELSEWHERE = {"lightning", "onnxruntime"}


def brought():
    """Each extra with each package that it, and no other of its own, brings; and what Ultralytics brings."""
    core = {each.name for each in requirements()} - {"lightning"}
    for extra in ASKS:
        for name in {each.name for each in requirements(extra)} - core:
            if extra != "yolo" or name not in {each.name for each in requirements("digits", "figures")} - {"lightning"}:
                yield extra, name
    yield "yolo", "opencv-python"


CASES = sorted(
    (extra, name, place)
    for extra, name in brought()
    if name not in ELSEWHERE
    for place in ONLY.get(name, range(len(ASKS[extra])))
)


@pytest.mark.parametrize(("extra", "name", "place"), CASES)
def test_a_missing_package_is_named_with_the_command_that_brings_it(extra, name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = re.escape(f"Install what is missing with: pip install 'lit-prune[{extra}]'")
    with hidden(name), pytest.raises(MissingPackageError, match=rf" needs .*\b{name} \(.*\)\. {command}") as error:
        ASKS[extra][place]()
    assert ("AGPL-3.0" in str(error.value)) == (name == "ultralytics" or (place == 3 and extra == "yolo"))
    assert not [*tmp_path.iterdir()]


def test_every_package_of_an_extra_is_asked_for():
    asked = {name for _, name, _ in CASES}
    assert {name for _, name in brought()} - ELSEWHERE == asked


@pytest.mark.parametrize("extra", ["clusters", "digits", "figures"])
def test_the_other_extras_are_not_asked_for(extra):
    mine = {each.name for each in requirements(extra)}
    other = "matplotlib" if extra != "figures" else "kmedoids"
    assert other not in mine
    with hidden(other):
        if extra == "clusters":
            ClusterSelection()
        elif extra == "digits":
            DigitScenes(scenes=1, image_size=64)
        else:
            channels_figure([RECORD])


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_networks_of_other_packages(name):
    with hidden(name), pytest.raises(MissingPackageError, match=rf"^{name}:resnet18 needs .*: pip install {name}$"):
        load_network(f"{name}:resnet18")


def test_one_that_is_broken_is_told_from_one_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_wheel.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"broken-wheel \(cannot be imported: libGL\.so\.1: cannot open"):
        require("This", "broken-wheel:broken_wheel")
    # Mended meanwhile, in the same process.
    (tmp_path / "broken_wheel.py").write_text("")
    sys.modules.pop("broken_wheel", None)
    require("This", "broken-wheel:broken_wheel")


def test_another_wheel_with_the_same_module_will_do():
    require("This", "opencv-python-of-another-name:cv2")


def test_one_that_is_too_old_is_named_with_its_version():
    with pytest.raises(MissingPackageError, match=r"^This needs numpy>=99 \(\d\S* is installed\)\. Install what is "):
        require("This", "numpy>=99")
