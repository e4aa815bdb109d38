import io
import json
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from lit_prune.report.figures import channels_figure, history_figure
from lit_prune.report.tables import event_table, fold_groups, human, ratio_bar, save_json


def _event(epoch: int = 8, **changes):
    event = {
        "epoch": epoch,
        "step": epoch * 63,
        "ratio": 0.25,
        "channels": {"model.0.conv": [16, 12], "model.1.conv": [32, 24], "model.1.conv#2": [32, 32]},
        "params": [3_012_798, 2_000_000],
        "macs": [91_000_000, 60_060_000],
        "seconds": 0.42,
        "skipped": {},
    }
    return event | changes


def _printed(table) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_event_table_shows_groups_and_totals():
    text = _printed(event_table(_event()))

    row = next(line for line in text.splitlines() if "model.1.conv " in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][:3] == ["model.1.conv", "32", "24"]
    assert "75%" in row
    assert "3.01 M" in text
    assert "2.00 M" in text
    assert "91.0 M" in text
    assert "60.1 M" in text
    assert "epoch 8" in text
    assert "0.4 s" in text


def test_event_table_says_what_was_skipped_once_a_reason():
    reason = "smaller than round_to"
    text = " ".join(_printed(event_table(_event(skipped={f"layer{k}": reason for k in range(5)}))).split())

    assert text.count(reason) == 1
    assert "layer0, layer1, layer2 and 2 more" in text


@pytest.mark.parametrize(
    ("channels", "macs", "told"),
    [(0.25, 0.44, ""), (0.1, 0.25, ""), (0.2, 0.31, "not the target: kept widths are multiples of `round_to`, and at")],
)
def test_event_table_says_what_is_gone_and_why_it_is_not_the_target(channels, macs, told):
    text = " ".join(_printed(event_table(_event(gone={"channels": channels, "macs": macs}))).split())
    assert f"gone so far: {channels:.0%} of these channels, {macs:.0%} of the multiply-adds" in text
    assert ("not the target" in text) == bool(told)
    assert told in text


def test_event_table_says_what_table_and_clock_found():
    found = {"table_ms": 7.9, "clock_ms": 8.25}
    assert "7.9 ms by the table, 8.25 ms by the clock" in _printed(event_table(_event(findings=found)))
    assert "target so far 25% of the latency" in _printed(event_table(_event(unit="ms")))
    assert "by the clock" not in _printed(event_table(_event(findings={"table_ms": 7.9})))


@pytest.mark.parametrize(
    ("unit", "allowed", "left", "told"),
    [
        ("MACs", 4e7, 3.98e7, "budget: 39.8 MMACs, 40.0 MMACs allowed"),
        (
            "params",
            2e6,
            1.8e6,
            "budget: 1.80 Mparams, 2.00 Mparams allowed no layer could be a step wider within it: kept",
        ),
        ("ms", 8.0, 7.2, "budget: 7.2 ms, 8 ms allowed"),
        ("B of activations", 4e6, 3e6, "budget: 3.00 MB of activations, 4.00 MB of activations allowed"),
    ],
)
def test_event_table_says_what_is_left_of_a_budget_and_why_not_more(unit, allowed, left, told):
    found = {f"allowed {unit}": allowed, f"left {unit}": left}
    text = " ".join(_printed(event_table(_event(findings=found))).split())
    assert told in text
    assert ("wider" in text) == ("wider" in told)
    # Another budget may be what is used up.
    other = found | {"allowed MACs": 1e6, "left MACs": 1e6}
    assert "wider" not in _printed(event_table(_event(findings=other)))


def test_event_table_folds_blocks_only_when_there_are_too_many_groups():
    channels = {f"net.{block}.m.{layer}": [8, 4] for block in range(5) for layer in range(6)}

    assert event_table(_event(channels=channels), max_rows=24).row_count == 5 + 2
    assert event_table(_event(channels=channels), max_rows=30).row_count == 30 + 2
    assert event_table(_event(channels=channels), max_rows=None).row_count == 30 + 2
    assert "net.4.m (6)" in _printed(event_table(_event(channels=channels)))


def test_fold_groups_keeps_sums_and_stops_at_one_row_a_top_name():
    channels = {"a.x": [8, 4], "a.y": [4, 4], "b": [2, 1], "c": [2, 2]}

    assert fold_groups(channels, max_rows=3) == {"a": (2, 12, 8), "b": (1, 2, 1), "c": (1, 2, 2)}
    assert len(fold_groups(channels, max_rows=1)) == 3
    assert fold_groups({}, max_rows=3) == {}


def test_event_table_of_an_event_that_pruned_nothing():
    assert event_table(_event(channels={})).row_count == 2


@pytest.mark.parametrize(("part", "whole", "text"), [(1, 2, "50%"), (0, 0, "0%"), (3, 3, "100%")])
def test_ratio_bar(part, whole, text):
    assert str(ratio_bar(part, whole)).strip().endswith(text)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.00 k"), (12_345, "12.3 k"), (123_456, "123 k")]
)
def test_human(number, text):
    assert human(number) == text


def test_channels_figure_shows_first_width_and_last_width():
    first = _event()
    second = _event(11, channels={"model.0.conv": [12, 10], "model.2.conv": [64, 48]})

    axes = channels_figure([first, second]).axes[0]

    heights = [bar.get_height() for bar in axes.patches]
    assert heights[:4] == [16, 32, 32, 64]
    assert heights[4:] == [10, 24, 32, 48]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "1#2", "2"]
    assert "114 of 144 (79%)" in axes.get_title(loc="left")


def test_history_figure_draws_runs_and_marks_events():
    history = {
        "dense": [{"epoch": k, "map": 0.1 * k, "macs": 4e6} for k in range(4)],
        "pruned": [{"epoch": k, "map": 0.09 * k, "macs": 4e6 if k < 2 else 2e6} for k in range(4)],
        "never ran": [],
    }
    record = _event(2, macs=[4_000_000, 2_000_000])

    upper, lower = history_figure(history, [record]).axes

    assert upper.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(upper.lines[1].get_ydata(), [0, 0.09, 0.18, 0.27])
    assert lower.lines[1].get_ydata().tolist() == [4, 4, 4, 2, 2]
    assert [line.get_xdata()[0] for line in upper.lines[2:]] == [2]
    assert "−50% MACs" in [text.get_text() for text in upper.texts]
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["dense", "pruned"]


def test_history_figure_draws_all_events_alike():
    history = {"pruned": [{"epoch": epoch, "map": 0.1, "macs": 1e6} for epoch in range(24)]}
    figure = history_figure(history, [_event(epoch) for epoch in (6, 8, 10)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba()).astype(int)

    upper = figure.axes[0]
    reddest = []
    for epoch in (6, 8, 10):  # a grid line is at 10
        x = int(upper.transData.transform((epoch, 0))[0])
        strip = image[: image.shape[0] // 2, x - 3 : x + 4]
        reddest.append((strip[..., 0] - strip[..., 1]).max())
    assert len(set(reddest)) == 1


def test_figures_are_no_state_of_pyplot(tmp_path):
    channels_figure([_event()]).savefig(tmp_path / "channels.png")
    history_figure({"run": [{"epoch": 0, "map": 0.5, "macs": 1e6}]}, []).savefig(tmp_path / "history.png")

    assert (tmp_path / "channels.png").stat().st_size > 1000
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_figures_of_nothing():
    with pytest.raises(ValueError, match="at least one event, but got none"):
        channels_figure([])
    with pytest.raises(ValueError, match="at least one run"):
        history_figure({"run": []}, [])


def test_save_json_writes_plain_numbers(tmp_path):
    path = tmp_path / "report.json"
    save_json({"map": torch.tensor(0.5), "macs": np.int64(7), "events": [_event()]}, path)

    read = json.loads(path.read_text())
    assert read["map"] == 0.5
    assert read["macs"] == 7
    assert read["events"][0]["channels"]["model.0.conv"] == [16, 12]
    with pytest.raises(TypeError, match="plain data"):
        save_json({"model": torch.nn}, path)
