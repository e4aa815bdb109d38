"""Heads that the attentions of timm's hybrid networks remember follow, so that they can be pruned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph, shrink_
from testing.invariant import check_invariant

pytest.importorskip("timm")
from timm.layers.pos_embed_rel import RelPosBias, RelPosMlp
from timm.models import efficientformer, efficientformer_v2, levit, maxxvit, tiny_vit

SIZE, WIDTH = 4, 24


class Around(nn.Module):
    """An attention between two convolutions: over images, or over their places one after the other."""

    def __init__(self, attention: nn.Module, over_places: bool, leaving: int = WIDTH) -> None:
        super().__init__()
        self.enter, self.attention, self.leave = nn.Conv2d(3, WIDTH, 1), attention, nn.Linear(leaving, 4)
        self.over_places = over_places

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = self.attention(x.flatten(2).transpose(1, 2) if self.over_places else x)
        return self.leave(x.mean(1) if self.over_places else x.mean((2, 3)))


_rel_pos = partial(RelPosBias, window_size=(SIZE, SIZE))
_rel_mlp = partial(RelPosMlp, window_size=(SIZE, SIZE), hidden_dim=16)
ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "levit": lambda: Around(levit.Attention(WIDTH, 6, 4, 2.0, SIZE), True),
    "levit downsample": lambda: Around(levit.AttentionDownsample(WIDTH, WIDTH, 6, 4, 2.0, 2, SIZE), True),
    "efficientformer": lambda: Around(efficientformer.Attention(WIDTH, 6, 4, 2, SIZE), True),
    "efficientformer v2": lambda: Around(efficientformer_v2.Attention2d(WIDTH, 6, 4, 2, SIZE), False),
    "tiny_vit": lambda: Around(tiny_vit.Attention(WIDTH, 6, 4, 1, (SIZE, SIZE)), True),
    "coatnet": lambda: Around(maxxvit.Attention2d(WIDTH, dim_head=6, rel_pos_cls=_rel_pos), False),
    "coatnet, computed positions": lambda: Around(maxxvit.Attention2d(WIDTH, dim_head=6, rel_pos_cls=_rel_mlp), False),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_are_free(name: str) -> None:
    net: Any = ATTENTIONS[name]()
    for parameter in net.attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    check = check_invariant(net, torch.randn(2, 3, SIZE, SIZE))
    assert check.worst < 1e-4
    assert not [layer for layer in check.graph.unprunable if layer.endswith(("qkv", "kv.linear", "v.conv", "enter"))]


def test_a_bias_that_was_looked_up_is_forgotten_with_a_cut() -> None:
    net: Any = ATTENTIONS["tiny_vit"]().eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    net(images)
    assert net.attention.attention_bias_cache
    graph = ChannelGraph.trace(net, images)
    assert net.attention.attention_bias_cache
    whole = next(group for group in graph.groups if ("attention.attention_biases", 0) in group.slots)
    shrink_(net, graph.plan({name: [0] for name in whole.balanced or (whole.name,)}))
    assert net(images).shape == (2, 4)
