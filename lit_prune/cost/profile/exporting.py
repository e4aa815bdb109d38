"""Networks as small ONNX files: all of their structure, and numbers of which only the shapes are true."""

from __future__ import annotations

import base64
import inspect
import io
import math
import tempfile
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common.packages import require
from lit_prune.cost.profile import timing
from lit_prune.errors import ArgumentError

# Weights of fewer numbers may be shapes, or thresholds: they stay as they are.
_FEW = 256


def to_onnx(network: nn.Module, inputs: Tensor) -> bytes:
    """A network as an ONNX file without its weights: they are filled with one number when it is opened.

    How long it takes does not depend on them.

    Args:
        network: In eval mode; it is moved to the CPU.
        inputs: The one tensor that it takes.

    Raises:
        ArgumentError: If torch can't export it.
        MissingPackageError: If the package onnx is missing.
    """
    require("An export to ONNX", "onnx:onnx", extra="export")
    import onnx

    try:
        with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            torch.onnx.export(network.cpu(), (inputs.cpu(),), f"{folder}/network.onnx", dynamo=False)
            model = onnx.load(f"{folder}/network.onnx")
    except Exception as error:
        raise ArgumentError(
            f"{type(network).__name__} can't be exported to ONNX with an input of shape {[*inputs.shape]}: {error}"
        ) from error
    _empty_(model.graph)
    return bytes(model.SerializeToString())


def numbered(networks: Iterable[nn.Module], inputs: Tensor) -> dict[str, bytes]:
    """Networks as :func:`to_onnx` makes them, named by their places."""
    return {str(number): to_onnx(network, inputs) for number, network in enumerate(networks)}


def owners(file: bytes, layers: Collection[str]) -> dict[str, str]:
    """Names of nodes and tensors of an ONNX file to the layer at work there.

    A layer's are those of its own scope, and those that compute with nothing but what it makes: norms and activations,
    which runtimes fuse with it, under the name of one or the other.

    Args:
        file: As :func:`to_onnx` made it.
        layers: Names of the layers.
    """
    import onnx

    graph = onnx.load_from_string(file).graph
    constant = {tensor.name for tensor in graph.initializer}
    found: dict[str, str] = {}
    for node in graph.node:
        given = [name for name in node.input if name and name not in constant]
        makers = {found.get(name, "") for name in given}
        scope = scope_of(node.name)
        owner = scope if scope in layers else makers.pop() if len(makers) == 1 else ""
        if not given:
            constant.update(node.output)
        elif owner:
            found |= dict.fromkeys([node.name, *node.output], owner)
    return found


def scope_of(node: str) -> str:
    """The module that a node was exported from, by the scopes in its name.

    Example:
        >>> scope_of("/model.2/m.0/cv1/conv/Conv"), scope_of("/layer1/layer1.0/conv1/Conv")
        ('model.2.m.0.cv1.conv', 'layer1.0.conv1')
    """
    scopes: list[str] = []
    for scope in node.strip("/").split("/")[:-1]:
        # The scope within a Sequential has the Sequential's name before its own.
        if scopes and scope.startswith(f"{scopes[-1]}."):
            scopes[-1] = scope
        else:
            scopes.append(scope)
    return ".".join(scopes)


def write_script(networks: Mapping[str, bytes], runtime: str, made_of: str, path: Path) -> None:
    """Write a script that times these networks on another device, with NumPy and the runtime alone.

    Args:
        networks: ONNX files by name.
        runtime: As for :func:`lit_prune.cost.profile.timing.time_networks`.
        made_of: What tells these networks from others.
        path: The file.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, network in networks.items():
            archive.writestr(name, network)
    text = base64.b64encode(packed.getvalue()).decode()
    path.write_text(
        f'{inspect.getsource(timing)}\n\nif __name__ == "__main__":\n    main("{text}", "{runtime}", "{made_of}")\n',
        encoding="utf-8",
    )


def _empty_(graph: Any) -> None:
    """Replace what many numbers an ONNX graph holds by nodes that make as many."""
    from onnx import TensorProto, helper

    makers = []
    for tensor in [*graph.initializer]:
        count = math.prod(tensor.dims)
        if tensor.data_type != TensorProto.FLOAT or count <= _FEW:
            continue
        # What goes through it stays about as large as it was.
        each = helper.make_tensor("value", TensorProto.FLOAT, [1], [tensor.dims[0] / count])
        shape = f"{tensor.name}/shape"
        graph.initializer.remove(tensor)
        graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [len(tensor.dims)], tensor.dims))
        makers.append(helper.make_node("ConstantOfShape", [shape], [tensor.name], name=shape, value=each))
    nodes = [*makers, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
