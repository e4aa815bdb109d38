"""A fit from few rows is that from sums over them, however the rows come."""

import pytest
import torch

from lit_prune.repair.fit import RIDGES, Evidence, Rows, Sums, best_penalty

INPUTS = 30


def drawn(rows, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    entering = 1 + torch.randn(2, rows, INPUTS, generator=generator, dtype=dtype)
    missing = entering[..., :4] @ torch.randn(2, 4, 3, generator=generator, dtype=dtype)
    return entering, missing + torch.randn(2, rows, 3, generator=generator, dtype=dtype)


@pytest.mark.parametrize("rows", [1, 7, 19])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("usual", [0.0, 5.0])
@pytest.mark.parametrize("ridge", RIDGES)
def test_rows_are_solved_for_as_sums_are(rows, centred, usual, ridge):
    few = Evidence.of(*drawn(rows))
    assert isinstance(few, Rows)
    expected, found = few.sums().moments(centred), few.moments(centred)
    added = expected.solve(ridge, usual)
    torch.testing.assert_close(found.solve(ridge, usual), added, rtol=1e-6, atol=1e-9)
    assert found.square == pytest.approx(expected.square)
    for each in (added, torch.zeros_like(added), -added):
        assert found.left(each) == pytest.approx(expected.left(each), rel=1e-6, abs=1e-9)
    for mine, theirs in zip(few.means(), few.sums().means(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("parts", [(5, 6), (15, 15), (5, 40), (40, 5), (40, 40), (3, 3, 3, 30)])
def test_parts_make_a_whole_in_any_order(parts):
    entering, missing = drawn(sum(parts))
    pieces = [
        Evidence.of(x, y) for x, y in zip(entering.split(list(parts), 1), missing.split(list(parts), 1), strict=True)
    ]
    whole = Evidence.of(entering, missing)
    for order in (pieces, pieces[::-1]):
        found = order[0]
        for piece in order[1:]:
            found = found + piece
        assert type(found) is type(whole)
        torch.testing.assert_close(found.moments(True).solve(0.02), whole.moments(True).solve(0.02))


def test_many_rows_are_summed_up():
    assert isinstance(Evidence.of(*drawn(20)), Sums)


@pytest.mark.parametrize("rows", [12, 60])
def test_what_is_not_finite_is_seen(rows):
    entering, missing = drawn(rows)
    assert Evidence.of(entering, missing).is_finite
    for at in (entering, missing):
        before = float(at[1, 3, 2])
        for value in (torch.nan, torch.inf, 1e200):
            at[1, 3, 2] = value
            assert not Evidence.of(entering, missing).is_finite
        at[1, 3, 2] = before


@pytest.mark.parametrize("rows", [12, 60])
def test_where_no_penalty_helps_nothing_is_added(rows):
    fitted, (entering, missing) = Evidence.of(*drawn(rows)), drawn(400, seed=1)
    others = Evidence.of(entering, torch.zeros_like(missing))
    assert best_penalty(fitted.moments(True), others.moments(True))[:2] == (None, None)


def test_one_row_told_many_times_is_solved_in_double_precision():
    entering = torch.ones(1, 18, INPUTS)
    rows = Rows(entering, torch.ones(1, 18, 2))
    assert rows.moments(False).solve(1e-12).isfinite().all()
    assert rows.sums().moments(False).solve(1e-12).isfinite().all()


@pytest.mark.parametrize("rows", [18, 400])
@pytest.mark.parametrize("loud", [1e3, 1e6])
def test_what_single_precision_rounds_off_does_not_end_it(rows, loud):
    """Inputs that are all one, and one of them far louder than the others: their products have no inverse."""
    generator = torch.Generator().manual_seed(0)
    entering = torch.randn(1, rows, 1, generator=generator) * torch.ones(1, 1, INPUTS)
    entering[..., 0] *= loud
    entering += 1e-4 * torch.randn(1, rows, INPUTS, generator=generator)
    missing = entering[..., 1:3]
    moments = Evidence.of(entering, missing).moments(centred=True)
    added = moments.solve(1e-9)
    assert added.isfinite().all()
    assert moments.left(added) < 0.1 * moments.square
