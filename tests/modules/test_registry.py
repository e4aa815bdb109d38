"""Remembered integers follow from tensors, by class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lit_prune.modules import registry as attributes
from lit_prune.modules.registry import qualified_names, register_attributes, update_attributes_


@pytest.fixture(autouse=True)
def _table() -> Iterator[None]:
    before = dict(attributes._ATTRIBUTES)
    yield
    attributes._ATTRIBUTES.clear()
    attributes._ATTRIBUTES.update(before)


@pytest.mark.parametrize(
    ("module", "dims", "expected"),
    [
        (nn.Conv2d(4, 8, 3), {"weight": (6, 3)}, {"in_channels": 3, "out_channels": 6}),
        (nn.Conv1d(4, 8, 3, groups=4), {"weight": (6, 1)}, {"in_channels": 3, "out_channels": 6, "groups": 3}),
        (nn.Conv2d(4, 8, 3, groups=2), {"weight": (6, 1)}, {"in_channels": 2, "out_channels": 6, "groups": 2}),
        (nn.ConvTranspose2d(4, 8, 3, groups=4), {"weight": (3, 2)}, {"in_channels": 3, "out_channels": 6, "groups": 3}),
        (nn.ConvTranspose3d(4, 8, 3), {"weight": (3, 6)}, {"in_channels": 3, "out_channels": 6}),
        (nn.ConvTranspose2d(4, 8, 3, groups=2), {"weight": (2, 3)}, {"in_channels": 2, "out_channels": 6, "groups": 2}),
        (nn.Linear(4, 8), {"weight": (6, 3)}, {"in_features": 3, "out_features": 6}),
        (nn.BatchNorm2d(8), {"weight": (6,), "running_mean": (6,)}, {"num_features": 6}),
        (nn.BatchNorm2d(8, track_running_stats=False), {"weight": (6,)}, {"num_features": 6}),
        (nn.BatchNorm2d(8, affine=False), {"running_mean": (6,)}, {"num_features": 6}),
        (nn.LayerNorm((8, 4)), {"weight": (6, 4)}, {"normalized_shape": (6, 4)}),
        (nn.RMSNorm(8), {"weight": (6,)}, {"normalized_shape": (6,)}),
        (nn.GroupNorm(2, 8), {"weight": (6,)}, {"num_channels": 6, "num_groups": 2}),
        (nn.PReLU(8), {"weight": (6,)}, {"num_parameters": 6}),
        (nn.Embedding(10, 8), {"weight": (10, 6)}, {"num_embeddings": 10, "embedding_dim": 6}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_torch_modules(module: nn.Module, dims: dict[str, tuple[int, ...]], expected: dict[str, Any]) -> None:
    for name, shape in dims.items():
        tensor = getattr(module, name)
        tensor.data = torch.zeros(*shape, *tensor.shape[len(shape) :])
    update_attributes_(module)
    assert {name: getattr(module, name) for name in expected} == expected


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.width, self.half = nn.Conv2d(3, 8, 1), 0, 0


class Derived(Base):
    pass


def test_subclasses_have_the_last_word() -> None:
    order: list[str] = []
    register_attributes(Derived)(lambda module: order.append("derived"))
    register_attributes(Base)(lambda module: order.append("base"))
    update_attributes_(Derived())
    assert order == ["base", "derived"]


def test_inner_modules_come_first() -> None:
    @register_attributes(Base)
    def _base(module: Any) -> None:
        module.width = module.conv.out_channels

    net = Base()
    net.conv.weight.data = torch.zeros(5, 3, 1, 1)
    update_attributes_(nn.Sequential(net))
    assert net.width == 5


def test_a_class_by_name() -> None:
    name = qualified_names(Base)[0]
    register_attributes(name)(lambda module: setattr(module, "half", 4))
    net = Derived()
    update_attributes_(net)
    assert net.half == 4


@pytest.mark.parametrize("given", [nn.Linear(2, 2), int, None, lambda module: None])
def test_what_is_no_class_of_modules_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="takes a class of modules, or its qualified name"):
        register_attributes(given)


def test_a_name_without_its_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"qualified name such as 'mylib\.blocks\.Tokens', not 'Tokens'"):
        register_attributes("Tokens")


def test_an_update_must_be_a_function() -> None:
    with pytest.raises(TypeError, match="Expected a function that is given a module"):
        register_attributes(Base)({"width": 4})  # type: ignore[arg-type]
    assert Base not in attributes._ATTRIBUTES
