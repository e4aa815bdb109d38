"""Widths that modules of Ultralytics and timm remember: they follow, so that their layers can be pruned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from testing.invariant import check_invariant


class Around(nn.Module):
    """A block between two convolutions."""

    def __init__(self, entering: int, block: nn.Module, leaving: int) -> None:
        super().__init__()
        self.enter, self.block, self.leave = nn.Conv2d(3, entering, 1), block, nn.Conv2d(leaving, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.block(self.enter(x)))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_scales_of_res2net() -> None:
    res2net = pytest.importorskip("timm.models.res2net")
    net = Around(32, res2net.Bottle2neck(32, 8, scale=4, base_width=64, norm_layer=nn.BatchNorm2d), 32)
    check = check_invariant(net, IMAGES)
    assert check.worst < 1e-4
    assert set(check.graph.unprunable) == {"leave"}


def test_scales_of_dla() -> None:
    dla = pytest.importorskip("timm.models.dla")
    check = check_invariant(Around(32, dla.DlaBottle2neck(32, 32, scale=4, base_width=64), 32), IMAGES)
    assert check.worst < 1e-4
    assert set(check.graph.unprunable) == {"leave"}


@pytest.mark.parametrize("apart", [True, False])
def test_dual_paths(apart: bool) -> None:
    dpn = pytest.importorskip("timm.models.dpn")
    net = dpn.DPN(
        k_sec=(2, 2, 1, 1),
        inc_sec=(4, 4, 4, 4),
        k_r=8,
        groups=2,
        num_classes=4,
        small=True,
        num_init_features=8,
        b=apart,
    )
    check = check_invariant(net, torch.randn(1, 3, 64, 64))
    assert check.worst < 1e-4
    assert set(check.graph.unprunable) == {"classifier"}


def test_deformable_attention_keeps_equally_many_of_each_head() -> None:
    transformer = pytest.importorskip("ultralytics.nn.modules.transformer")

    class Sampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = transformer.MSDeformAttn(16, n_levels=1, n_heads=2, n_points=2)
            self.leave = nn.Linear(16, 4)

        def forward(self, query: Tensor, value: Tensor) -> Tensor:
            boxes = torch.full((len(query), query.shape[1], 1, 4), 0.5)
            return self.leave(self.attention(query, boxes, value, [(4, 4)]))

    check = check_invariant(Sampled(), torch.randn(1, 5, 16), torch.randn(1, 16, 16))
    assert check.worst < 1e-4
    assert check.graph["attention.value_proj"].indices(("attention.value_proj.weight", 0), [1]).tolist() == [1, 9]


def test_multihead_attention_says_why_its_width_stays() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.attention, self.leave = nn.Linear(6, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.leave(self.attention(x, x, x, need_weights=False)[0])

    check = check_invariant(Attends(), torch.randn(5, 2, 6))
    assert check.worst < 1e-4
    assert "embed_dim" in check.graph.unprunable["enter"]
    assert [group.name for group in check.graph.groups] == ["attention.out_proj"]
