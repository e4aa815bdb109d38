import pytest
import torch

from lit_prune.yolo import draw_detections
from lit_prune.yolo.drawing import match_objects


def _found(*rows):
    values = torch.tensor([list(row) for row in rows], dtype=torch.float32).reshape(-1, 6)
    return {"boxes": values[:, :4], "scores": values[:, 4], "labels": values[:, 5].long()}


def test_a_row_for_each_network_and_a_column_for_each_image():
    found = [_found((4, 8, 20, 24, 0.91, 3)), _found()]
    figure = draw_detections(torch.rand(2, 3, 32, 64), {"dense": found, "pruned": found})

    assert len(figure.axes) == 4
    assert [axes.get_ylabel() for axes in figure.axes] == ["dense", "", "pruned", ""]
    assert [text.get_text() for text in figure.axes[2].texts] == ["3  0.91"]
    assert not figure.axes[1].patches
    assert figure.axes[0].get_images()[0].get_array().shape == (32, 64, 3)


def test_missed_objects_are_dashed_and_wrong_boxes_crossed():
    truth = {"boxes": torch.tensor([[4.0, 8, 20, 24], [30, 30, 40, 40]]), "labels": torch.tensor([3, 5])}
    found = _found((5, 8, 20, 24, 0.9, 3), (30, 30, 40, 40, 0.8, 6))
    axes = draw_detections(torch.rand(1, 3, 64, 64), [found], [truth], names={3: "three"}).axes[0]

    dashed = [patch for patch in axes.patches if patch.get_linestyle() != "solid" and patch.get_linestyle() != "-"]
    assert [patch.get_bbox().extents.tolist() for patch in dashed] == [[30, 30, 40, 40]]
    assert [text.get_text() for text in axes.texts] == ["three  0.90", "6  0.80 ×"]


def test_a_legend_says_what_dashes_and_crosses_mean():
    images, found = torch.rand(1, 3, 64, 64), [_found((5, 8, 20, 24, 0.9, 3))]
    truth = [{"boxes": torch.tensor([[4.0, 8, 20, 24]]), "labels": torch.tensor([3])}]

    (legend,) = draw_detections(images, found, truth).legends
    assert [text.get_text().split(":")[0] for text in legend.get_texts()] == ["dashed", "label with a cross"]
    assert not draw_detections(images, found).legends


def test_labels_stay_inside_at_the_top():
    axes = draw_detections(torch.rand(1, 3, 64, 64), [_found((0, 0, 20, 20, 0.5, 1), (10, 40, 20, 60, 0.5, 1))]).axes[0]
    assert [text.get_verticalalignment() for text in axes.texts] == ["top", "bottom"]
    assert [text.xy for text in axes.texts] == [(0, 20), (10, 40)]


def test_the_figure_can_be_written(tmp_path):
    draw_detections(torch.rand(1, 3, 64, 64), [_found((4, 8, 20, 24, 0.9, 12))]).savefig(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"


def test_matching_needs_label_and_overlap():
    truth = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 2])}
    found = _found((0, 0, 10, 10, 0.9, 2), (0, 0, 10, 10, 0.8, 1), (0, 0, 9, 10, 0.7, 1), (25, 25, 35, 35, 0.6, 2))

    right, seen = match_objects(found, truth)

    assert right.tolist() == [False, True, False, False]
    assert seen.tolist() == [True, False]


@pytest.mark.parametrize(
    ("images", "found", "targets", "message"),
    [
        (torch.rand(3, 64, 64), [_found()], None, r"images must be \(N, 3, H, W\)"),
        (torch.rand(0, 3, 64, 64), [], None, "N at least 1"),
        (torch.rand(2, 3, 64, 64), {"a": [_found()]}, None, "found 'a' must have one entry for each of the 2 images"),
        (torch.rand(1, 3, 64, 64), {}, None, "at least one row"),
        (torch.rand(1, 3, 64, 64), [_found()], [], "targets must have one entry for each of the 1 images"),
    ],
)
def test_wrong_arguments(images, found, targets, message):
    with pytest.raises(ValueError, match=message):
        draw_detections(images, found, targets)
