import pytest
import torch
from lightning.pytorch import Trainer

from lit_prune import ChannelGraph, shrink_
from lit_prune.yolo import LitYOLO, build_detector
from lit_prune.yolo.export import export_detector
from lit_prune.yolo.networks import adopt_widths_


def _save(network, path):
    torch.save({"model": network, "train_args": {}}, path)
    return str(path)


def _pruned(name="yolov8n.yaml", **options):
    network = build_detector(name, **options).eval()
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    return shrink_(network, graph.plan({graph.groups[0].name: [0, 3], graph.groups[1].name: [5]}))


def _answer(network):
    with torch.no_grad():
        return network.eval()(torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64))[0]


def test_a_detector_is_ready_to_train():
    network = build_detector("yolov8n.yaml", num_classes=7)

    assert network.model[-1].nc == network.yaml["nc"] == 7
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.22.dfl.conv.weight"]  # fixed by design
    assert network.args.box > 0


@pytest.mark.parametrize("name", ["yolov10n.yaml", "yolo26n.yaml"])
def test_end_to_end_heads_answer_end_to_end(name):
    network = build_detector(name, num_classes=3).eval()

    assert network.end2end
    assert _answer(network).shape[-1] == 6


def test_weights_come_back_with_their_names(tmp_path):
    network = build_detector("yolov8n.yaml", num_classes=3)
    network.names = {0: "cat", 1: "dog", 2: "cow"}
    path = _save(network, tmp_path / "net.pt")

    loaded = build_detector(path)

    assert loaded.names == network.names
    assert torch.equal(_answer(loaded), _answer(network))
    assert sum(p.requires_grad for p in loaded.parameters()) == sum(p.requires_grad for p in network.parameters())


def test_weights_with_another_number_of_classes_keep_the_body(tmp_path):
    network = build_detector("yolov8n.yaml", num_classes=3)
    path = _save(network, tmp_path / "net.pt")

    loaded = build_detector(path, num_classes=5)

    assert loaded.model[-1].nc == 5
    before, after = network.state_dict(), loaded.state_dict()
    assert torch.equal(before["model.0.conv.weight"], after["model.0.conv.weight"])
    assert after["model.22.cv3.0.2.weight"].shape[0] == 5


def test_a_pruned_file_is_built_with_its_shapes(tmp_path):
    network = _pruned(num_classes=3)
    path = _save(network, tmp_path / "pruned.pt")

    loaded = build_detector(path)

    assert loaded.model[0].conv.out_channels == 14
    assert torch.equal(_answer(loaded), _answer(network))


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo26n.yaml"])
def test_another_number_of_classes_changes_the_last_convolutions_only(name, tmp_path):
    network = _pruned(name, num_classes=3)

    loaded = build_detector(_save(network, tmp_path / "pruned.pt"), num_classes=200)

    before, after = network.state_dict(), loaded.state_dict()
    fresh = {key for key in after if not torch.equal(before[key], after[key])}
    number = len(network.model) - 1
    branches = ["cv3", "one2one_cv3"] if name == "yolo26n.yaml" else ["cv3"]
    last = [f"model.{number}.{branch}.{level}.2" for branch in branches for level in range(3)]
    assert fresh == {f"{layer}.{end}" for layer in last for end in ("weight", "bias")}
    assert all(after[key].shape == (200, *before[key].shape[1:]) for key in fresh)
    assert all(after[f"{layer}.weight"].std() > 0 and after[f"{layer}.weight"].isfinite().all() for layer in last)
    assert all((after[f"{layer}.bias"] < -3).all() for layer in last)  # objects are rare, as Ultralytics sets it
    assert _answer(loaded).isfinite().all()


def test_classes_of_the_same_name_keep_their_rows(tmp_path):
    network = build_detector("yolov8n.yaml", num_classes=3)
    network.names = {0: "cat", 1: "dog", 2: "cow"}
    target = build_detector("yolov8n.yaml", num_classes=2)
    target.names = {0: "cow", 1: "bird"}
    adopt_widths_(target, network)
    target.load(network, verbose=False)
    rows, known = (each.model[-1].cv3[0][-1].weight for each in (target, network))
    assert torch.equal(rows[0], known[2])
    assert not any(torch.equal(rows[1], row) for row in known)


@pytest.mark.parametrize("num_classes", [None, 5])
def test_a_checkpoint_of_ours(num_classes, tmp_path):
    trained = LitYOLO("yolov8n.yaml", num_classes=3)
    trained.model.names = {0: "cat", 1: "dog", 2: "cow"}
    trained.model.load_state_dict(build_detector("yolov8n.yaml", num_classes=3).state_dict())
    graph = ChannelGraph.trace(trained.model.eval(), torch.zeros(1, 3, 64, 64))
    shrink_(trained.model, graph.plan({graph.groups[0].name: [0, 3]}))
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.connect(trained)
    trainer.save_checkpoint(tmp_path / "net.ckpt")

    loaded = build_detector(str(tmp_path / "net.ckpt"), num_classes)

    assert loaded.model[0].conv.out_channels == 14
    assert loaded.model[-1].nc == (num_classes or 3)
    assert torch.equal(loaded.model[5].conv.weight, trained.model.model[5].conv.weight)
    if num_classes is None:
        assert torch.equal(_answer(loaded), _answer(trained.model))
        assert loaded.names == trained.model.names


def test_a_configuration_as_a_dict_is_left_as_it_is():
    config = build_detector("yolov8n.yaml").yaml
    copy = dict(config)

    assert build_detector(config, num_classes=4).model[-1].nc == 4
    assert config == copy


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            "yolov8m.yml2",
            ValueError,
            r"must end in .yaml, .pt or .ckpt, but got .*l2'. Did you mean .*yolov8m.yaml",
        ),
        ("yolo8n.yaml", FileNotFoundError, r"no configuration 'yolo8n.yaml'.* Did you mean .*yolov8n.yaml"),
        ("yolov8s-world.yaml", ValueError, "trains networks of the tasks .* is WorldDetect"),
        ("nowhere/net.pt", FileNotFoundError, "There is no file 'nowhere/net.pt'"),
        ("nowhere/net.ckpt", FileNotFoundError, "There is no file 'nowhere/net.ckpt'"),
        ("yolov8q.pt", FileNotFoundError, r"Ultralytics offers none of this name. Did you mean .*yolov8"),
    ],
)
def test_unknown_models(model, error, message):
    with pytest.raises(error, match=message):
        build_detector(model)


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "text.pt"
    path.write_text("not weights")
    with pytest.raises(ValueError, match="cannot be read as weights by Ultralytics"):
        build_detector(str(path))


def test_a_fused_file(tmp_path):
    network = build_detector("yolov8n.yaml", num_classes=3).eval().fuse()
    with pytest.raises(ValueError, match="holds no network that can be trained"):
        build_detector(_save(network, tmp_path / "fused.pt"))


def test_wrong_number_of_classes():
    with pytest.raises(ValueError, match="num_classes must be at least 1, but got 0"):
        build_detector("yolov8n.yaml", num_classes=0)


def test_what_is_drawn_again_of_weights_is_said(tmp_path, caplog):
    network = build_detector("yolov8n-pose.yaml", num_classes=2, kpt_shape=[4, 3])
    network.names = {0: "hand", 1: "foot"}
    path = str(export_detector(network, tmp_path / "net.pt"))
    with caplog.at_level("INFO"):
        build_detector(path)
        build_detector(path, num_classes=2, kpt_shape=[4, 3])
        assert "was asked for" not in caplog.text
        build_detector(path, num_classes=1, kpt_shape=[5, 2])
    assert "num_classes=1 was asked for, but the weights are for 2 classes (hand, foot)" in caplog.text
    assert "kpt_shape=[5, 2] was asked for, but the weights are for kpt_shape [4, 3]" in caplog.text
