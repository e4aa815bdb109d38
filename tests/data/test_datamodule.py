import pytest
import torch

from lit_prune.data import DigitScenes, DigitScenesDataModule


def test_loaders_serve_the_scenes_of_their_split():
    data = DigitScenesDataModule(scenes=6, val_scenes=4, image_size=64, batch_size=4, seed=2)
    data.setup("fit")

    train = list(data.train_dataloader())
    val = list(data.val_dataloader())

    assert [len(batch["img"]) for batch in train] == [4, 2]
    expected = DigitScenes("val", 4, 64, seed=2)
    assert torch.equal(val[0]["img"], torch.stack([expected[k]["img"] for k in range(4)]))
    known = {image.numpy().tobytes() for image in DigitScenes("train", 6, 64, seed=2).images}
    served = {(image * 255).round().byte().numpy().tobytes() for batch in train for image in batch["img"]}
    assert served == known


@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader", "predict_dataloader"])
def test_other_stages_read_validation_scenes_in_order(loader):
    data = DigitScenesDataModule(scenes=6, val_scenes=4, image_size=64, batch_size=2)
    data.setup("test")

    first = [batch["img"] for batch in getattr(data, loader)()]
    second = [batch["img"] for batch in getattr(data, loader)()]

    assert torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first), torch.stack([DigitScenes("val", 4, 64)[k]["img"] for k in range(4)]))


def test_training_order_follows_the_seed_of_the_run():
    data = DigitScenesDataModule(scenes=16, val_scenes=1, image_size=64, batch_size=16)
    data.setup("fit")
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(next(iter(data.train_dataloader()))["img"])

    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_setup_draws_once():
    data = DigitScenesDataModule(scenes=4, val_scenes=4, image_size=64)
    data.setup("fit")
    before = data.val_dataloader().dataset
    data.setup("validate")

    assert data.val_dataloader().dataset is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_scenes": 0}, "val_scenes must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"image_size": 90}, "image_size must be a multiple of 32"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitScenesDataModule(**arguments)
