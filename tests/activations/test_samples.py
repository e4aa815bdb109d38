"""What is sampled of a layer's input is what its weight is multiplied with."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_prune.activations.samples import PRODUCTS, Product

CASES = {
    "1x1": (nn.Conv2d(4, 6, 1), (4, 5, 5)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 6)),
    "dilated": (nn.Conv2d(4, 6, (3, 2), dilation=(2, 1), padding=(0, 2), bias=False), (4, 7, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 5, 5)),
    "same": (nn.Conv2d(4, 6, 4, padding="same"), (4, 5, 5)),
    "valid": (nn.Conv2d(4, 6, 2, padding="valid"), (4, 5, 5)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 5, 5)),
    "circular": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9)),
    "1-D": (nn.Conv1d(4, 6, 3, stride=2), (4, 9)),
    "3-D": (nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1)), (4, 3, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5, 4)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, stride=(1, 3), dilation=2, groups=2), (4, 5, 4)),
    "transposed, 1-D": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, bias=False), (4, 7)),
    "transposed, 3-D": (nn.ConvTranspose3d(4, 6, 2, stride=2), (4, 3, 2, 2)),
    "linear": (nn.Linear(4, 6), (4,)),
    "linear over tokens": (nn.Linear(4, 6, bias=False), (5, 4)),
    "linear over a map": (nn.Linear(4, 6), (5, 3, 4)),
}


class Recorder(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.calls.append((Product(func, args, kwargs or {}), output))
        return output


@pytest.mark.parametrize("rows", [7, 10_000])
@pytest.mark.parametrize("name", CASES)
def test_rows_times_the_weight_are_what_leaves(name, rows):
    layer, shape = CASES[name]
    with torch.no_grad(), Recorder() as recorder:
        layer(torch.randn(3, *shape))
    ((product, output),) = recorder.calls
    at = product.positions(output, rows, torch.Generator().manual_seed(0))
    matrix = product.matrix(product.weight)
    answers = (product.entering(at) @ matrix).transpose(0, 1).flatten(1)
    if product.bias is not None:
        answers = answers + product.bias
    torch.testing.assert_close(answers, product.leaving(output, at), rtol=1e-4, atol=1e-5)
    assert torch.equal(product.weight_of(matrix), product.weight)
    assert set(at.examples.tolist()) == {0, 1, 2}
    if rows > output.numel():
        assert (
            len(at.examples) == output.numel() // layer.weight.shape[1 if product.is_transposed else 0]
            or product.groups > 1
        )


def test_a_function_without_a_module_is_known_too():
    weight = nn.Parameter(torch.randn(6, 4, 3, 3))
    with torch.no_grad(), Recorder() as recorder:
        F.conv2d(torch.randn(2, 4, 5, 5), weight, padding=(1, 0))
    assert recorder.calls[0][0].weight is weight
    assert recorder.calls[0][0].has_batch
    with torch.no_grad(), Recorder() as recorder:
        nn.Conv2d(4, 6, 3)(torch.randn(4, 5, 5))
    assert not recorder.calls[0][0].has_batch
