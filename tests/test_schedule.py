import pytest

from lit_prune.schedule import AtEpochs, AtSteps, Every


def test_linear_and_cubic_end_with_all_and_rise():
    for curve in ("linear", "cubic"):
        parts = list(AtEpochs([9, 3, 6], curve).events(10).values())
        assert parts == sorted(parts)
        assert parts[-1] == 1
        assert all(0 < part <= 1 for part in parts)
    assert list(AtEpochs([3, 6, 9], "cubic").events(10).values()) == pytest.approx([19 / 27, 26 / 27, 1])


def test_epochs_are_put_in_order():
    assert list(AtEpochs([9, 3, 6]).events(None)) == [3, 6, 9]
    assert AtEpochs(4).events(10) == {4: 1.0}
    assert list(Every(2, first=1, times=3).events(6)) == [1, 3, 5]


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ([], "at least one of the epochs"),
        ([-1], "from 0 on, but has -1"),
        ([1.5], "whole numbers"),
        ([True], "whole numbers"),
        ([3, 3], "differ from each other"),
    ],
)
def test_bad_epochs(epochs, message):
    with pytest.raises(ValueError, match=message):
        AtEpochs(epochs)


def test_bad_curve_and_counts():
    with pytest.raises(ValueError, match="'linear', 'cubic'"):
        AtEpochs(1, "square")
    with pytest.raises(ValueError, match="at least 1"):
        Every(0, first=0, times=1)


@pytest.mark.parametrize("schedule", [AtEpochs([3, 10]), Every(5, first=5, times=2)])
def test_an_event_beyond_the_run_is_refused(schedule):
    with pytest.raises(ValueError, match="beyond the run, which has 10 epochs, 0 to 9"):
        schedule.events(10)
    schedule.events(None)


def test_steps_are_checked_in_their_own_words():
    with pytest.raises(ValueError, match=r"steps=\[40\] goes beyond the run, which has 30 steps"):
        AtSteps(40).events(30)
    with pytest.raises(ValueError, match="steps must be whole numbers"):
        AtSteps([-3])
    assert AtSteps([9, 3]).events(None) == {3: 0.5, 9: 1.0}
