import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_prune.yolo.captions import place_labels


def _drawn(*boxes, side=1.9):
    """The labels' places in the figure, and the frame."""
    figure = Figure(figsize=(side, side), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 96), ylim=(96, 0))
    place_labels(axes, [("7  0.93 ×", "black", box) for box in boxes])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return axes.texts, [text.get_bbox_patch().get_window_extent() for text in axes.texts], axes.get_window_extent()


def _hides(first, second):
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return width > 1 and height > 1


@pytest.mark.parametrize(
    "boxes",
    [
        [(30, 40, 60, 70), (31, 41, 61, 71)],
        [(10, 10, 40, 50), (20, 52, 50, 90), (30, 45, 60, 80)],
        [(60, 20, 92, 50), (62, 48, 94, 80), (2, 2, 30, 40), (2, 42, 30, 94)],
        [(30, 40, 60, 70)] * 6,
    ],
)
def test_no_label_hides_another(boxes):
    _, places, _ = _drawn(*boxes)
    assert not [pair for pair in itertools.combinations(places, 2) if _hides(*pair)]


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (76, 76, 96, 96), (90, 30, 96, 50), (0, 0, 96, 96), (70, 0, 96, 96)])
def test_labels_stay_within_the_image(box):
    _, (place,), frame = _drawn(box)
    assert frame.x0 <= place.x0 + 1 < place.x1 - 1 <= frame.x1
    assert frame.y0 <= place.y0 + 1 < place.y1 - 1 <= frame.y1


def test_labels_lie_above_their_box_where_there_is_room():
    (text,), _, _ = _drawn((30, 40, 60, 70))
    assert (text.xy, text.get_va(), text.get_ha()) == ((30, 40), "bottom", "left")
