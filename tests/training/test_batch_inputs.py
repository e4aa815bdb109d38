"""Inputs are found in batches of any kind by the names that `forward` gives them, or by their order."""

import collections
import dataclasses

import pytest
import torch
from torch import nn

from lit_prune import ChannelPruning
from lit_prune.graph import Call
from lit_prune.training.batch_inputs import inputs_like
from tests.toys import Classifier, trainer

X, MASK, Y, OTHER = torch.rand(4, 3, 8, 8), torch.ones(4, 8, dtype=torch.bool), torch.zeros(4), torch.rand(4, 3, 8, 8)
Named = collections.namedtuple("Named", "other x mask y")


@dataclasses.dataclass
class Batch:
    other: torch.Tensor
    x: torch.Tensor
    mask: torch.Tensor


@dataclasses.dataclass(slots=True)
class Slotted:
    other: torch.Tensor
    x: torch.Tensor
    mask: torch.Tensor


class Net(nn.Module):
    def forward(self, x, mask=None, scale=1.0, *more, factor=2.0, **options):
        return x


def one(tensor):
    return torch.zeros(1, *tensor.shape[1:], dtype=tensor.dtype)


BATCHES = {
    "a tuple": ((X, MASK, Y), X),
    "a list in a tuple": (([X, MASK], Y), X),
    "the first of two alike": ((OTHER, X, MASK), OTHER),
    "a dict": ({"other": OTHER, "x": X, "mask": MASK, "y": Y}, X),
    "a dict of other names": ({"image": X, "valid": MASK, "y": Y}, X),
    "a nested dict": ({"inputs": {"other": OTHER, "mask": MASK, "x": X}, "y": Y}, X),
    "a dataclass": (Batch(OTHER, X, MASK), X),
    "a dataclass with slots": (Slotted(OTHER, X, MASK), X),
    "a named tuple": (Named(OTHER, X, MASK, Y), X),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    "call",
    [
        Call("", (one(X), one(MASK))),
        Call("", (one(X),), {"mask": one(MASK)}),
        Call("", (), {"mask": one(MASK), "x": one(X)}),
        Call("net", (one(X), one(MASK), 1.0)),
    ],
)
def test_two_inputs(name, call):
    batch, expected = BATCHES[name]
    x, mask, scale = inputs_like(nn.ModuleDict({"net": Net()}) if call.module else Net(), [call], batch)
    assert x is expected
    assert mask is MASK
    assert scale == 1.0


def test_what_is_no_tensor_stays_as_it_was():
    assert inputs_like(Net(), [Call("", (one(X), None, 3.0))], (Y, X)) == (X, None, 3.0)
    assert inputs_like(Net(), [Call("", (one(X), one(MASK), 3.0, one(Y)))], (X, MASK, Y))[3] is Y


@pytest.mark.parametrize(
    ("calls", "batch"),
    [
        ([Call("", (one(X),))], (Y, MASK)),
        ([Call("", (one(X), one(OTHER)))], (X, Y)),
        ([Call("", (one(X),))] * 2, (X, Y)),
        ([Call("", (one(X),), {"factor": 3.0})], (X, Y)),
        ([Call("", (one(X), [one(MASK)]))], (X, MASK)),
        ([Call("", (one(X).double(),))], (X, Y)),
        ([Call("", (one(X),))], "text"),
        ([], (X, Y)),
    ],
)
def test_what_is_not_there_is_not_made_up(calls, batch):
    assert inputs_like(Net(), calls, batch) is None


class Masked(Classifier):
    def forward(self, x, mask):
        return self.net(x * mask[:, None, :, None])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(mask=batch["mask"], x=batch["x"]), batch["label"])


def test_a_repair_and_a_criterion_by_activations_in_a_trainer():
    items = [{"label": i % 4, "mask": torch.ones(16), "x": torch.rand(3, 16, 16)} for i in range(16)]
    network = Masked()
    pruning = ChannelPruning(0.5, epochs=1, criterion="obs", repair=True, verbose=False)
    trainer(pruning).fit(network, torch.utils.data.DataLoader(items, batch_size=8))
    assert pruning.events[0]["repair"]
