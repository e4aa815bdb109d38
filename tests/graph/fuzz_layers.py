"""Layers that compute with a width, keep state, or are reached in other ways than by a call of a child."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.fuzz_glue import GLUE, SPACE, along


class Glued(nn.Module):
    """A function of :data:`GLUE`, with a width that it remembers or reads off what it is given."""

    def __init__(self, name: str, width: int | None) -> None:
        super().__init__()
        self.function, self.width = GLUE[name], width

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, x.shape[1] if self.width is None else self.width)


# A class of its own for each: what fails in a layer is looked for in all of its class.
GLUED = {name: type(name.title().replace(" ", ""), (Glued,), {}) for name in GLUE}


class Module(nn.Module):
    """What the following have in common: a convolution, and the width that it was made with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(width, width, 1)
        self.prepare(width)

    def prepare(self, width: int) -> None:
        """Make the rest."""


class Squeeze(Module):
    def prepare(self, width: int) -> None:
        self.fall, self.rise = nn.Linear(width, max(2, width // 2)), nn.Linear(max(2, width // 2), width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rise(self.fall(x.mean((2, 3)).view(-1, self.width)).relu()).sigmoid()
        return self.conv(x) * y.view(-1, self.width, 1, 1)


class ChannelConv(nn.Module):
    """ECA: a convolution along channels, with a kernel that follows their number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = int(abs(math.log2(width) + 1) / 2) | 1
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]


class Heads(Module):
    def prepare(self, width: int) -> None:
        self.heads = 2
        self.scale = (width // 2) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)

    def factor(self, q: Tensor) -> float:
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).reshape(n, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)) * self.factor(q)).softmax(-1) @ v
        return self.conv(y.transpose(1, 2).reshape(n, h * w, -1).transpose(1, 2).unflatten(2, (h, w)))


class ScaledHeads(Heads):
    def factor(self, q: Tensor) -> float:
        return q.shape[-1] ** -0.5


class FusedHeads(Heads):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = (
            self.qkv(x.flatten(2).transpose(1, 2)).view(n, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.conv(y.transpose(1, 2).reshape(n, h * w, c).transpose(1, 2).unflatten(2, (h, w)))


class TorchHeads(Module):
    def prepare(self, width: int) -> None:
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.conv((tokens + self.attention(tokens, tokens, tokens)[0]).transpose(1, 2).unflatten(2, x.shape[2:]))


class Positions(Module):
    """A table by width, in a buffer that is not saved, and a learned one."""

    def prepare(self, width: int) -> None:
        table = torch.outer(
            torch.arange(width, dtype=torch.float64) / width, torch.ones(SPACE, dtype=torch.float64)
        ).sin()
        self.register_buffer("table", table[None, :, :, None], persistent=False)
        self.learned = nn.Parameter(torch.randn(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + self.table[:, : x.shape[1]] + self.learned)


class Blur(Module):
    """A fixed kernel in a buffer, repeated for each channel."""

    def prepare(self, width: int) -> None:
        line = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
        self.register_buffer("kernel", line[:, None] * line)
        self.register_buffer("kernels", self.kernel.repeat(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernels, padding=1, groups=self.width)
        return self.conv(F.conv2d(x, self.kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]))


class Equalised(Module):
    """StyleGAN's layer: a weight scaled by its own number of inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight * self.conv.weight[0].numel() ** -0.5, self.conv.bias)


class FanIn(Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) / math.sqrt(self.conv.in_channels)


class Standardised(Module):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        mean, spread = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / (spread * weight[0].numel() + 1e-3).sqrt(), self.conv.bias)


class Demodulated(Module):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight * (1 + x.mean((2, 3))[:1, None, :, None, None])[0]
        return F.conv2d(x, weight * (weight.square().sum((1, 2, 3), keepdim=True) + 1e-3).rsqrt())


class NormalisedWeight(Module):
    def prepare(self, width: int) -> None:
        self.conv = nn.utils.parametrizations.weight_norm(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SpectralWeight(Module):
    def prepare(self, width: int) -> None:
        self.conv = nn.utils.parametrizations.spectral_norm(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Dynamic(Module):
    """Kernels predicted from the features, one for each example and channel."""

    def prepare(self, width: int) -> None:
        self.kernels = nn.Linear(width, width * 9)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernels = self.kernels(x.mean((2, 3))).view(n * c, 1, 3, 3)
        return self.conv(F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n * c).view(n, c, h, w))


class Codebook(Module):
    def prepare(self, width: int) -> None:
        self.codes = nn.Embedding(8, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        near = torch.cdist(tokens, self.codes.weight).argmin(-1)
        return self.conv(self.codes(near).transpose(1, 2).unflatten(2, x.shape[2:]))


class EmbeddedChannels(Module):
    def prepare(self, width: int) -> None:
        self.names = nn.Embedding(width, 2)
        self.mix = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.conv(x * self.mix(self.names(places)).view(1, -1, 1, 1))


class Recurrent(Module):
    def prepare(self, width: int) -> None:
        self.cells = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.cells(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, x.shape[2:]))


class Scalars(nn.Module):
    """One parameter a channel, in a list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(())) for _ in range(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.stack([*self.scales])[: x.shape[1], None, None]


class Pieces(nn.Module):
    """A layer for each half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(width // 2, width // 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(piece) for part, piece in zip(self.parts, x.chunk(2, 1), strict=True)], 1)


class Experts(nn.Module):
    """Of which the values choose one; they are built alike."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        # More to the top than elsewhere: of random images half are so.
        top = (x[:, :, 0].sum() * x.shape[2] - x.sum()).item()
        return self.experts[int(top > 0)](x)


class Mixed(nn.Module):
    """Experts that all run, weighed by a gate, or only the best two of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 3)
        self.experts = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights, picked = self.gate(x.mean((2, 3))).softmax(-1).topk(2, -1)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return (every[rows, picked] * weights[..., None, None, None]).sum(1)


class Routed(nn.Module):
    """Each example goes through the expert that its values choose."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2)
        self.experts = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        picked, out = self.gate(x.mean((2, 3))).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out[picked == number] = expert(x[picked == number])
        return out


class Twice(Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


class Cache(Module):
    """Tables kept from call to call, by the shape that they are for."""

    def prepare(self, width: int) -> None:
        self.tables: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = tuple(x.shape[1:])
        if key not in self.tables:
            self.tables[key] = torch.linspace(0, 1, x.shape[1], device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
        return self.conv(x * self.tables[key])


class SpatialCache(Module):
    def prepare(self, width: int) -> None:
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None or self.grid.shape[-2:] != x.shape[-2:]:
            self.grid = torch.arange(x.shape[2] * x.shape[3], device=x.device).view(x.shape[2:]).to(x.dtype) / 8
        return self.conv(x * self.grid)


class WidthCache(Module):
    def prepare(self, width: int) -> None:
        self.ones: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.ones is None:
            self.ones = torch.ones(x.shape[1], 1, 1, device=x.device, dtype=x.dtype)
        return self.conv(x * self.ones)


class Counter(Module):
    def prepare(self, width: int) -> None:
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x.sin() if self.calls % 2 else x.cos())


class CountsInBuffer(Module):
    def prepare(self, width: int) -> None:
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x / (self.calls + 0))


class AverageInPlace(Module):
    def prepare(self, width: int) -> None:
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.5).add_(x.detach().mean((0, 2, 3)), alpha=0.5)
        return self.conv(x - self.mean[:, None, None])


class AverageReplaced(AverageInPlace):
    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean / 2 + x.detach().mean((0, 2, 3)) / 2
        return self.conv(x - self.mean[:, None, None])


class AverageAttribute(Module):
    def prepare(self, width: int) -> None:
        self.mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().mean((0, 2, 3))
        self.mean = now if self.mean is None else self.mean.lerp(now, 0.5)
        return self.conv(x - self.mean[:, None, None])


class Carried(Module):
    """Features of the call before come in again."""

    def prepare(self, width: int) -> None:
        self.before: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) if self.before is None else self.conv(x) + self.before
        self.before = x.detach()
        return y


class Queue(Module):
    """A memory of the last four, written by place."""

    def prepare(self, width: int) -> None:
        self.register_buffer("memory", torch.zeros(4, width))
        self.place = 0

    def forward(self, x: Tensor) -> Tensor:
        self.memory[self.place] = x.detach().mean((0, 2, 3))
        self.place = (self.place + 1) % 4
        return self.conv(x + self.memory.mean(0)[:, None, None])


class Remembers(Module):
    """A list that grows."""

    def prepare(self, width: int) -> None:
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().mean((0, 2, 3)))
        return self.conv(x + sum(self.seen)[:, None, None])  # type: ignore[index]


class HookDoubles(Module):
    def prepare(self, width: int) -> None:
        self.conv.register_forward_hook(lambda module, args, output: torch.cat([output, args[0]], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class HookReplaces(Module):
    """A hook that scales by the width."""

    def prepare(self, width: int) -> None:
        self.conv.register_forward_hook(lambda module, args, output: output / output.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class HookBefore(Module):
    def prepare(self, width: int) -> None:
        self.conv.register_forward_pre_hook(lambda module, args: (args[0] + args[0].flip(1),))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class HookCarries(Module):
    """A hook takes what enters one layer to behind another."""

    def prepare(self, width: int) -> None:
        self.second = nn.Conv2d(width, width, 1)
        kept: list[Tensor] = []
        self.conv.register_forward_hook(lambda module, args, output: kept.append(args[0]))
        self.second.register_forward_hook(lambda module, args, output: output + kept.pop())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(x).relu())


class Closure(Module):
    """Calls its layer through a function that was made when it was."""

    def prepare(self, width: int) -> None:
        conv = self.conv
        self.call = lambda x: conv(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


class Bound(Module):
    """Calls its layer through a method of it, kept under another name."""

    def prepare(self, width: int) -> None:
        self.norm = nn.BatchNorm2d(width)
        self.calls = [self.conv.forward, partial(self.norm.forward)]

    def forward(self, x: Tensor) -> Tensor:
        for call in self.calls:
            x = call(x)
        return x


class Replaced(Module):
    """Its forward is another method."""

    def prepare(self, width: int) -> None:
        self.forward = self.other  # type: ignore[method-assign]

    def other(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh() + x


class Unregistered(Module):
    """A layer that is no child, kept in a list: nobody can cut it."""

    def prepare(self, width: int) -> None:
        self.others = [nn.Conv2d(width, width, 1).double()]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.others[0](x))


class Borrowed(Module):
    """Weights under other names: the convolution's transposed, and in a list."""

    def prepare(self, width: int) -> None:
        self.weights = [self.conv.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.conv(x).relu(), self.weights[0].transpose(0, 1))


class PlainTensor(Module):
    """A tensor in an attribute, which nobody registered."""

    def prepare(self, width: int) -> None:
        self.offsets = torch.linspace(0, 1, width, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + along(x, self.offsets))


class PlainList(Module):
    """Numbers in a list, one a channel."""

    def prepare(self, width: int) -> None:
        self.offsets = [i / width for i in range(width)]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + along(x, torch.tensor(self.offsets)))


class Means(Module):
    """Normalises what it is given by fixed numbers, of which there are as many as channels."""

    def prepare(self, width: int) -> None:
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, width).view(1, -1, 1, 1))
        self.register_buffer("one_scale", torch.tensor(1 / width))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x - self.mean) * self.one_scale)


class Weighed(Module):
    """Divides by how many parameters it has."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (sum(p.numel() for p in self.parameters()) / 100)


class AsRemembered(Module):
    """Does something else where the width is not what it was."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.sin() if y.shape[1] == self.width else y


class Block(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(0.5), nn.ReLU())


class Depthwise(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1))


class Grouped(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 1, groups=math.gcd(width, 2)), nn.GroupNorm(math.gcd(width, 4), width))


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(Squeeze, ChannelConv, Heads, ScaledHeads, FusedHeads, TorchHeads, Positions, Blur, Equalised, FanIn),
        *(Standardised, Demodulated, NormalisedWeight, SpectralWeight, Dynamic, Codebook, EmbeddedChannels, Recurrent),
        *(Scalars, Pieces, Experts, Mixed, Routed, Twice, Cache, SpatialCache, WidthCache, Counter, CountsInBuffer),
        *(AverageInPlace, AverageReplaced, AverageAttribute, Carried, Queue, Remembers, HookDoubles, HookReplaces),
        *(HookBefore, HookCarries, Closure, Bound, Replaced, Unregistered, Borrowed, PlainTensor, PlainList, Means),
        *(Weighed, AsRemembered, Block, Depthwise, Grouped),
    )
}
