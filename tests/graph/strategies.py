"""Random networks for hypothesis: programs of a few steps that a module runs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

Step = tuple[Any, ...]
SPACE = 4


class Program(nn.Module):
    """Runs steps over a growing list of maps; each step names its inputs by their place in it.

    A failing case prints as its steps, and can be built again from them.
    """

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleDict()
        widths = [3]
        for number, step in enumerate(steps):
            _build(self.layers, str(number), step, widths)
        self.widths = widths
        used = {place for step in steps for place in _inputs(step)}
        self.ends = [place for place in range(1, len(widths)) if place not in used] or [0]
        for place in self.ends:
            self.layers[f"head{place}"] = nn.Conv2d(widths[place], 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for number, step in enumerate(self.steps):
            layer = dict(self.layers.items()).get(str(number))
            values.extend(_run(self.layers, layer, step, [values[place] for place in _inputs(step)]))
        return [self.layers[f"head{place}"](values[place]) for place in self.ends]

    def __repr__(self) -> str:
        return f"Program({self.steps!r})"


def _inputs(step: Step) -> tuple[int, ...]:
    return step[1] if isinstance(step[1], tuple) else (step[1],)


def _build(layers: nn.ModuleDict, name: str, step: Step, widths: list[int]) -> None:
    """Make the layers of a step, and append the widths of what it returns."""
    kind, width = step[0], widths[_inputs(step)[0]]
    made = [width]
    if kind == "conv":
        _, _, leaving, kernel, groups = step
        layers[name], made = nn.Conv2d(width, leaving, kernel, padding=kernel // 2, groups=groups), [leaving]
    elif kind == "depthwise":
        layers[name], made = nn.Conv2d(width, width * step[2], 3, padding=1, groups=width), [width * step[2]]
    elif kind == "transposed":
        _, _, leaving, groups = step
        layers[name], made = nn.ConvTranspose2d(width, leaving, 3, padding=1, groups=groups), [leaving]
    elif kind == "batch_norm":
        layers[name] = nn.BatchNorm2d(width)
    elif kind == "group_norm":
        layers[name] = nn.GroupNorm(step[2], width)
    elif kind == "layer_norm":
        layers[name] = nn.LayerNorm(width)
    elif kind == "gate":
        layers[name] = nn.Sequential(nn.Conv2d(width, step[2], 1), nn.ReLU(), nn.Conv2d(step[2], width, 1))
    elif kind == "attention":
        layers[name] = nn.Conv2d(width, 3 * width, 1)
    elif kind == "cat":
        made = [sum(widths[place] for place in step[1])]
    elif kind == "chunk":
        made = [width // step[2]] * step[2]
    elif kind in ("split", "slice"):
        made = [step[2], width - step[2]]
    elif kind == "flatten":
        layers[name] = nn.Linear(width * SPACE * SPACE, step[2])
        made = [step[2]]
    elif kind == "again":
        made = [layers[str(step[2])].out_channels]
    widths.extend(made)


def _run(layers: nn.ModuleDict, layer: Any, step: Step, inputs: list[Tensor]) -> list[Tensor]:
    kind, x = step[0], inputs[0]
    n, c, h, w = x.shape
    if kind == "layer_norm":
        return [layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]
    if kind == "gate":
        return [x * layer(x.mean((2, 3), keepdim=True)).sigmoid()]
    if kind == "attention":
        q, k, v = layer(x).view(n, 3, step[2], -1, h * w).unbind(1)
        return [(v @ (q.transpose(-2, -1) @ k).softmax(-1)).reshape(n, -1, h, w)]
    if kind == "flatten":
        return [layer(x.flatten(1))[:, :, None, None].expand(-1, -1, h, w)]
    if kind == "again":
        return [layers[str(step[2])](x)]
    if layer is not None:
        return [layer(x)]
    if kind == "act":
        return [{"relu": F.relu, "silu": F.silu, "sigmoid": torch.sigmoid}[step[2]](x)]
    if kind == "pool":
        return [F.max_pool2d(x, 3, 1, 1)]
    if kind == "add":
        return [inputs[0] + inputs[1]]
    if kind == "mul":
        return [inputs[0] * inputs[1]]
    if kind == "cat":
        return [torch.cat(inputs, 1)]
    if kind == "chunk":
        return list(x.chunk(step[2], 1))
    if kind == "split":
        return list(x.split([step[2], c - step[2]], 1))
    if kind == "slice":
        return [x[:, : step[2]], x[:, step[2] :]]
    if kind == "shuffle":
        return [x.view(n, step[2], -1, h, w).transpose(1, 2).reshape(n, c, h, w)]
    raise ValueError(f"unknown step {kind!r}")


@st.composite
def programs(draw: st.DrawFn, most: int = 9) -> Program:
    """A network of at most ``most`` steps behind a convolution."""
    steps: list[Step] = [("conv", 0, draw(st.sampled_from([4, 6, 8, 12])), 1, 1)]
    widths = [3, steps[0][2]]
    for _ in range(draw(st.integers(1, most))):
        step = draw(_step(widths, steps))
        _build(
            nn.ModuleDict({str(i): nn.Conv2d(1, s[2], 1) for i, s in enumerate(steps) if s[0] == "conv"}),
            "x",
            step,
            widths,
        )
        steps.append(step)
    return Program(steps)


@st.composite
def _step(draw: st.DrawFn, widths: list[int], steps: list[Step]) -> Step:
    places = st.integers(1, len(widths) - 1)
    place = draw(places)
    width = widths[place]
    leaving = st.sampled_from([2, 4, 6, 8, 12])

    def divisors(*numbers: int) -> st.SearchStrategy[int]:
        return st.sampled_from([d for d in (1, 2, 3, 4) if all(number % d == 0 for number in numbers)])

    twins = [other for other in range(1, len(widths)) if widths[other] == width]
    convs = [i for i, s in enumerate(steps) if s[0] == "conv" and widths[s[1]] == width]
    kinds = ["conv", "conv", "depthwise", "transposed", "batch_norm", "group_norm", "layer_norm", "act", "pool", "gate"]
    kinds += ["add", "add", "mul", "cat", "cat", "attention", "flatten"]
    kinds += ["again"] * bool(convs) + ["split", "slice"] * (width > 1) + ["chunk", "shuffle"] * (width % 2 == 0)
    kind = draw(st.sampled_from(kinds))
    if kind == "conv":
        out = draw(leaving)
        return kind, place, out, draw(st.sampled_from([1, 3])), draw(divisors(width, out))
    if kind == "transposed":
        out = draw(leaving)
        return kind, place, out, draw(divisors(width, out))
    if kind == "depthwise":
        return kind, place, draw(st.sampled_from([1, 1, 2]))
    if kind in ("group_norm", "attention"):
        return kind, place, draw(divisors(width))
    if kind in ("gate", "flatten"):
        return kind, place, draw(st.sampled_from([2, 4]))
    if kind == "act":
        return kind, place, draw(st.sampled_from(["relu", "silu", "sigmoid"]))
    if kind in ("add", "mul"):
        return kind, (place, draw(st.sampled_from(twins)))
    if kind == "cat":
        return kind, (place, *draw(st.lists(places, min_size=1, max_size=2)))
    if kind in ("chunk", "shuffle"):
        return kind, place, draw(st.sampled_from([d for d in (2, 3, 4) if width % d == 0]))
    if kind in ("split", "slice"):
        return kind, place, draw(st.integers(1, width - 1))
    if kind == "again":
        return kind, place, draw(st.sampled_from(convs))
    return kind, place
