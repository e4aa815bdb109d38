"""Which networks are worth what they cost."""

from io import StringIO

from rich.console import Console

from lit_prune.report.curve import cost_of, curve_figure, curve_table, with_front


def point(name, score, macs, **more):
    return {"amount": name, "metrics": {"score": score}, "params": macs // 2, "macs": macs, **more}


POINTS = [point("dense", 0.8, 100), point("a", 0.82, 70), point("b", 0.6, 70), point("c", 0.5, 30)]


def test_the_front_by_either_mode():
    assert [each["amount"] for each in with_front(POINTS, "score") if each["pareto"]] == ["a", "c"]
    assert [each["amount"] for each in with_front(POINTS, "score", "min") if each["pareto"]] == ["c"]


def test_latency_goes_before_multiply_adds_where_all_have_it():
    timed = [point("dense", 0.8, 100, latency_ms=3.0), point("a", 0.8, 50, latency_ms=4.0)]
    assert cost_of(timed) == "latency_ms"
    assert [each["amount"] for each in with_front(timed, "score") if each["pareto"]] == ["dense"]
    assert cost_of([*timed, *POINTS]) == "macs"


def test_it_is_shown():
    told = with_front(POINTS, "score")
    text = StringIO()
    Console(file=text, width=100).print(curve_table(told, "score"))
    rows = [line for line in text.getvalue().splitlines() if line.startswith("│")]
    assert [("★" in row, "70 (70%)" in row) for row in rows] == [
        (False, False),
        (False, True),
        (True, True),
        (True, False),
    ]
    axes = curve_figure(told, "score").axes[0]
    assert [label.get_text() for label in axes.texts] == [each["amount"] for each in told]
