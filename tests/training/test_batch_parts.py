"""A batch of any kind is gone through in order, and each part found again."""

import collections
import dataclasses

import pytest

from lit_prune.training.batch_parts import part_at, parts

Pair = collections.namedtuple("Pair", "index count")


@dataclasses.dataclass
class Item:
    image: int
    late: int = dataclasses.field(init=False)

    def tell(self):
        self.more = [7]


def batch():
    item = Item(5)
    item.tell()
    return {"a": [1, (2, 3)], "pair": Pair(4, [6]), "item": item, 8: "word"}


def test_all_is_found_where_it_was():
    leaves = {place: part for place, part in parts(batch()) if isinstance(part, (int, str))}
    assert list(leaves) == [
        ("a", 0),
        ("a", 1, 0),
        ("a", 1, 1),
        ("pair", "index"),
        ("pair", "count", 0),
        ("item", "image"),
        ("item", "more", 0),
        (8,),
    ]
    for place, part in leaves.items():
        assert part_at(batch(), place) == part


def test_what_holds_itself_is_gone_through_once():
    around = {"x": 1}
    around["self"] = [around]
    assert [place for place, _ in parts(around)] == [(), ("x",), ("self",), ("self", 0)]


@pytest.mark.parametrize("place", [["pair", "sum"], ["a", "count"], ["item", "tell"], ["a", 5], ["word"], ["a", 0, 0]])
def test_no_such_place(place):
    with pytest.raises(LookupError):
        part_at(batch(), place)
