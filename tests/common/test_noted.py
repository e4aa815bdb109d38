"""What notes things down is put back, whatever it is; what it holds stays the same objects."""

import collections
import random
import types

import numpy as np
import pytest
import torch

from lit_prune.common.noted import putting_back


class Meter:
    def __init__(self):
        self.total, self.count, self.values = 0.0, 0, []


def counted(meter):
    meter.total += 2.0
    meter.last = 2.0


NOTED = {
    "a list": (lambda: [1], lambda v: v.append(2), list),
    "a dict": (lambda: {"a": 1}, lambda v: v.update(a=2, b=3), dict),
    "a set": (lambda: {1}, lambda v: v.add(2), set),
    "a deque": (lambda: collections.deque([1], maxlen=1), lambda v: v.append(2), list),
    "a default dict": (lambda: collections.defaultdict(int, a=1), lambda v: v.__setitem__("b", v["a"]), dict),
    "a counter": (lambda: collections.Counter("ab"), lambda v: v.update("a"), dict),
    "an array": (lambda: np.zeros(3), lambda v: np.add(v, 1, out=v), lambda v: v.tolist()),
    "torch's generator": (lambda: torch.Generator().manual_seed(1), lambda v: torch.rand(1, generator=v), None),
    "NumPy's generator": (lambda: np.random.default_rng(1), lambda v: v.random(), None),
    "NumPy's old generator": (lambda: np.random.RandomState(1), lambda v: v.rand(), None),
    "Python's generator": (lambda: random.Random(1), lambda v: v.random(), None),
    "a meter": (Meter, counted, lambda v: dict(vars(v))),
    "a namespace": (lambda: types.SimpleNamespace(n=1), lambda v: setattr(v, "n", 2), vars),
}


def next_of(generator):
    if isinstance(generator, torch.Generator):
        return torch.rand(3, generator=generator).tolist()
    return [generator.random() if hasattr(generator, "random") else generator.rand() for _ in range(3)]


@pytest.mark.parametrize("name", NOTED)
def test_it_is_as_it_was(name):
    make, write, shown = NOTED[name]
    value, shown = make(), shown or next_of
    put_back = putting_back(value)
    assert put_back is not None
    write(value)
    put_back()
    assert shown(value) == shown(make())


@pytest.mark.parametrize(
    "value", [1, "text", None, (1, 2), torch.zeros(2), object(), Meter, torch.nn.Linear(1, 1), len]
)
def test_what_notes_nothing_down_is_left_alone(value):
    assert putting_back(value) is None
