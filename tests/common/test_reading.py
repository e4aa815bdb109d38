import zipfile

import pytest
import torch

from lit_prune.common.reading import read_checkpoint
from lit_prune.errors import CheckpointError


class Gone:
    """Stands for a class that is not there when the file is read."""


def test_a_missing_class_is_no_damage(tmp_path, monkeypatch):
    torch.save({"weight": torch.ones(2), "extra": Gone()}, tmp_path / "net.pt")
    with monkeypatch.context() as patch:
        patch.delitem(globals(), "Gone")
        with pytest.raises(CheckpointError, match=r"net.pt is whole, but .* class is not found here .*Gone"):
            read_checkpoint(tmp_path / "net.pt", weights_only=False)
    assert isinstance(read_checkpoint(tmp_path / "net.pt", weights_only=False)["extra"], Gone)


def test_everything_refused_is_named_at_once_and_loads_when_it_is_allowed(tmp_path):
    torch.save({"first": Gone(), "second": zipfile.ZIP_STORED, "third": torch.Generator}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"Gone, torch.*Generator. If you trust the file, ask for it, or allow"):
        read_checkpoint(tmp_path / "net.pt", remedy="ask for it")
    with torch.serialization.safe_globals([Gone, torch.Generator]):
        assert read_checkpoint(tmp_path / "net.pt")["third"] is torch.Generator


def test_files_of_torchs_old_format(tmp_path):
    torch.save({"extra": Gone()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old.pt is whole, but .*Gone"):
        read_checkpoint(tmp_path / "old.pt")


@pytest.mark.parametrize("content", [b"", b"some text"])
def test_what_is_no_file_of_torch(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net.pt can't be read as a checkpoint: it is cut short, damaged, or"):
        read_checkpoint(tmp_path / "net.pt")


def test_errors_that_are_not_about_the_file_are_left_as_they_are(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "net.pt")
    with pytest.raises(RuntimeError, match="nowhere"):
        read_checkpoint(tmp_path / "net.pt", map_location="nowhere")
