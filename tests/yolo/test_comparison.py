import io
import json
from unittest import mock

import pytest
import torch
from rich.console import Console

from lit_prune import ChannelGraph, shrink_
from lit_prune.cost.counts import Cost
from lit_prune.data import write_digits
from lit_prune.yolo import LitYOLO, YOLODataModule, build_detector
from lit_prune.yolo.comparison import compare_networks, comparison_table
from lit_prune.yolo.export import export_detector


def _files(name, folder):
    """A network of random weights, and the same one without a quarter of its channels."""
    torch.manual_seed(0)
    network = build_detector(name, num_classes=10)
    dense = export_detector(network, folder / "dense.pt")
    graph = ChannelGraph.trace(network.eval(), torch.zeros(1, 3, 64, 64))
    shrink_(network, graph.plan({group.name: list(range(group.size // 4)) for group in graph.groups}))
    return dense, export_detector(network, folder / "pruned.pt")


def _noting(seen):
    step = LitYOLO.validation_step

    def validation_step(self, batch, batch_idx):
        seen.add(tuple(batch["img"].shape[2:]))
        step(self, batch, batch_idx)

    return validation_step


@pytest.mark.parametrize(
    ("task", "name", "scores"),
    [
        ("segment", "yolov8n-seg.yaml", ["map", "map_50", "mask_map", "mask_map_50"]),
        ("classify", "yolov8n-cls.yaml", ["accuracy", "accuracy_top5"]),
    ],
)
def test_two_networks_on_the_users_pictures(task, name, scores, tmp_path):
    path = write_digits(tmp_path / "data", scenes=2, val_scenes=4, image_size=64, task=task)
    data = YOLODataModule(str(path), image_size=64, batch_size=8, num_workers=0)

    dense, pruned = _files(name, tmp_path)
    seen = set()
    with mock.patch.object(LitYOLO, "validation_step", _noting(seen)):
        report = compare_networks(dense, pruned, data, tmp_path / "out", batches=(1,))

    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (tmp_path / "out" / "detections.png").stat().st_size > 10_000
    assert report["task"] == task
    for side in ("dense", "pruned"):
        assert all(0 <= report[side][score] <= 1 for score in scores)
        assert report[side]["latency"][0]["batch_size"] == 1
        assert report[side]["latency"][0]["image_size"] == (64, 64)
    # One size for all: letterboxing for rectangular batches would have made 96 of it.
    assert seen == {(64, 64)}
    assert report["image_size"] == 64
    assert report["dense"]["macs"] == Cost.of(LitYOLO(str(dense)).model.eval(), torch.zeros(1, 3, 64, 64)).macs
    assert report["pruned"]["macs"] < 0.8 * report["dense"]["macs"]
    assert comparison_table(report).row_count == 2 + len(scores) + 1


def test_networks_of_two_tasks_are_refused(tmp_path):
    dense = export_detector(build_detector("yolov8n.yaml", num_classes=2), tmp_path / "a.pt")
    other = export_detector(build_detector("yolov8n-cls.yaml", num_classes=2), tmp_path / "b.pt")
    with pytest.raises(ValueError, match="Only networks of one task can be compared, but these are of detect and clas"):
        compare_networks(dense, other, YOLODataModule("data.yaml"), tmp_path / "out")


def _side(params, score, milliseconds, threads):
    place = {"batch_size": 1, "image_size": (64, 64), "threads": threads, "device": "cpu", "repeats": 30}
    return {"params": params, "macs": 1000, "map": score, "latency": [{**place, "median_ms": milliseconds}]}


@pytest.mark.parametrize(
    ("pruned", "shown"),
    [
        ((100, 0.5, 10.0), ["no change", "no change", "no change", "as fast"]),
        ((50, 0.4, 10.2), ["-50%", "no change", "-0.100", "1.02× slower"]),
    ],
)
def test_changes_are_told_as_a_reader_would(pruned, shown):
    table = comparison_table({"dense": _side(100, 0.5, 10.0, 1), "pruned": _side(*pruned, 1)})
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    rows = [line.strip("│").split("│")[-1].strip() for line in text.splitlines() if line.startswith("│")]
    assert rows == shown
    assert "1 thread," in text
    assert "all at 64×64 pixels" in text
