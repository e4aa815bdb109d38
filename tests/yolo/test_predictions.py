import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lit_prune.yolo import DrawPredictions
from lit_prune.yolo.predictions import draw_image

_NAMES = {0: "cat", 1: "dog"}
_ONE = {
    "boxes": torch.tensor([[8.0, 8.0, 24.0, 24.0]]),
    "scores": torch.tensor([0.9]),
    "labels": torch.tensor([1]),
}
_NONE = {name: value[:0] for name, value in _ONE.items()}


def _changed(found) -> np.ndarray:
    """Which pixels of a grey image of 64×64 were drawn on, at its size."""
    drawn = np.asarray(draw_image(torch.full((3, 64, 64), 0.5), found, _NAMES)).astype(int)
    assert drawn.shape == (640, 640, 3)
    return (np.abs(drawn - 127) > 3).any(2)


def test_nothing_found_is_the_picture_enlarged():
    assert not _changed(_NONE).any()


def test_a_box_is_drawn_where_it_is():
    changed = _changed(_ONE)
    assert changed[82:238, 78:83].all()
    assert not changed[250:, 250:].any()
    assert not changed[120:200, 120:200].any()


def test_what_a_task_has_beside_boxes_is_drawn():
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 12:20, 12:20] = True
    assert _changed({**_ONE, "masks": mask})[125:195, 125:195].all()
    points = torch.tensor([[[16.0, 16.0, 0.9], [20.0, 20.0, 0.1]]])
    changed = _changed({**_ONE, "keypoints": points})
    assert changed[160, 160]
    assert not changed[200, 200]  # it can't be seen
    turned = torch.tensor([[32.0, 32.0, 20.0, 20.0, torch.pi / 4]])
    assert _changed({**_ONE, "rotated": turned})[320 - 145 : 320 - 138, 320].any()


def test_a_class_is_written_on_the_as_image():
    changed = _changed(torch.tensor([0.3, 0.7]))
    assert changed[:200].any()
    assert not changed[300:].any()


def test_no_masks_no_trouble():
    assert not _changed({**_NONE, "masks": torch.zeros(0, 64, 64, dtype=torch.bool)}).any()


def _trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(default_root_dir=tmp_path, **quiet, **options)


def _loader(*batches):
    return DataLoader(batches, batch_size=None)


def test_every_picture_gets_a_file_of_its_name(tmp_path, detector, batch, capsys):
    named = {**batch, "im_file": [f"there/{name}.jpg" for name in "abcd"]}
    _trainer(tmp_path, callbacks=[DrawPredictions()]).predict(detector, _loader(named))
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == ["a.png", "b.png", "c.png", "d.png"]
    assert "Written: 4 images" in capsys.readouterr().out

    _trainer(tmp_path, callbacks=[DrawPredictions(tmp_path / "drawn")]).predict(detector, _loader(batch, batch))
    assert sorted(path.stem for path in (tmp_path / "drawn").iterdir()) == [f"{number:06d}" for number in range(8)]


def test_only_what_lit_yolo_finds_is_drawn(tmp_path):
    class Other(lightning.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch

    with pytest.raises(TypeError, match="draws what a LitYOLO finds, but this is a Other"):
        _trainer(tmp_path, callbacks=[DrawPredictions()]).predict(Other(), _loader(torch.zeros(1)))
