"""Rules for what channels pass through, what freezes them, and the table itself; the invariant on every one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from lit_prune import ChannelGraph
from lit_prune.graph import register_rule
from lit_prune.graph.rules import RULES
from tests.graph.tiny import IMAGES, Between, exact, sizes

SAME = {
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "in place": lambda x: F.relu_(x).mul_(2).add_(1),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-1.0), torch.tensor(1.0)),
    "scalar": lambda x: (x * 2 - 1) / 3,
    "max pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 2),
    "upsample nearest": lambda x: F.interpolate(x, scale_factor=2),
    "upsample bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "spatial mean": lambda x: x.mean((2, 3), keepdim=True),
    "spatial mean, squeezed": lambda x: x.mean((2, 3))[..., None, None],
    "global gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "with itself": lambda x: x + x * x,
    "to the last dimension and back": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "tokens and back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strides of another memory format": lambda x: x.as_strided(x.shape, x.contiguous().stride()),
    "unbind over the batch": lambda x: torch.stack(x.unbind(0), 0),
    "chosen images": lambda x: x.index_select(0, torch.tensor([1, 0])),
    "einsum over space": lambda x: torch.einsum("nchw,hk->nckw", x, torch.eye(6)),
    "unsqueeze and squeeze": lambda x: x.unsqueeze(2).squeeze(2),
    "expand": lambda x: x.unsqueeze(0).expand(1, *x.shape).squeeze(0),
    "one channel broadcast": lambda x: x * torch.ones(2, 1, 6, 6),
    "softmax over space": lambda x: x.flatten(2).softmax(-1).reshape(x.shape),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "stack and unbind": lambda x: torch.stack([x, x * 2], 1).sum(1),
    "split and cat": lambda x: torch.cat(x.split(1, dim=2), 2),
    "half of the height": lambda x: x[:, :, :3],
    "grid sample": lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False),
    "windows": lambda x: x.unfold(2, 3, 1).mean(-1),
    "regions": lambda x: roi_align(x, [torch.tensor([[1.0, 1.0, 4.0, 5.0]])] * 2, 3),
    "drop": lambda x: F.dropout2d(F.dropout(x, training=False), training=False),
    "new zeros": lambda x: x + x.new_zeros(x.shape[2:]),
    "full like": lambda x: x + torch.full_like(x, 2.0),
}


@pytest.mark.parametrize("name", SAME)
def test_channels_pass_through(name: str) -> None:
    graph = exact(Between(SAME[name], 12))
    (group,) = graph.groups
    assert group.name == "enter.0"
    assert set(group.slots) == {("enter.0.weight", 0), ("enter.0.bias", 0), ("leave.weight", 1)}
    assert set(graph.unprunable) == {"leave"}


FREEZES = {
    "softmax over channels": (lambda x: x.softmax(1), 12, "softmax runs over it"),
    "mean over everything": (lambda x: x - x.mean(), 12, "mean runs over it"),
    "norm over everything": (lambda x: x / x.norm(), 12, "norm runs over it"),
    "product over channels": (lambda x: x * x.prod(1, keepdim=True), 12, "prod runs over it"),
    "place of the largest": (lambda x: x * x.max(1, keepdim=True)[1], 12, "max tells its place"),
    "flip": (lambda x: x.flip(1), 12, "flip moves it"),
    "sort": (lambda x: x.sort(1).values, 12, "sort picks from it"),
    "by index": (lambda x: x[:, torch.arange(11, -1, -1)], 12, "is picked from by index"),
    "index select": (lambda x: x.index_select(1, torch.arange(12)), 12, "is picked from by index"),
    "an untracked operand": (lambda x: x + torch.arange(12.0)[:, None, None], 12, "meets what is not tracked"),
    "ones of a fixed number": (lambda x: x + torch.ones(12, 1, 1), 12, "can't be narrowed"),
    "an untracked piece": (lambda x: torch.cat([x, torch.ones(2, 2, 6, 6)], 1), 14, None),
    "LayerNorm without a weight": (lambda x: F.layer_norm(x, [12, 6, 6]), 12, "can't be narrowed"),
    "padded channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 14, None),
    "cropped channels": (lambda x: F.pad(x, (0, 0, 0, 0, -1, 1)), 12, "is padded"),
    "read with other strides": (lambda x: x.as_strided((2, 12, 3, 6), x.stride()), 12, "is read with strides"),
    "picked one by one": (lambda x: torch.stack(x.unbind(1), 1), 12, "is picked from one by one"),
    "windows of channels": (lambda x: x.unfold(1, 3, 3).sum(-1), 4, "is cut into windows"),
    "every fifth channel": (lambda x: x[:, ::5], 3, "is sliced with a step"),
}


@pytest.mark.parametrize("name", FREEZES)
def test_what_cannot_be_followed_is_frozen_with_its_reason(name: str) -> None:
    function, leaving, reason = FREEZES[name]
    graph = ChannelGraph.trace(Between(function, leaving), IMAGES)
    if reason is None:
        # Only the untracked piece stays.
        assert sizes(graph) == {"enter.0": 12}
    else:
        assert graph.groups == ()
        assert reason in graph.unprunable["enter.0"]
    exact(Between(function, leaving))


def test_a_rule_of_ones_own() -> None:
    def odd(x: Tensor) -> Tensor:
        return x.cummax(dim=2).values

    assert ChannelGraph.trace(Between(odd, 12), IMAGES).groups == ()
    try:

        @register_rule("cummax")
        def _cummax(trace, operation) -> None:  # type: ignore[no-untyped-def]
            rows = trace.rows(operation["self"])
            trace.freeze([rows[operation["dim"]]], "cummax runs over it")
            for output in operation.outputs():
                trace.assign(output, rows)

        assert sizes(exact(Between(odd, 12))) == {"enter.0": 12}
    finally:
        del RULES["cummax"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("aten::add", "add"),
        ("add_", "add"),
        ("add.Tensor", "add"),
        ("aten::_softmax.default", "softmax"),
        ("mylib::scale.default", "mylib::scale"),
    ],
)
def test_a_name_that_no_operation_is_found_by_is_refused_with_the_right_one(given: str, wanted: str) -> None:
    before = dict(RULES)
    with pytest.raises(ValueError, match=f"every overload has the rule of '{wanted}'"):
        register_rule(given)
    assert before == RULES


@pytest.mark.parametrize("given", ["", "mylib::", "no name", "mylib scale"])
def test_what_is_no_name_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="is no name of an operation"):
        register_rule(given)


@pytest.mark.parametrize("given", [(), (torch.ops.aten.add,), (lambda trace, operation: None,)])
def test_rules_go_by_names(given: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="register_rule takes names of operations"):
        register_rule(*given)  # type: ignore[arg-type]


def test_a_rule_is_a_function() -> None:
    with pytest.raises(TypeError, match="A rule is a function of the tracer and the operation"):
        register_rule("mylib::scale")("scale")  # type: ignore[arg-type]
    assert "mylib::scale" not in RULES
