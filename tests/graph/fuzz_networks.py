"""Random networks that compute with widths, return all kinds of objects, and keep state between calls."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.graph.fuzz_glue import SPACE
from tests.graph.fuzz_layers import GLUED, LAYERS
from tests.graph.fuzz_outputs import OUTPUTS

# What is done, to which of the values so far, how that is joined with another of them, and whether the width is
# remembered rather than read off.
Step = tuple[str, int, str, int, bool]
WIDEST = 40
# What is needed to trace it: a copy without values, one with values, or the network itself.
WAYS = st.sampled_from(("", "", "reads", "hooked"))
JOINS = ("", "", "", "add", "mul", "cat")
WIDTHS = (4, 6, 8, 12)
KINDS = (*(f"conv {width}" for width in WIDTHS), *GLUED, *LAYERS)


class Network(nn.Module):
    """A convolution, steps over a growing list of maps, and a head for each map that no step has used.

    A step that does not fit the width that it meets is left out. A failing case prints as its arguments.
    """

    def __init__(self, stem: int, steps: list[Step], output: str = "list", way: str = "") -> None:
        super().__init__()
        self.way = way
        torch.manual_seed(0)
        self.output: str = output
        self.steps: list[Step] = []
        self.stem = nn.Conv2d(3, stem, 1).double()
        self.layers = nn.ModuleList()
        example = torch.rand(2, 3, SPACE, SPACE, dtype=torch.float64)
        values = [self.stem(example)]
        for step in steps:
            place, other = step[1] % len(values), step[3] % len(values)
            try:
                layer = _made(step, values[place].shape[1]).double().eval()
                value = _joined(step[2], copy.deepcopy(layer)(values[place]), values[other])
            except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, AssertionError):
                continue
            if value.dim() == 4 and value.shape[2:] == example.shape[2:] and 0 < value.shape[1] <= WIDEST:
                values.append(value.detach())
                self.steps.append((step[0], place, step[2], other, step[4]))
                self.layers.append(layer)
        used = {place for step in self.steps for place in (step[1], *([step[3]] if step[2] else []))}
        self.ends = [place for place in range(len(values)) if place not in used]
        self.heads = nn.ModuleList(nn.Conv2d(values[place].shape[1], 2, 1).double() for place in self.ends)
        self._stem_width = stem
        if way == "hooked":
            self.stem.register_forward_hook(lambda *_: None)
        self.eval()

    def twin(self) -> Network:
        """Another, made as this one was, with its weights: a copy would share functions that close over layers."""
        other = Network(self._stem_width, self.steps, self.output, self.way)
        other.load_state_dict(self.state_dict())
        return other

    def values(self, x: Tensor) -> list[Tensor]:
        """What the stem and each step make."""
        values = [self.stem(x)]
        for (_, place, join, other, _), layer in zip(self.steps, self.layers, strict=True):
            values.append(_joined(join, layer(values[place]), values[other]))
        return values

    def forward(self, x: Tensor) -> Any:
        if self.way == "reads" and not float(x.mean()) < 1e9:
            raise ValueError("the input is too bright")
        values = self.values(x)
        maps = [head(values[place]) for head, place in zip(self.heads, self.ends, strict=True)]
        return OUTPUTS[self.output][0](self, maps)

    def read(self, output: Any) -> list[Tensor]:
        """The tensors of an output, by one who knows where they are."""
        return OUTPUTS[self.output][1](self, output)

    def __repr__(self) -> str:
        return f"Network({self._stem_width}, {self.steps!r}, {self.output!r}, {self.way!r})"


def _made(step: Step, width: int) -> nn.Module:
    kind = step[0]
    if kind.startswith("conv"):
        return nn.Sequential(nn.Conv2d(width, int(kind[5:]), 1), nn.BatchNorm2d(int(kind[5:])), nn.SiLU())
    if kind in GLUED:
        return GLUED[kind](kind, width if step[4] else None)
    return LAYERS[kind](width)


def _joined(join: str, value: Tensor, other: Tensor) -> Tensor:
    if join == "add":
        return value + other
    if join == "mul":
        return value * other
    return torch.cat([value, other], 1) if join == "cat" else value


@st.composite
def networks(draw: st.DrawFn, most: int = 5) -> Network:
    """A network of at most ``most`` steps."""
    place = st.integers(0, most)
    kind = st.one_of(*(st.sampled_from(names) for names in ([k for k in KINDS if "conv " in k], [*GLUED], [*LAYERS])))
    step = st.tuples(kind, place, st.sampled_from(JOINS), place, st.booleans())
    steps = draw(st.lists(step, min_size=1, max_size=most))
    return Network(*draw(st.tuples(st.sampled_from(WIDTHS), st.just(steps), st.sampled_from([*OUTPUTS]), WAYS)))
