"""Copies of a network's weights that a training run keeps beside it (EMA, SWA, a mean teacher), wherever they are.

Lightning's callbacks, torch's ``AveragedModel`` and timm's ``ModelEma`` are known by their kind; dicts, lists and other
modules are found by the names of their tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_prune.common.names import OF_EVERY_MODULE, class_names, names_of_tensors, tensors_of
from lit_prune.training._compat import AVERAGE

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_WRAPPERS = {"AveragedModel", "ModelEma", "ModelEmaV2", "ModelEmaV3"}


@dataclass(frozen=True, eq=False)
class Copy:
    """Tensors that have the names of a network's, or of a part of it.

    Attributes:
        key: Where it is kept, for messages and checkpoints.
        view: A module in which the tensors have the names that they have in the LightningModule.
        module: What was found, where that is a module.
        sure: Whether it is an average by its kind.
    """

    key: str
    view: nn.Module
    module: nn.Module | None
    sure: bool

    def fits(self, network: nn.Module) -> bool:
        """Whether every tensor has the shape of the network's."""
        shapes = {name: tensor.shape for name, tensor in tensors_of(network)}
        return all(tensor.shape == shapes.get(name) for name, tensor in tensors_of(self.view))


def copies_beside(trainer: Trainer) -> list[Copy]:
    """What callbacks and plain attributes of the LightningModule hold under the network's tensor names."""
    network = trainer.lightning_module
    taken = {id(tensor) for _, tensor in tensors_of(network)}
    copies: list[Copy] = []
    keys: Counter[str] = Counter()
    for owner in (*trainer.callbacks, network):  # type: ignore[attr-defined]
        for key, value in held_by(owner):
            keys[key] += 1
            # Two callbacks of one class have each its own.
            name = key if keys[key] == 1 else f"{key} ({keys[key]})"
            # Of callbacks, what lies deeper may be a history, which is nobody's average.
            copies += _copies(name, value, network, nested=owner is network)
    found = []
    # Several attributes may lead to the same tensors, and some to the network's own.
    for copy in sorted(copies, key=lambda copy: not copy.sure):
        tensors = {id(tensor) for _, tensor in tensors_of(copy.view)}
        if not tensors & taken:
            found.append(copy)
            taken |= tensors
    return found


def wrapped_within(network: nn.Module) -> dict[str, str]:
    """Prefix of each average that a wrapper holds inside of a module to that of what it is an average of."""
    pairs = {}
    for name, module in network.named_modules():
        if _is_wrapper(module) and isinstance(module.module, nn.Module):
            outside = [other for other, _ in network.named_modules() if not f"{other}.".startswith(f"{name}.")]
            source = _place_of(module.module, network, outside, of_its_size=True)
            if source:
                pairs[f"{name}.module."] = f"{source}."
    return pairs


def twins_within(network: nn.Module) -> dict[str, str]:
    """Each child that nobody trains to a module of the same layers that is trained: of several, the nearest in value.

    A single layer has a twin among the children of its own parent alone: elsewhere any is of its size.
    """
    pairs: dict[str, str] = {}
    trained = {
        name: module
        for name, module in network.named_modules()
        if name and any(parameter.requires_grad for parameter in module.parameters())
    }
    for path, parent in network.named_modules():
        if isinstance(parent, (nn.Sequential, nn.ModuleList)):
            # Blocks that come one after the other are alike, and no copies.
            continue
        prefix = f"{path}." if path else ""
        children = {f"{prefix}{name}": child for name, child in parent.named_children()}
        beside = {name: trained[name] for name in children.keys() & trained.keys()}
        for name in children.keys() - beside.keys() if not path or path in trained else ():
            child, weights = children[name], _number_of_weights(children[name])
            alike = [place for place in sorted(beside) if _is_like(beside[place], child, of_its_size=True)]
            if weights > 1 and not alike:
                alike = [place for place, module in trained.items() if _is_like(module, child, of_its_size=True)]
            if weights and alike:
                pairs[name] = min(alike, key=lambda place: _distance(trained[place], child))
    return pairs


def held_by(owner: Any) -> Iterator[tuple[str, Any]]:
    """What an object's attributes hold, and, one level further down, those of plain objects among them."""
    for name, value in vars(owner).items():
        if isinstance(owner, nn.Module) and name in OF_EVERY_MODULE:
            continue
        key = f"{type(owner).__name__}.{name}"
        if isinstance(value, (nn.Module, dict, list, tuple)) or type(value) is Tensor:
            yield key, value
        elif hasattr(value, "__dict__") and not isinstance(value, (type, Tensor)) and _is_users(value):
            for inner, held in vars(value).items():
                if isinstance(held, (nn.Module, dict, list, tuple)) or type(held) is Tensor:
                    yield f"{key}.{inner}", held


def _is_users(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] not in ("lightning", "pytorch_lightning", "torch", "builtins")


def _copies(key: str, value: Any, network: nn.Module, nested: bool) -> list[Copy]:
    if isinstance(value, nn.Module):
        lightning = key.partition(" ")[0].endswith(f".{AVERAGE}")
        sure = lightning or _is_wrapper(value)
        module = value.module if _is_wrapper(value) and isinstance(value.module, nn.Module) else value
        prefix = _place_of(module, network)
        if prefix is None and lightning:
            prefix = ""
        return [] if prefix is None else [Copy(key, _placed(module, prefix), module, sure)]
    tensors = _named(value, network)
    if not tensors and nested and isinstance(value, (dict, list, tuple)):
        # One for each task, or old weights beside their importance.
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        inner = [(f"{key}[{name!r}]", each) for name, each in entries if isinstance(each, (dict, list, tuple))]
        return [copy for name, each in inner for copy in _copies(name, each, network, nested)]
    return [Copy(key, _tree(tensors), None, sure=True)] if tensors else []


def _is_wrapper(module: Any) -> bool:
    return any(name in _WRAPPERS for name in class_names(module))


def _place_of(
    module: nn.Module, network: nn.Module, among: Iterable[str] | None = None, of_its_size: bool = False
) -> str | None:
    """The name of the submodule of ``network`` that ``module`` is a copy of, by class and tensors' names."""
    if _number_of_weights(module) < 2:
        # Of one layer alone, class and names tell nothing.
        return None
    parts: dict[str, nn.Module] = dict(network.named_modules())
    return next((name for name in among or parts if _is_like(parts[name], module, of_its_size)), None)


def _number_of_weights(module: nn.Module) -> int:
    return sum(parameter.dim() > 1 for parameter in module.parameters())


def _is_like(part: nn.Module, module: nn.Module, of_its_size: bool) -> bool:
    """Whether another module is of the same class and has parameters of the same names."""

    def likeness(each: nn.Module) -> list[tuple[str, Any]]:
        return [(name, tensor.shape if of_its_size else tensor.dim()) for name, tensor in each.named_parameters()]

    return part is not module and type(part) is type(module) and likeness(part) == likeness(module)


def _distance(part: nn.Module, module: nn.Module) -> float:
    with torch.no_grad():
        pairs = zip(part.parameters(), module.parameters(), strict=True)
        return sum(float((a.double() - b.double()).square().sum().cpu()) for a, b in pairs)


def _placed(module: nn.Module, prefix: str) -> nn.Module:
    """A module that holds ``module`` under ``prefix``."""
    for part in reversed(prefix.split(".") if prefix else []):
        holder = nn.Module()
        holder.add_module(part, module)
        module = holder
    return module


def _named(value: Any, network: nn.Module) -> dict[str, Tensor]:
    """Tensors of a dict or list by the names that they have in the network; none where they are others."""
    # Others than built-in ones may load what they hold when it is looked at.
    if not isinstance(value, (dict, list, tuple)) or len(value) < 2:
        return {}
    if not all(isinstance(each, Tensor) for each in (value.values() if isinstance(value, dict) else value)):
        return {}
    first = dict(tensors_of(network))
    known = {name: first[names[0]] for names in names_of_tensors(network) for name in names}
    for prefix in ("", *(f"{name}." for name, _ in network.named_children())):
        parameters = {name: each for name, each in network.named_parameters() if name.startswith(prefix)}
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if isinstance(value, dict):
            named = {f"{prefix}{name}": each for name, each in value.items()}
            if named.keys() <= known.keys():
                complete = bool(trained) and set(trained) <= named.keys()
                # Of some of the weights alone: those that have their very shapes.
                if all(
                    known[name].dim() == each.dim() if complete else known[name].shape == each.shape
                    for name, each in named.items()
                ):
                    return named
        else:
            for names in (list(parameters), trained):
                if [known[name].shape for name in names] == [each.shape for each in value]:
                    return dict(zip(names, value, strict=True))
    return {}


def _tree(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module with these tensors, under their names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        module = root
        *path, last = name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, tensor)
    return root
