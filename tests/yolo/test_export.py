import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from lit_prune import ChannelGraph, MissingPackageError, shrink_
from lit_prune.yolo import LitYOLO, build_detector
from lit_prune.yolo.evaluation import find_objects
from lit_prune.yolo.export import export_detector, export_formats, load_detector, named_for


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build_detector("yolov8n.yaml", num_classes=10)
    with torch.no_grad():
        for _ in range(30):
            network(torch.rand(2, 3, 64, 64))  # normalizations that do something
    graph = ChannelGraph.trace(network.eval(), torch.zeros(1, 3, 64, 64))
    return shrink_(network, graph.plan({group.name: list(range(group.size // 4)) for group in graph.groups})).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64)


def _answer(network, images):
    with torch.no_grad():
        return network(images)[0]


def test_a_plain_file_opens_and_validates_without_lit_prune(network, images, digits, tmp_path):
    network.criterion = network.init_criterion()
    path = export_detector(network, tmp_path / "deep" / "net.pt")
    torch.save(images, tmp_path / "images")
    code = f"""
import sys, torch
sys.modules["lit_prune"] = None  # importing it would fail
from ultralytics import YOLO
yolo = YOLO({str(path)!r})
images = torch.load({str(tmp_path / "images")!r})
with torch.no_grad():
    torch.save(yolo.model(images)[0], {str(tmp_path / "answer")!r})
found = yolo(images, imgsz=64, conf=0.0, iou=0.7, verbose=False)[0].boxes
torch.save([found.xyxy, found.conf, found.cls], {str(tmp_path / "found")!r})
scores = yolo.val(data={str(digits)!r}, imgsz=64, plots=False, project={str(tmp_path)!r}, verbose=False)
assert 0 <= scores.box.map <= 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)

    assert torch.equal(torch.load(tmp_path / "answer"), _answer(network, images))
    (expected,) = find_objects(network, images, confidence=0.0, iou=0.7)
    boxes, scores, labels = torch.load(tmp_path / "found")
    # Theirs are of the fused network. Boxes as normalised's side.
    torch.testing.assert_close(scores, expected["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes / 64, expected["boxes"] / 64, atol=1e-5, rtol=0)
    assert torch.equal(labels.long(), expected["labels"])
    assert hasattr(network, "criterion")


def test_a_plain_file_trains_on(network, tmp_path):
    path = export_detector(network, tmp_path / "net.pt")
    assert LitYOLO(str(path)).model.model[0].conv.out_channels == network.model[0].conv.out_channels


def test_a_fused_network_finds_the_same(network):
    images = torch.rand(3, 3, 64, 64)
    fused = deepcopy(network).fuse(verbose=False)

    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    with torch.no_grad():
        ours, theirs = (find_objects(each, images, confidence=0.0, iou=0.7) for each in (network, fused))
    for one, other in zip(ours, theirs, strict=True):
        assert len(one["boxes"])
        for name in ("scores", "boxes", "labels"):
            torch.testing.assert_close(one[name], other[name], atol=1e-3, rtol=1e-5)


def test_onnx_computes_the_same(network, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    path = export_detector(network, tmp_path / "net.onnx", "onnx", image_size=64)

    (answer,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})

    torch.testing.assert_close(torch.from_numpy(answer), _answer(network, images), atol=1e-3, rtol=1e-4)


def test_torchscript_computes_the_same(network, images, tmp_path):
    path = export_detector(network, tmp_path / "net.torchscript", "torchscript", image_size=64)

    torch.testing.assert_close(torch.jit.load(path)(images), _answer(network, images), atol=1e-3, rtol=1e-4)
    assert network.training is False


def test_loading_what_a_trainer_saved(tmp_path):
    detector = LitYOLO("yolov8n.yaml", num_classes=3)
    import lightning

    trainer = lightning.Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.connect(detector)
    trainer.save_checkpoint(tmp_path / "net.ckpt")

    loaded = load_detector(tmp_path / "net.ckpt")

    assert not loaded.training
    assert torch.equal(loaded.model[0].conv.weight, detector.model.model[0].conv.weight)


def test_wrong_arguments(network, tmp_path):
    with pytest.raises(ValueError, match=r"format must be one of 'pt', 'torchscript', 'onnx', .* but got 'onxx'"):
        export_detector(network, tmp_path / "net.onxx", "onxx")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_detector(tmp_path / "missing.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(
        ValueError, match=r"text.ckpt can't be read as a checkpoint: it is cut short, damaged, or of another kind"
    ) as error:
        load_detector(tmp_path / "text.ckpt")
    assert "weights_only" not in str(error.value)
    for size in (100, 0, -32):
        with pytest.raises(ValueError, match=rf"multiple of 32, the network's stride, but got {size}\."):
            export_detector(network, tmp_path / "net.onnx", "onnx", image_size=size)
    with pytest.raises(ValueError, match=r"named as a file of format onnx, but .* pt: give .* onnx, or name it net.pt"):
        export_detector(network, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["text.ckpt"]


@pytest.mark.parametrize(
    ("format", "wheels"),
    [("engine", "tensorrt"), ("ncnn", "ncnn pnnx"), ("rknn", "rknn-toolkit2"), ("paddle", "paddlepaddle x2paddle")],
)
def test_missing_packages_are_named_before_anything_is_installed(format, wheels, network, tmp_path):
    with pytest.raises(MissingPackageError, match=rf"Export to {format} needs .*: pip install {wheels}$"):
        export_detector(network, tmp_path / "net", format)


def test_a_package_that_the_exporter_misses_is_named(network, tmp_path, monkeypatch):
    from ultralytics.engine.exporter import Exporter

    def miss(*_, **__):
        raise ModuleNotFoundError("No module named 'axelera'", name="axelera")

    monkeypatch.setattr(Exporter, "__call__", miss)
    with pytest.raises(MissingPackageError, match=r"Export to torchscript needs axelera .* pip install axelera$"):
        export_detector(network, tmp_path / "net", "torchscript")


def test_formats_begin_with_the_plain_file():
    assert export_formats()[0] == "pt"
    assert {"onnx", "torchscript"} <= set(export_formats())


@pytest.mark.parametrize(
    ("format", "given", "written"),
    [
        ("openvino", "net", "net_openvino_model"),
        ("openvino", "net_openvino_model", "net_openvino_model"),
        ("saved_model", "v1.2", "v1.2_saved_model"),
        ("onnx", "net", "net.onnx"),
        ("qnn", "net_qnn.onnx", "net_qnn.onnx"),
    ],
)
def test_names_end_as_ultralytics_wants_them(format, given, written):
    assert named_for(Path("deep", given), format) == Path("deep", written)


def test_a_folder_is_written_under_its_name(network, tmp_path, monkeypatch):
    from ultralytics.engine.exporter import Exporter

    def write(exporter, model):
        folder = Path(model.pt_path).with_name(f"{Path(model.pt_path).stem}_saved_model")
        folder.mkdir()
        (folder / "saved_model.pb").touch()
        return str(folder)

    monkeypatch.setattr(Exporter, "__call__", write)
    path = export_detector(network, tmp_path / "net", "saved_model", image_size=64)
    assert path == tmp_path / "net_saved_model"
    assert [file.name for file in path.iterdir()] == ["saved_model.pb"]
