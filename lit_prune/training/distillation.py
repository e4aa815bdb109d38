"""Training what is left of a network towards the answers that the whole network gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_prune.common._compat import tree_flatten, tree_unflatten
from lit_prune.common.arguments import check_choice, check_positive
from lit_prune.common.choices import nearest
from lit_prune.common.names import class_names
from lit_prune.common.ranks import warn_once
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.graph.skeleton import replica
from lit_prune.training.host import Host
from lit_prune.training.lightning import loss_scale
from lit_prune.training.pruner import Pruner
from lit_prune.training.teaching import (
    Kind,
    answers_of,
    as_teacher,
    can_learn,
    channels_of,
    has_values,
    learns,
    towards,
)


class Distillation(Callback):
    """After the first pruning, lets what is left learn from the answers of the whole network, beside the user's loss.

    Right before the first cut the network is copied as it is then: the teacher. From then on each forward of a training
    step runs the teacher on the same inputs, and in the backward pass a gradient towards its answers is added to that
    of the outputs. The loss that the training step returns and logs is not changed. A step takes about a forward
    longer, and the memory of the whole network's weights is needed once more; checkpoints carry them.

    Args:
        weight: Of the distance to the teacher, beside the loss. Ultralytics' loss is a sum over images: there the batch
            size is to it what 1 is to a mean.
        kind: ``"mse"``: mean square error, relative to the variance of the output of the teacher, of all alike; where
            it is more than four times that, relative to a quarter of itself.
            ``"kl"``: divergence of the classes' probabilities along dimension 1, for logits.
        temperature: Divides logits, for ``"kl"``.
        networks: Names of the modules whose outputs are meant, ``""`` being the LightningModule; by default what the
            training step enters.
        features: Names of convolutions, linear layers and norms inside of them whose outputs are to be alike as well,
            on the channels that are left, by mean square error.

    Raises:
        ArgumentError: If a number is not positive, a feature is no such layer, or the Trainer has no `ChannelPruning`.

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2; Romero et al., "FitNets: Hints
        for Thin Deep Nets", ICLR 2015, section 2.2, for features.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_prune import ChannelPruning
        >>> pruning = ChannelPruning(amount=0.5, epochs=[6])
        >>> trainer = Trainer(callbacks=[pruning, Distillation(weight=0.5)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        weight: float = 1.0,
        kind: Kind = "mse",
        temperature: float = 1.0,
        networks: list[str] | None = None,
        features: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, get_args(Kind))
        for name, number in (("weight", weight), ("temperature", temperature)):
            check_positive(name, number)
        self.weight, self.kind, self.temperature, self.networks = weight, kind, temperature, networks
        self.features = features or []
        self._trainer: Trainer | None = None
        self._pruner: Pruner | None = None
        # By its name: in which dimensions of its weight and of its output the channels of a feature lie.
        self._dims: dict[str, tuple[int, int]] = {}
        # By its name: the channels of a feature that its teacher has, of those of the run's first network.
        self._taken: dict[str, Tensor] = {}
        # What the teacher of a module answers in the forward that is running, and its features, call by call.
        self._wanted: dict[str, tuple[Any, dict[str, list[Tensor]]]] = {}
        # By the name of each module that is entered.
        self._teachers: dict[str, nn.Module] = {}
        # As it was built, until a checkpoint is read: a Trainer does not say earlier whether there is one.
        self._whole: nn.Module | None = None
        self._hooks: list[Any] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the pruning that the teacher is to be copied before."""
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        found: list[Any] = [callback for callback in callbacks if "ChannelPruning" in class_names(callback)]
        if not found:
            raise ArgumentError(
                "Distillation needs a ChannelPruning in the same Trainer: without a cut nothing is lost."
            )
        for argument, names in (("networks", self.networks), ("features", self.features)):
            if isinstance(names, str):
                raise ArgumentTypeError(f"{argument} is a list of names, but got {names!r}: write [{names!r}].")
            if not all(isinstance(name, str) for name in names or ()):
                raise ArgumentTypeError(f"{argument} is a list of names, but got {names!r}.")
        known = dict(pl_module.named_modules())
        for name in self.networks or ():
            if name not in known:
                raise ArgumentError(f"networks names modules, but there is no {name!r}. {nearest(name, known)}")
        self._dims = {name: channels_of(pl_module, name) for name in self.features}
        if found[0].before_wrap:
            raise ArgumentError(
                "Distillation copies the network right before an event of a training, but epochs='before_wrap' prunes "
                "before there is one. Name epochs, or leave Distillation out."
            )
        self._trainer, self._pruner = trainer, found[0].pruner
        if not self._pruner.record.events:
            self._teachers = {}
        if self._keep not in found[0].pruner.before_cut:
            found[0].pruner.before_cut.append(self._keep)
        self._whole = replica(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the teacher of a resumed run."""
        self._whole = None
        self._follow(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The teachers' weights, by the names of the modules that they teach."""
        return {
            "teachers": {
                name: {key: value.cpu() for key, value in teacher.state_dict().items()}
                for name, teacher in self._teachers.items()
            },
            "taken": dict(self._taken),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the teachers of a checkpoint."""
        if self._whole is None:
            return
        try:
            for name, weights in state_dict["teachers"].items():
                teacher = self._whole.get_submodule(name)
                # In the precision that they have: a Trainer casts the network to its own only after `setup`.
                teacher.load_state_dict(weights, assign=True)
                self._teachers[name] = as_teacher(teacher)
            self._taken = dict(state_dict.get("taken", {}))
        except (AttributeError, RuntimeError) as error:
            warn_once(
                "Distillation can't take up its teacher, the network before the first cut, so the network before the "
                f"next cut will teach. Layers have to be made in `__init__` or `setup` for that. {error}"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove all hooks."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove all hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._trainer, self._whole = [], None, None

    def _keep(self, host: Host, entered: list[str]) -> None:
        """Before a cut: copy the network, if it is the first."""
        if not self._teachers and self._trainer is not None:
            whole = replica(host.network)
            for name in entered if self.networks is None else self.networks:
                self._teachers[name] = as_teacher(whole.get_submodule(name))
            taught = [name + "." * bool(name) for name in self._teachers]
            for feature in self.features:
                if not feature.startswith(tuple(taught)):
                    raise ArgumentError(
                        f"features names layers inside of what the teacher answers for, but {feature!r} is in none of "
                        f"{', '.join(map(repr, self._teachers))}. Name a module around it by `networks`."
                    )
            left = {name: self._left(name) for name in self.features}
            self._taken = {name: kept for name, kept in left.items() if kept is not None}
            self._follow(host.network)

    def _left(self, feature: str) -> Tensor | None:
        """The channels of a feature that are left of those of the run's first network; None for all."""
        if self._pruner is None:
            return None
        dim, _ = self._dims[feature]
        return self._pruner.record.plan.kept.get(f"{feature}.weight", {}).get(dim)

    def _follow(self, network: nn.Module) -> None:
        device = next(network.parameters()).device
        for name, teacher in self._teachers.items():
            teacher.to(device)
            prefix = name + "." * bool(name)
            inner = {each: each.removeprefix(prefix) for each in self.features if each.startswith(prefix)}
            module = network.get_submodule(name)

            def ask(
                module: nn.Module,
                args: Any,
                kwargs: Any,
                name: str = name,
                teacher: nn.Module = teacher,
                inner: Mapping[str, str] = inner,
            ) -> None:
                # Neither validations nor traces learn.
                if module.training and name in self._teachers and has_values((args, kwargs)):
                    try:
                        self._wanted[name] = answers_of(teacher, args, kwargs, inner)
                    except Exception as error:
                        del self._teachers[name]
                        warn_once(
                            f"The whole network's {name or type(module).__name__} can't answer what enters it now, so "
                            "nothing is learnt from it: another part may be narrower by now. Name by `networks` a "
                            f"module that holds both. {type(error).__name__}: {error}"
                        )

            def taught(module: nn.Module, args: Any, output: Any, name: str = name) -> Any:
                wanted, _ = self._wanted.pop(name, (None, None))
                return None if wanted is None else self._taught(type(module), output, wanted)

            self._hooks.append(module.register_forward_pre_hook(ask, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(taught))
            for feature in inner:

                def alike(layer: nn.Module, args: Any, output: Any, name: str = name, feature: str = feature) -> Any:
                    answers = self._wanted.get(name, (None, {}))[1].get(feature)
                    wanted = answers.pop(0) if answers else None
                    return None if wanted is None or not learns(output) else self._alike(feature, output, wanted)

                self._hooks.append(network.get_submodule(feature).register_forward_hook(alike))

    def _taught(self, kind: type[nn.Module], output: Any, wanted: Any) -> Any:
        (mine, spec), (theirs, _) = tree_flatten(output), tree_flatten(wanted)
        learning = [
            number
            for number, (own, target) in enumerate(zip(mine, theirs, strict=False))
            if can_learn(own)
            and isinstance(target, Tensor)
            and own.shape == target.shape
            # A number is a loss, and a row of them no probabilities.
            and own.dim() > (1 if self.kind == "kl" else 0)
        ]
        if not learning:
            warn_once(
                f"Distillation found no output of {kind.__name__} that is like one of the whole network's: "
                "nothing is learnt from it. Name by `networks` the module whose output is a tensor, or some in a tuple "
                "or dict."
            )
        strength = self.weight * self._scale() / max(1, len(learning))
        for number in learning:
            mine[number] = towards(mine[number], theirs[number], self.kind, self.temperature, strength)
        return tree_unflatten(mine, spec)

    def _alike(self, feature: str, output: Tensor, wanted: Tensor) -> Tensor:
        _, dim = self._dims[feature]
        left, taken = self._left(feature), self._taken.get(feature)
        if left is not None:
            # Of the channels that the teacher has, which itself may have lost some before.
            place = left if taken is None else torch.searchsorted(taken, left)
            wanted = wanted.index_select(dim, place.to(wanted.device))
        strength = self.weight * self._scale() / len(self.features)
        return towards(output, wanted, "mse", 1.0, strength)

    def _scale(self) -> float:
        """By what the training multiplies its loss before the backward pass."""
        trainer: Any = self._trainer
        return loss_scale(trainer) / (
            trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1
        )
