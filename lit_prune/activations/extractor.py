"""The outputs of layers of the live network, all from one forward; and a slice of copies to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_prune.common.choices import nearest
from lit_prune.common.running import untouched
from lit_prune.errors import ArgumentError, ArgumentTypeError, CalibrationError

Reduction = Callable[[str, Tensor], Tensor]


class ActivationExtractor:
    """Catches the raw outputs of layers while the whole live network runs once.

    The network may have been pruned before; nothing of it is copied. It runs in eval mode and without gradients, on
    the device and in the precision (autocast) that it is called in, and stays as it was: hooks, modes, caches and
    random states. Hooks are there within the ``with`` statement only, and see only calls that go through the extractor.

    Args:
        model: The network.
        layers: Qualified names of submodules. Of one that a forward runs several times the first run counts.
        stop_early: Stop the forward once every layer has run: nothing later is needed.
        reduce: Called with a layer's name and output as soon as the layer has run; what it returns is kept in
            place of the output. So statistics of a large batch need no room for its maps.
        strict: Raise where a layer does not run (a branch for training only); otherwise it is left out.

    Raises:
        ArgumentError: If no layer is given, or there is none of a name; the message has the nearest names.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))
        >>> with ActivationExtractor(net, ["0", "2"]) as extract:
        ...     maps = extract(torch.rand(5, 3, 16, 16))
        >>> {layer: tuple(output.shape) for layer, output in maps.items()}
        {'0': (5, 8, 14, 14), '2': (5, 4, 12, 12)}
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str],
        stop_early: bool = True,
        reduce: Reduction | None = None,
        strict: bool = True,
    ) -> None:
        self.model = model
        self.layers: tuple[str, ...] = tuple(dict.fromkeys(layers))
        self.stop_early = stop_early
        self._reduce = reduce
        self._strict = strict
        self._modules = find_layers(model, self.layers)
        self._handles: list[RemovableHandle] = []
        self._caught: dict[str, Tensor] | None = None

    def __enter__(self) -> ActivationExtractor:
        for layer, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the network on these inputs.

        Returns:
            Layer name to its output, (N, C, H, W) of a 2-D convolution, or what ``reduce`` made of it; in the order
            in which the layers were asked for.

        Raises:
            CalibrationError: If this is not inside the ``with`` statement, or a layer did not run in this forward.
            ArgumentTypeError: If a layer puts out something else than a tensor.
        """
        return self.run(self.model, *args, **kwargs)[0]

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[dict[str, Tensor], Any]:
        """Run ``forward``, anything that runs the network once (a detector's ``detect``).

        Args:
            forward: What to call in place of the network.
            *args: Its inputs.
            **kwargs: Its keyword inputs.

        Returns:
            The layers' outputs, as calling the extractor does, and what ``forward`` returned; None in place of that
            where the forward was stopped early.

        Raises:
            CalibrationError: As for calling the extractor.
            ArgumentTypeError: As for calling the extractor.
        """
        if not self._handles:
            raise CalibrationError(
                "The extractor has no hooks here: call it within `with ActivationExtractor(...) as`."
            )
        result = None
        caught: dict[str, Tensor] = {}
        self._caught = caught
        try:
            with untouched(self.model):
                result = forward(*args, **kwargs)
        except _AllCaught:
            pass
        finally:
            self._caught = None
        missing = [layer for layer in self.layers if layer not in caught]
        if missing and self._strict:
            raise CalibrationError(
                f"The forward did not run {', '.join(missing)} on these inputs, so there are no activations of it. "
                "Leave it out of `layers`, or give inputs (or a mode) with which it runs."
            )
        return {layer: caught[layer] for layer in self.layers if layer in caught}, result

    def _hook(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def catch(module: nn.Module, inputs: Any, output: Any) -> None:
            caught = self._caught
            if caught is None or layer in caught:
                return
            if not isinstance(output, Tensor):
                raise ArgumentTypeError(
                    f"Layer {layer} ({type(module).__name__}) puts out a {type(output).__name__}; activations are read "
                    "from layers that put out one tensor, such as convolutions. Name one inside it."
                )
            # An activation in place would overwrite what is kept here.
            caught[layer] = output.clone() if self._reduce is None else self._reduce(layer, output)
            if self.stop_early and len(caught) == len(self.layers):
                raise _AllCaught

        return catch


class _AllCaught(Exception):
    """Ends a forward that is no longer needed."""


def find_layers(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """The submodules of these qualified names.

    Raises:
        ArgumentError: If none is asked for, or there is none of a name; the message has the nearest names.
    """
    if not layers:
        raise ArgumentError("No layers are given; name at least one, as in `model.named_modules()`.")
    modules = dict(model.named_modules(remove_duplicate=False))
    for layer in layers:
        if layer not in modules or not layer:
            raise ArgumentError(
                f"{type(model).__name__} has no layer {layer!r}. {nearest(layer, filter(None, modules))}"
            )
    return {layer: modules[layer] for layer in layers}


def sliced_block(model: nn.Module, layer: str) -> nn.Sequential:
    """Copies of all blocks before a layer of a plain chain, then the layer itself: its activations without hooks.

    A reference to compare :class:`ActivationExtractor` with: on an unpruned network both agree bit for bit. The copies
    keep the width that they had. Once the network is pruned, the layer expects fewer channels than they hand on, and
    the slice fails with "expected input to have 64 channels, but got 128 channels" where the extractor goes on.

    Args:
        model: A network whose main part is an ``nn.Sequential``, itself or (the first of) its children.
        layer: Qualified name. At each level it lies in an ``nn.Sequential``, or is what its parent runs first.

    Returns:
        The slice; its copies are in eval mode.

    Raises:
        ArgumentError: If there is no such layer, or it is not in a plain chain.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> sliced_block(net, "2")(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5, 4, 12, 12])
    """
    target = find_layers(model, [layer])[layer]
    before: list[nn.Module] = []
    parent, path = model, ""
    for name in layer.split("."):
        child = parent.get_submodule(name)
        children = list(parent.children())
        position = next(index for index, other in enumerate(children) if other is child)
        if isinstance(parent, nn.Sequential):
            before.extend(children[:position])
        elif position:
            raise ArgumentError(
                f"{layer} is not in a plain chain: {path or 'the network'} ({type(parent).__name__}) decides in its "
                f"own forward what reaches {name}. Use ActivationExtractor, which needs no chain."
            )
        path = f"{path}.{name}" if path else name
        parent = child
    for block in (*before, parent):
        # Ultralytics' blocks say where their input comes from; -1 is the block before.
        if getattr(block, "f", -1) != -1:
            raise ArgumentError(f"{layer} is not in a plain chain: a block before it takes its input from {block.f}.")
    copies = [copy.deepcopy(block).eval() for block in before]
    return nn.Sequential(*copies, target)
