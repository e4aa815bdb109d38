"""What of its batch a step enters with is known by where it lies in it."""

import collections
import copy
import dataclasses
import enum
import json

import pytest
import torch

from lit_prune.common._compat import tree_flatten
from lit_prune.training.entry import Entry

Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Item:
    image: torch.Tensor
    masks: list


@dataclasses.dataclass(slots=True)
class Slotted:
    image: torch.Tensor


class Kind(enum.Enum):
    IMAGE = 1


@dataclasses.dataclass
class Lengths:
    """Nothing that can be taken apart, and as a whole of the batch."""

    values: tuple


def batches():
    for _ in range(2):
        x, y = torch.rand(2, 3), torch.rand(2, 3)
        yield (
            {"x": x, "y": y, 3: [x + 1, {"deep": y + 1}], "pair": Pair(x + 2, y + 2), "item": Item(x + 3, [y + 3])}
            | {"lengths": [3, 5], "names": ["a", "b"], "told": Lengths((1,)), "slotted": Slotted(x + 4)}
            | {Kind.IMAGE: x + 5}
        )


def same(first, second):
    """Whether both hold the same, tensors by their values."""
    (left, of_left), (right, of_right) = tree_flatten(first), tree_flatten(second)
    return of_left == of_right and all(
        torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
        for mine, theirs in zip(left, right, strict=True)
    )


WHOLE = {
    "a tensor": lambda b: ((b["x"],), {}),
    "the other": lambda b: ((b["y"],), {}),
    "by keyword": lambda b: ((), {"a": b["y"], "b": b["x"]}),
    "within": lambda b: ((b[3][1]["deep"], b[3][0]), {}),
    "of a named tuple": lambda b: ((b["pair"].second,), {}),
    "of a dataclass": lambda b: ((b["item"].masks[0], b["item"].image), {}),
    "of a dataclass with slots": lambda b: ((b["slotted"].image,), {}),
    "the whole": lambda b: ((b,), {}),
    "lists": lambda b: ((b["lengths"], b["names"]), {}),
    "what can't be looked into": lambda b: ((b["told"],), {}),
    "in another list": lambda b: (([b["x"], (b["y"], None)], {"k": b["x"]}), {}),
    "plain": lambda b: ((b["x"], None, True, "mode"), {}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_another_batch_gives_its_own(name):
    first, second = batches()
    args, kwargs = WHOLE[name](first)
    entry = Entry.of("net", args, kwargs, first)
    assert entry.is_whole
    # As it comes out of a checkpoint.
    kept = copy.deepcopy(vars(entry))
    found = Entry(**kept).inputs(second)
    assert same((found.inputs, dict(found.keywords)), WHOLE[name](second))
    assert json.loads(json.dumps(kept))


MADE = {
    "scaled": lambda b: 2 * b["x"],
    "a view": lambda b: b["x"].flatten(),
    "of another type": lambda b: b["x"].double(),
    "in a list": lambda b: [b["x"], b["x"] + 7],
    "in a dict": lambda b: {"x": b["x"] + 7},
    "an object": lambda b: Lengths((1,)),
    "what is constant": lambda b: torch.ones(2, 3),
    "a copy": lambda b: b["x"].clone(),
    "what is the same at first": lambda b: 1.0 * b["x"],
    "a number": lambda b: 0.5,
    "a size": lambda b: len(b["x"]),
    "a number of the batch": lambda b: b["lengths"][0],
    "a word of the batch": lambda b: b["names"][0],
    "under a key that is no plain data": lambda b: b[Kind.IMAGE],
}


@pytest.mark.parametrize("name", MADE)
def test_what_a_step_makes_is_told_apart(name):
    batch = {**next(batches()), "ones": torch.ones(2, 3)}
    assert not Entry.of("net", (MADE[name](batch),), {}, batch).is_whole


def test_a_batch_of_another_form():
    first, _ = batches()
    for args in ((first["x"],), (first["item"].image,), (first[3][1]["deep"],)):
        entry = Entry.of("net", args, {}, first)
        for batch in ([torch.rand(2, 3)], {"item": 3, 3: []}, torch.rand(2, 3)):
            with pytest.raises((LookupError, TypeError)):
                entry.inputs(batch)
