import pytest

from lit_prune.common.choices import resolve
from lit_prune.criteria import CRITERIA, Criterion, Magnitude


def test_an_instance_is_itself_and_a_name_makes_one():
    mine = Magnitude(p=1)
    assert resolve("criterion", mine, Criterion, CRITERIA) is mine
    assert isinstance(resolve("criterion", "magnitude", Criterion, CRITERIA), Magnitude)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("magnitud", ValueError, "Did you mean 'magnitude'"),
        ("zzz", ValueError, "Known are 'activation', 'apoz'"),
        (Magnitude, TypeError, "call it to make an instance"),
        (3, TypeError, "an instance of Criterion, but got 3"),
    ],
)
def test_what_is_neither_is_refused_with_a_way_out(given, error, message):
    with pytest.raises(error, match=message):
        resolve("criterion", given, Criterion, CRITERIA)
