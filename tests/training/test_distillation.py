"""What is left learns from the whole network: as a term of the loss would have it, resumed, only after the cut."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from lit_prune import ArgumentError, ChannelPruning, Distillation, PruningError
from tests.toys import Classifier, fitted, loader, trainer


def pruning(epochs=(1,), **options):
    return ChannelPruning(0.5, list(epochs), verbose=False, **options)


def relative(mine, theirs):
    distance = F.mse_loss(mine, theirs)
    return distance / torch.maximum(theirs.var(correction=0), distance.detach() / 4)


class Explicit(Classifier):
    """The same by hand: a teacher that is kept aside, and a term of the loss."""

    kind = "mse"

    def training_step(self, batch, batch_idx):
        answers = self(batch[0])
        loss = F.cross_entropy(answers, batch[1])
        self.losses.append(float(loss.detach()))
        if self.whole:
            with torch.no_grad():
                wanted = self.whole[0](batch[0])
            if self.kind == "mse":
                loss = loss + 0.7 * relative(answers, wanted)
            else:
                temperature = 2.0
                divergence = F.kl_div(
                    F.log_softmax(answers / temperature, 1), F.softmax(wanted / temperature, 1), reduction="batchmean"
                )
                loss = loss + 0.7 * temperature**2 * divergence
        return loss

    @property
    def whole(self):
        return self.trainer.callbacks[0].whole


class Keep(pl.Callback):
    def __init__(self):
        self.whole = []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            teacher = Classifier()
            teacher.load_state_dict(pl_module.state_dict())
            teacher.train().requires_grad_(False)
            for module in teacher.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            self.whole = [teacher.net]


@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_as_a_term_of_the_loss_would_have_it(kind, accumulate):
    class Ours(Explicit):
        pass

    Ours.kind = kind
    expected = fitted(Keep(), pruning(), kind=Ours, accumulate_grad_batches=accumulate)
    found = fitted(
        pruning(), Distillation(0.7, kind, temperature=2.0 if kind == "kl" else 1.0), accumulate_grad_batches=accumulate
    )
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    without = fitted(pruning(), accumulate_grad_batches=accumulate)
    assert not torch.allclose(without.net[3][2].weight, found.net[3][2].weight, rtol=1e-3, atol=1e-4)
    # Until the first step after the cut nothing differs, and the loss is the user's own.
    assert without.losses[:4] == found.losses[:4]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, precision):
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module = fitted(pruning((1, 2)), Distillation(0.1), saving, precision=precision)
    for epoch in (0, 1, 2):
        callbacks = pruning((1, 2)), Distillation(0.1)
        resumed = fitted(*callbacks, ckpt_path=tmp_path / f"epoch={epoch}.ckpt", precision=precision)
        torch.testing.assert_close(dict(resumed.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


def test_the_teacher_is_the_network_before_the_first_cut_and_stays():
    teachers = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            teachers.append(
                {key: value.clone() for key, value in distillation.state_dict()["teachers"].get("", {}).items()}
            )

    distillation = Distillation()
    module = fitted(pruning((1, 2)), distillation, Watch())
    assert not teachers[0]
    assert teachers[1]["net.2.0.weight"].shape == Classifier().net[2][0].weight.shape
    for name, value in teachers[1].items():
        assert torch.equal(teachers[3][name], value)
    assert module.net[2][0].weight.shape != teachers[3]["net.2.0.weight"].shape
    assert not module._forward_hooks


def test_outputs_in_a_dict_and_a_network_by_name():
    class Named(Classifier):
        def __init__(self):
            super().__init__()
            self.inner = Wrapped(self.net)
            del self.net

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.inner(images=batch[0])["logits"], batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", F.cross_entropy(self.inner(images=batch[0])["logits"], batch[1]))

    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, images):
            return {"logits": self.net(images), "size": images.shape}

    with_it, without = (fitted(pruning(), *more, kind=Named) for more in ([Distillation(networks=["inner"])], []))
    assert not torch.equal(with_it.inner.net[3][2].weight, without.inner.net[3][2].weight)


class ExplicitFeatures(Explicit):
    """The same for the outputs of the last convolution, on the channels that are left."""

    def training_step(self, batch, batch_idx):
        kept = self.trainer.callbacks[1].pruner.record.plan.kept
        if not kept:
            return super().training_step(batch, batch_idx)
        whole = self.whole[0]
        mine, theirs = self.features_of(self.net, batch[0]), self.features_of(whole, batch[0])
        answers, wanted = self.rest_of(self.net, mine), self.rest_of(whole, theirs)
        loss = F.cross_entropy(answers, batch[1]) + 0.1 * relative(answers, wanted)
        theirs = theirs[:, kept["net.2.0.weight"][0]]
        return loss + 0.1 * relative(mine, theirs)

    @staticmethod
    def features_of(net, images):
        return net[2][0](net[1](net[0](images)))

    @staticmethod
    def rest_of(net, features):
        return net[3](net[2][2](net[2][1](features)))


def test_features_are_as_a_term_on_the_channels_that_are_left():
    expected = fitted(Keep(), pruning(), kind=ExplicitFeatures)
    found = fitted(pruning(), Distillation(0.1, features=["net.2.0"]))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    without = fitted(pruning(), Distillation(0.1))
    assert not torch.allclose(without.net[2][0].weight, found.net[2][0].weight, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_with_features_equals_an_uninterrupted_one(tmp_path):
    options = {"weight": 0.1, "features": ["net.2.0", "net.2.1"]}
    module = fitted(
        pruning((1, 2)), Distillation(**options), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    )
    for epoch in (0, 1, 2):
        resumed = fitted(pruning((1, 2)), Distillation(**options), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        torch.testing.assert_close(dict(resumed.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


def test_a_teacher_that_was_cut_before_teaches_what_it_has(tmp_path):
    """The run went on without a teacher up to its first event: the next one's network teaches, with fewer channels."""
    fitted(pruning((1, 2)), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    distillation = Distillation(0.1, features=["net.2.0"])
    module = fitted(pruning((1, 2)), distillation, ckpt_path=tmp_path / "epoch=1.ckpt")
    (teacher,) = distillation.state_dict()["teachers"].values()
    taken = distillation.state_dict()["taken"]["net.2.0"]
    width = next(value for name, value in teacher.items() if name.endswith("2.0.weight")).shape[0]
    assert len(taken) == width > module.net[2][0].weight.shape[0]


def test_a_feature_that_is_no_layer_is_refused():
    for name, message in (("net.2", "is a Sequential"), ("net.99", "is none of the network")):
        with pytest.raises(ArgumentError, match=message):
            fitted(pruning(), Distillation(features=[name]))


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match="needs a ChannelPruning"):
        fitted(Distillation())
    with pytest.raises(ArgumentError, match="weight must be positive"):
        Distillation(0.0)
    with pytest.raises(ArgumentError, match="kind"):
        Distillation(kind="mae")


def test_losses_among_the_outputs_are_no_answers():
    class WithLoss(Classifier):
        def forward(self, images):
            answers = self.net(images)
            return answers, 1e-3 * answers.square().mean()

        def training_step(self, batch, batch_idx):
            answers, loss = self(batch[0])
            return F.cross_entropy(answers, batch[1]) + loss

        def validation_step(self, batch, batch_idx):
            pass

    for kind in ("mse", "kl"):
        module = fitted(pruning(), Distillation(0.1, kind), kind=WithLoss)
        assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_teacher_whose_answers_hardly_differ_pulls_no_network_apart():
    class Constant(Classifier):
        def __init__(self):
            super().__init__()
            nn.init.zeros_(self.net[3][2].weight)

    module = fitted(pruning(), Distillation(), kind=Constant)
    assert max(value.abs().max() for value in module.state_dict().values() if value.is_floating_point()) < 50


def test_what_follows_may_work_in_place():
    class InPlace(Classifier):
        def __init__(self):
            super().__init__()
            self.net[2][2] = nn.ReLU(inplace=True)

        def training_step(self, batch, batch_idx):
            answers = self(batch[0])
            answers /= 2.0
            return F.cross_entropy(answers, batch[1])

    module = fitted(pruning(), Distillation(0.1, features=["net.2.1"]), kind=InPlace)
    assert module.net[2][0].weight.shape[0] < 32


def test_a_forward_that_changes_its_input_gives_both_networks_the_same():
    class Changes(Classifier):
        def forward(self, x):
            return self.net(x.sub_(0.5).div_(2))

    class Leaves(Classifier):
        def forward(self, x):
            return self.net((x - 0.5) / 2)

    found, expected = (fitted(pruning(), Distillation(0.1), kind=kind) for kind in (Changes, Leaves))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_a_layer_that_runs_twice_learns_from_each_of_its_runs():
    class Twice(Classifier):
        def forward(self, images):
            return self.net(images) + self.net(images.flip(3))

    torch.manual_seed(0)
    distillation = Distillation(0.1, features=["net.2.0"])
    targets = []
    taught = distillation._alike
    distillation._alike = lambda name, output, wanted: targets.append(wanted) or taught(name, output, wanted)
    fitted(pruning(), distillation, kind=Twice)
    assert not torch.equal(targets[0], targets[1])
    assert len(targets) == 2 * 9


def test_parts_that_are_called_one_by_one_are_left_alone_once_they_are_narrower():
    class Parts(Classifier):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = self.net[:3], self.net[3]
            del self.net

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

    with pytest.warns(UserWarning, match="whole network's head can't answer what enters it now"):
        module = fitted(pruning(), Distillation(0.1), kind=Parts)
    assert module.head[2].weight.shape[1] < 32


def test_mistakes_are_told_before_training():
    for options, message in (
        ({"networks": ["nett"]}, "there is no 'nett'. Did you mean 'net'"),
        ({"networks": "net"}, r"networks is a list of names, but got 'net': write \['net'\]"),
        ({"features": "net.2.0"}, "features is a list of names"),
    ):
        with pytest.raises((ArgumentError, TypeError), match=message):
            fitted(pruning(), Distillation(**options))
    with pytest.raises(ArgumentError, match="before_wrap"):
        fitted(ChannelPruning(0.5, "before_wrap", verbose=False), Distillation())


def test_features_outside_of_what_is_taught_are_refused_before_the_cut():
    with pytest.raises(PruningError, match=r"'net.0.0' is in none of 'net.2'"):
        fitted(pruning(), Distillation(networks=["net.2"], features=["net.0.0"]))


def test_a_second_fit_goes_on_with_the_teacher():
    callbacks = pruning(), Distillation(0.1)
    torch.manual_seed(0)
    module = Classifier()
    for epochs in (2, 4):
        trainer(*callbacks, max_epochs=epochs).fit(module, loader())
    assert callbacks[1].state_dict()["teachers"]
