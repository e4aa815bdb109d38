import numpy as np
import pytest

from lit_prune.select.clustering.decisions import decide, survey_channels
from lit_prune.select.clustering.plots import draw_decision

ROWS = np.random.default_rng(0).random((24, 10))
STRENGTH = np.random.default_rng(1).random(24)


@pytest.mark.parametrize(
    ("method", "keep", "curve", "panels"),
    [("medoid", 8, False, 1), ("max_weight", None, True, 2), ("max_weight", 20, True, 2), ("gamma", 8, False, 1)],
)
def test_decisions_are_drawn(tmp_path, method, keep, curve, panels):
    decision = decide(survey_channels(ROWS, "pca", curve=curve), keep, method, STRENGTH)
    figure = draw_decision(decision, "model.1.conv")
    figure.savefig(tmp_path / "decision.png")
    assert (tmp_path / "decision.png").stat().st_size > 10_000
    assert len(figure.axes) == panels
    goes, stays = figure.axes[0].collections[-2:]
    assert len(stays.get_offsets()) == len(decision.kept)
    assert len(goes.get_offsets()) == 24 - len(decision.kept)
    assert f"{len(decision.kept)} of 24" in figure.get_suptitle()
    if curve:
        line = figure.axes[1].lines[0]
        np.testing.assert_array_equal(line.get_xdata(), decision.survey.counts)
        np.testing.assert_array_equal(line.get_ydata(), decision.survey.silhouettes)


def test_no_pyplot_state():
    import sys

    before = "matplotlib.pyplot" in sys.modules
    draw_decision(decide(survey_channels(ROWS, "pca", curve=False), 4, "medoid"))
    if before:
        import matplotlib.pyplot as plt

        assert not plt.get_fignums()
    else:
        assert "matplotlib.pyplot" not in sys.modules
