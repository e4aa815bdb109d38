"""Functions that compute with a width: between layers, in scales, kernels, indices, shapes, loops and conditions.

Each takes maps ``(n, c, h, w)`` and their width, which a network has remembered from when it was made, or reads off the
maps. Each returns maps of any width, ``h`` by ``w``. Where a width does not fit (no half of an odd one) it raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Sides of the maps.
SPACE = 6

Glue = Callable[[Tensor, int], Tensor]


def along(x: Tensor, values: Tensor) -> Tensor:
    """Values of one number a channel, to be broadcast over maps."""
    return values.to(x).view(1, -1, 1, 1)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _maps(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def _gaussian(x: Tensor, c: int) -> Tensor:
    places = torch.arange(3, device=x.device, dtype=x.dtype) - 1
    line = torch.exp(-(places**2) / 2)
    return F.conv2d(x, (line[:, None] * line / line.sum() ** 2).repeat(c, 1, 1, 1), padding=1, groups=c)


def _sines(x: Tensor, c: int) -> Tensor:
    rates = torch.exp(torch.arange(0, c, 2, device=x.device, dtype=x.dtype) * (-math.log(100.0) / c))
    places = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)[:, None] * rates
    table = torch.stack([places.sin(), places.cos()], -1).flatten(1)[:, :c]
    return x + table.t()[None, :, :, None]


def _loop(x: Tensor, c: int) -> Tensor:
    for _ in range(c // 4):
        x = torch.tanh(x)
    return x


def _copied(x: Tensor, out: Tensor) -> Tensor:
    out[:] = x
    return out


def _by_four(x: Tensor, scale: float | None) -> Tensor:
    q = x.flatten(2).transpose(1, 2)[:, None]
    return _maps(F.scaled_dot_product_attention(q, q, q, scale=scale)[:, 0], x)


def _swap_halves(x: Tensor, c: int) -> Tensor:
    first, second = x.split([c // 2, c - c // 2], 1)
    return torch.cat([second, first * 2], 1)


def _gated_halves(x: Tensor, c: int) -> Tensor:
    first, second = x.chunk(2, 1)
    return first * second.sigmoid()


def _shift(x: Tensor, c: int) -> Tensor:
    part, out = c // 4, torch.zeros_like(x)
    out[:, :part, 1:] = x[:, :part, :-1]
    out[:, part : 2 * part, :-1] = x[:, part : 2 * part, 1:]
    out[:, 2 * part :] = x[:, 2 * part :]
    return out


def _first_half_doubled(x: Tensor, c: int) -> Tensor:
    x = x.clone()
    x[:, : c // 2] *= 2
    return x


def _written(x: Tensor, c: int) -> Tensor:
    out = x.new_zeros(x.shape[0], c, *x.shape[2:])
    out[:, :] = x
    return out + 1


def _gram(x: Tensor, c: int) -> Tensor:
    flat = x.flatten(2)
    return ((flat @ flat.transpose(1, 2) / c).softmax(-1) @ flat).view_as(x)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def _one_hot(x: Tensor, c: int) -> Tensor:
    return F.one_hot(x.argmax(1), c).permute(0, 3, 1, 2).to(x) * x


def _banded(x: Tensor, c: int) -> Tensor:
    return torch.einsum("ij,njhw->nihw", torch.tril(torch.ones(c, c, device=x.device, dtype=x.dtype)), x)


def _scattered(x: Tensor, c: int) -> Tensor:
    places = torch.arange(c, device=x.device).flip(0).view(1, c, 1, 1).expand_as(x)
    return torch.zeros_like(x).scatter(1, places, x)


def _softmax_heads(x: Tensor, heads: int) -> Tensor:
    n, c, h, w = x.shape
    q = x.view(n, heads, c // heads, h * w)
    return (
        ((q.transpose(-2, -1) @ q) * (c // heads) ** -0.5)
        .softmax(-1)
        .matmul(q.transpose(-2, -1))
        .transpose(-2, -1)
        .reshape(n, c, h, w)
    )


NUMBERS: dict[str, Glue] = {
    "root": lambda x, c: x / c**0.5,
    "tensor": lambda x, c: x * torch.tensor(1.0 / c),
    "item": lambda x, c: x * torch.tensor([c, 2]).float().mean().item(),
    "numpy": lambda x, c: x * float(np.sqrt(c)),
    "logarithm": lambda x, c: x * math.log2(c),
    "added": lambda x, c: x + c / 10,
    "sum of ones": lambda x, c: x / x.new_ones(c).sum(),
    "full": lambda x, c: x * torch.full((c,), 1 / c, dtype=x.dtype, device=x.device)[:, None, None],
    "one full": lambda x, c: x * x.new_full((1, 1, 1, 1), 1 / c),
    "numel": lambda x, c: x * (x.numel() / 512),
    "numel of one": lambda x, c: x * (x[0].numel() / 64),
    "len": lambda x, c: x * (len(x[0]) / 8),
    "shape in a tensor": lambda x, c: x / torch.tensor(list(x.shape[1:])).prod(),
    "size as a tensor": lambda x, c: x * torch.as_tensor(x.shape, dtype=x.dtype, device=x.device)[1],
    "lookup": lambda x, c: x * {4: 2.0, 6: 3.0, 8: 0.5}.get(c, 1.0),
    "bound": lambda x, c: x.clamp(max=c / 16),
    "power": lambda x, c: x.abs() ** (c / 16),
    "slope": lambda x, c: F.leaky_relu(x, 1 / c),
    "sum of channels over c": lambda x, c: x + x.sum(1, keepdim=True) / c,
    "mean times c": lambda x, c: x + x.mean(1, keepdim=True) * c,
    "temperature": lambda x, c: (x.flatten(2) / c).softmax(-1).view_as(x),
    "temperature along channels": lambda x, c: (x / c).softmax(1),
    "condition": lambda x, c: x.sin() if c > 5 else x.cos(),
    "parity": lambda x, c: x.sin() if c % 2 else x.cos(),
    "loop": _loop,
    "square of statistic": lambda x, c: x * (x.mean((2, 3), keepdim=True).pow(2).sum(1, keepdim=True) / c).sqrt(),
    "range mean": lambda x, c: x * torch.arange(c, device=x.device).to(x.dtype).mean(),
    "empty numel": lambda x, c: x / torch.empty(c, device=x.device).numel(),
    "bit": lambda x, c: x * (1 << (c.bit_length() - 1)),
    "number of parts": lambda x, c: x * len(x.split(2, 1)),
    "number of rows": lambda x, c: x * sum(1 for _ in x[0]),
    "grid": lambda x, c: x * (torch.arange(x.shape[2] * x.shape[3], device=x.device).view(x.shape[2:]).to(x.dtype) / c),
    "grid of sines": lambda x, c: (
        x + torch.linspace(0, c, x.shape[3], device=x.device, dtype=x.dtype).sin() * x.new_ones(x.shape[2], 1)
    ),
    "grid by place": lambda x, c: (
        x
        * torch.zeros(x.shape[2:], device=x.device, dtype=x.dtype).index_fill_(
            0, torch.tensor([1], device=x.device), 1 / c
        )
    ),
    "filled later": lambda x, c: x * torch.empty(x.shape[2:], device=x.device, dtype=x.dtype).fill_(1 / c),
    "numpy scalar": lambda x, c: x * torch.from_numpy(np.array([1 / c])).to(x),
    "numpy grid": lambda x, c: x * torch.from_numpy(np.full(x.shape[2:], 1 / c)).to(x),
    "written and scaled": lambda x, c: _copied(x, torch.zeros(x.shape, dtype=x.dtype, device=x.device)) / c,
    "like and scaled": lambda x, c: x + torch.ones_like(x) / c,
    "long ago": lambda x, c: x * torch.ones(300, device=x.device, dtype=x.dtype).mul(1 / c)[:1],
    "data": lambda x, c: x.data / c,
    "zip": lambda x, c: sum(weight * part for weight, part in zip((1.0, 2.0), x.chunk(2, 1), strict=True)),  # type: ignore[misc]
}

TABLES: dict[str, Glue] = {
    "linspace": lambda x, c: x * along(x, torch.linspace(0.5, 1.5, c)),
    "linspace there": lambda x, c: x * torch.linspace(0.5, 1.5, c, device=x.device, dtype=x.dtype).view(1, c, 1, 1),
    "arange": lambda x, c: x + torch.arange(c, device=x.device).view(1, -1, 1, 1) / 10,
    "numpy table": lambda x, c: x * along(x, torch.from_numpy(np.linspace(0, 1, c))),
    "list table": lambda x, c: x * along(x, torch.tensor([1.0 + i / 10 for i in range(c)])),
    "even ones": lambda x, c: x * (torch.arange(c, device=x.device) % 2 == 0).view(1, c, 1, 1),
    "where": lambda x, c: torch.where(torch.arange(c, device=x.device).view(1, c, 1, 1) < c // 2, x, -x),
    "masked fill": lambda x, c: x.masked_fill((torch.arange(c, device=x.device) < 2).view(1, c, 1, 1), 0.5),
    "sines": _sines,
    "eye": lambda x, c: torch.einsum("ij,njhw->nihw", 2 * torch.eye(c, device=x.device, dtype=x.dtype), x),
    "eye kernel": lambda x, c: F.conv2d(x, torch.eye(c, device=x.device, dtype=x.dtype)[:, :, None, None]),
    "banded": _banded,
    "diagonal": lambda x, c: _maps(_tokens(x) @ torch.ones(c, device=x.device, dtype=x.dtype).diag(), x),
    "mean kernel": lambda x, c: F.conv2d(x, x.new_full((c, c, 1, 1), 1 / c)),
    "sum kernel": lambda x, c: x + F.conv2d(x, x.new_ones(1, c, 1, 1)),
    "gaussian": _gaussian,
    "box": lambda x, c: F.conv2d(x, x.new_full((c, 1, 3, 3), 1 / 9), padding=1, groups=c),
    "zeros added": lambda x, c: x + x.new_zeros(c, 1, 1),
    "ones times": lambda x, c: x * torch.ones(1, c, 1, 1, dtype=x.dtype, device=x.device),
    "cumulated ones": lambda x, c: x * x.new_ones(c).cumsum(0)[:, None, None],
    "one hot": _one_hot,
    "outer ones": lambda x, c: _maps(_tokens(x) @ torch.outer(x.new_ones(c), x.new_ones(c)), x) / 8,
    "meshgrid": lambda x, c: (
        x
        + sum(torch.meshgrid(*[torch.arange(float(k), device=x.device) for k in x.shape[1:]], indexing="ij")).to(x) / 10
    ),  # type: ignore[union-attr]
    "dropout mask": lambda x, c: (
        x * (torch.rand(c, generator=torch.Generator().manual_seed(0)) < 0.5).to(x).view(1, c, 1, 1)
    ),
}

INDICES: dict[str, Glue] = {
    "reversed": lambda x, c: x[:, torch.arange(c - 1, -1, -1, device=x.device)],
    "listed": lambda x, c: x[:, list(range(c))[::-1]],
    "selected": lambda x, c: x.index_select(1, torch.arange(0, c, 2, device=x.device)),
    "every other": lambda x, c: x[:, ::2],
    "odd ones": lambda x, c: x[:, 1::2],
    "middle": lambda x, c: x * x[:, c // 2 : c // 2 + 1],
    "last": lambda x, c: x * x[:, -1:],
    "last by number": lambda x, c: x + x[:, c - 1].unsqueeze(1),
    "first ones": lambda x, c: x[:, :3],
    "all but one": lambda x, c: x[:, : c - 1],
    "at most": lambda x, c: x[:, : min(c, 8)],
    "narrow": lambda x, c: x.narrow(1, c // 4, c // 2),
    "row of space": lambda x, c: x + x[:, :, c % x.shape[2], None],
    "gather": lambda x, c: x.gather(1, torch.arange(c, device=x.device).flip(0).view(1, c, 1, 1).expand_as(x)),
    "scatter": _scattered,
    "take along": lambda x, c: torch.take_along_dim(x, x.argsort(1), 1),
    "topk": lambda x, c: x.topk(max(1, c // 2), 1).values,
    "topk mean": lambda x, c: x * x.topk(max(1, c // 2), 1).values.mean(1, keepdim=True),
    "topk gate": lambda x, c: x * (x >= x.mean((2, 3), keepdim=True).topk(max(1, c // 2), 1).values[:, -1:]),
    "kth": lambda x, c: x - x.kthvalue(max(1, c // 2), 1, keepdim=True).values,
    "median": lambda x, c: x - x.median(1, keepdim=True).values,
    "quantile": lambda x, c: x - x.quantile(0.5, 1, keepdim=True),
    "sorted": lambda x, c: x.sort(1).values,
    "cumsum": lambda x, c: x.cumsum(1) / 4,
    "cummax": lambda x, c: x.cummax(1).values,
    "flip": lambda x, c: x.flip(1),
    "flip of space": lambda x, c: x.flip(2, 3),
    "roll": lambda x, c: x.roll(1, 1),
    "roll by half": lambda x, c: x.roll(c // 2, 1),
    "roll space": lambda x, c: x.roll(c // 4, 2),
    "difference": lambda x, c: x.diff(dim=1),
    "stacked": lambda x, c: torch.stack([x[:, i].sin() for i in range(c)], 1),
    "stacked with numbers": lambda x, c: torch.stack([part * (i + 1) for i, part in enumerate(x.unbind(1))], 1),
    "stacked backwards": lambda x, c: torch.stack(x.unbind(1)[::-1], 1),
    "half doubled": _first_half_doubled,
    "shift": _shift,
    "written": _written,
    "argmax": lambda x, c: x * x.argmax(1, keepdim=True) / c,
    "bucket": lambda x, c: x + torch.bucketize(x, torch.linspace(-1, 1, c, device=x.device, dtype=x.dtype)) / 8,
}

SHAPES: dict[str, Glue] = {
    "view": lambda x, c: x.view(x.shape[0], c, -1).softmax(-1).view(x.shape[0], c, *x.shape[2:]),
    "reshape with -1": lambda x, c: (
        x.reshape(-1, c, x.shape[2] * x.shape[3]).tanh().reshape(x.shape[0], -1, *x.shape[2:])
    ),
    "pairs summed": lambda x, c: x.reshape(x.shape[0], 2, c // 2, *x.shape[2:]).sum(1),
    "neighbours summed": lambda x, c: x.reshape(x.shape[0], c // 2, 2, *x.shape[2:]).sum(2),
    "maxout": lambda x, c: x.unflatten(1, (-1, 2)).amax(2),
    "halves": _swap_halves,
    "chunks": _gated_halves,
    "split size": lambda x, c: x.split(c // 2, 1)[0],
    "split and cat": lambda x, c: torch.cat(x.split(max(1, c // 4), 1)[::-1], 1),
    "tensor split": lambda x, c: torch.cat([part * (i + 1) for i, part in enumerate(x.tensor_split(3, 1))], 1),
    "glu": lambda x, c: F.glu(x, 1),
    "pad": lambda x, c: F.pad(x, (0, 0, 0, 0, 0, c // 2)),
    "pad in front": lambda x, c: F.pad(x, (0, 0, 0, 0, 2, 0), value=0.5),
    "pad to sixteen": lambda x, c: F.pad(x, (0, 0, 0, 0, 0, 16 - c)),
    "pad to four": lambda x, c: F.pad(x, (0, 0, 0, 0, 0, -c % 4)),
    "cat ones": lambda x, c: torch.cat([x, x.new_ones(x.shape[0], 2, *x.shape[2:])], 1),
    "cat zeros": lambda x, c: torch.cat([x, x.new_zeros(x.shape[0], c, *x.shape[2:])], 1),
    "cat like": lambda x, c: torch.cat([torch.full_like(x, 1 / c), x], 1),
    "cat rows": lambda x, c: torch.cat(
        [
            x,
            torch.linspace(0, 1, x.shape[2], device=x.device, dtype=x.dtype)
            .view(1, 1, -1, 1)
            .expand(x.shape[0], 1, *x.shape[2:]),
        ],
        1,
    ),
    "cat mean": lambda x, c: torch.cat([x, x.mean(1, keepdim=True)], 1),
    "twice": lambda x, c: torch.cat([x, x], 1),
    "interleaved": lambda x, c: x.repeat_interleave(2, 1),
    "interleaved two": lambda x, c: torch.stack([x, x * 2], 2).flatten(1, 2),
    "repeat": lambda x, c: x.repeat(1, 2, 1, 1),
    "tile": lambda x, c: x.tile(1, 2, 1, 1),
    "shuffle by two": lambda x, c: _shuffled(x, 2),
    "shuffle by half": lambda x, c: _shuffled(x, c // 2),
    "attention by two": lambda x, c: _softmax_heads(x, 2),
    "attention of two": lambda x, c: _softmax_heads(x, c // 2),
    "batch": lambda x, c: F.avg_pool2d(x.reshape(-1, 1, *x.shape[2:]), 3, 1, 1).view(-1, c, *x.shape[2:]),
    "batch and kernel": lambda x, c: F.conv2d(
        x.reshape(-1, 1, *x.shape[2:]), x.new_full((1, 1, 3, 3), 0.1), padding=1
    ).view(x.shape),
    "outer": lambda x, c: torch.einsum("nchw,ndhw->ncdhw", x[:, :4], x).flatten(1, 2),
    "unfold": lambda x, c: F.unfold(x, 3, padding=1).view(x.shape[0], -1, *x.shape[2:]),
    "pixel shuffle": lambda x, c: F.avg_pool2d(F.pixel_shuffle(x, 2), 2),
    "pixel unshuffle": lambda x, c: F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2),
    "size by width": lambda x, c: F.interpolate(F.adaptive_avg_pool2d(x, c // 4 + 1), size=x.shape[2:]),
    "kernel by width": lambda x, c: F.avg_pool2d(x, 1 + 2 * (c // 8), 1, c // 8),
    "pooled channels": lambda x, c: _maps(F.adaptive_avg_pool1d(_tokens(x), c // 2), x),
    "interpolated channels": lambda x, c: _maps(F.interpolate(_tokens(x), scale_factor=2), x),
    "channels windowed": lambda x, c: _maps(F.avg_pool1d(_tokens(x), 3, 1, 1), x),
    "channels convolved": lambda x, c: _maps(
        F.conv1d(_tokens(x).flatten(0, 1)[:, None], x.new_ones(1, 1, 3), padding=1).view(x.shape[0], -1, c), x
    ),
    "unfold channels": lambda x, c: x.unfold(1, 2, 2).sum(-1),
    "strided": lambda x, c: x.contiguous().as_strided(x.shape, x.contiguous().stride()) + 1,
    "expanded": lambda x, c: x + x.mean(1, keepdim=True).expand(-1, c, -1, -1),
    "movedim": lambda x, c: x.movedim(1, -1).reshape(-1, c).tanh().reshape(x.shape[0], *x.shape[2:], c).movedim(-1, 1),
    "vectors of two": lambda x, c: F.normalize(x.view(x.shape[0], c // 2, 2, *x.shape[2:]), dim=2).flatten(1, 2),
    "sized as": lambda x, c: x.flatten(1)[:, : c * 4].view(x.shape[0], c, 2, 2).repeat(1, 1, 2, 2),
}

STATISTICS: dict[str, Glue] = {
    "softmax": lambda x, c: x.softmax(1),
    "softmax in space": lambda x, c: x.flatten(2).softmax(-1).view_as(x),
    "normalize": lambda x, c: F.normalize(x, dim=1),
    "normalize with norms by hand": lambda x, c: x / (x.pow(2).sum(1, keepdim=True) + 1e-3).sqrt(),
    "root mean square": lambda x, c: x * (x.pow(2).mean(1, keepdim=True) + 1e-3).rsqrt(),
    "by hand": lambda x, c: (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-3).sqrt(),
    "one mean": lambda x, c: x - x.mean(),
    "one deviation": lambda x, c: x / (x.std() + 0.1),
    "maximum": lambda x, c: x + x.amax(1, keepdim=True),
    "one maximum": lambda x, c: x / (x.abs().max() + 0.1),
    "product": lambda x, c: x + x.tanh().prod(1, keepdim=True),
    "logsumexp": lambda x, c: x - x.logsumexp(1, keepdim=True),
    "vector norm": lambda x, c: x / (1 + torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "three norm": lambda x, c: x / (1 + x.norm(3, 1, keepdim=True)),
    "cosine": lambda x, c: x * F.cosine_similarity(x, x.flip(2), dim=1).unsqueeze(1),
    "any": lambda x, c: x * (x > 1).any(1, keepdim=True),
    "count": lambda x, c: x * (x > 0).sum(1, keepdim=True),
    "gram": _gram,
    "covariance": lambda x, c: torch.einsum("ncd,ndhw->nchw", torch.einsum("nchw,ndhw->ncd", x, x) / 16, x),
    "layer norm": lambda x, c: F.layer_norm(x.movedim(1, -1), (c,)).movedim(-1, 1),
    "layer norm over all": lambda x, c: F.layer_norm(x, (c, *x.shape[2:])),
    "group norm by two": lambda x, c: F.group_norm(x, 2),
    "group norm of two": lambda x, c: F.group_norm(x, c // 2),
    "group norm by width": lambda x, c: F.group_norm(x, math.gcd(c, 4)),
    "instance norm": lambda x, c: F.instance_norm(x),
    "batch norm": lambda x, c: F.batch_norm(x, x.new_zeros(c), x.new_ones(c)),
    "response": lambda x, c: F.local_response_norm(x, 3),
    "response by width": lambda x, c: F.local_response_norm(x, c // 2),
    "fourier along channels": lambda x, c: torch.fft.fft(x, dim=1).real,
    "fourier in space": lambda x, c: torch.fft.ifft2(torch.fft.fft2(x) * 2).real,
    "distance": lambda x, c: x * torch.cdist(_tokens(x), _tokens(x)).mean(-1).view(x.shape[0], 1, *x.shape[2:]),
    "groups whitened": lambda x, c: (
        x.view(x.shape[0], 2, -1) - x.view(x.shape[0], 2, -1).mean(-1, keepdim=True)
    ).view_as(x),
    "dropout": lambda x, c: F.dropout2d(x, 1 / c, training=False),
    "energy": lambda x, c: x * ((x - x.mean((2, 3), keepdim=True)).pow(2) / (x.shape[2] * x.shape[3] - 1)).sigmoid(),
    "attention": lambda x, c: _maps(F.scaled_dot_product_attention(_tokens(x), _tokens(x), _tokens(x)), x),
    "attention with a scale": lambda x, c: _maps(
        F.scaled_dot_product_attention(_tokens(x), _tokens(x), _tokens(x), scale=1 / c), x
    ),
    "one head": lambda x, c: _by_four(x, None),
    "one head with a scale": lambda x, c: _by_four(x, 1 / c),
    "attention with a bias": lambda x, c: _maps(
        F.scaled_dot_product_attention(
            *[_tokens(x)[:, None]] * 3, attn_mask=torch.eye(x.shape[2] * x.shape[3], device=x.device, dtype=x.dtype) / c
        )[:, 0],
        x,
    ),
    "batch norm by width": lambda x, c: F.batch_norm(x, x.new_zeros(c), x.new_ones(c), eps=1 / c),
    "spatial norm by width": lambda x, c: F.rms_norm(x, x.shape[2:], eps=1 / c),
    "attention of channels": lambda x, c: F.scaled_dot_product_attention(
        x.flatten(2), x.flatten(2), x.flatten(2)
    ).view_as(x),
}

GLUE: dict[str, Glue] = {**NUMBERS, **TABLES, **INDICES, **SHAPES, **STATISTICS}
assert len(GLUE) == sum(map(len, (NUMBERS, TABLES, INDICES, SHAPES, STATISTICS)))
