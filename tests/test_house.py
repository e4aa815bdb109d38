"""One folder a question; what is above may import what is below, never the reverse."""

import pytest

from testing import house

# One concept that each room has its own of: the base class, the LightningDataModule, networks by name, reading a file,
# what is private elsewhere.
MEAN_THE_SAME = {"base.py", "datamodule.py", "networks.py", "reading.py", "ultralytics.py", "timm.py", "_compat.py"}


def test_every_room_has_its_floor():
    assert {house.room(name) for name in house.modules()} == set(house.FLOORS)
    assert len(house.FLOORS) <= 23


def test_imports_lead_downward():
    assert house.upward() == []


def test_no_files_import_each_other_in_a_circle():
    assert house.circles() == []


@pytest.mark.parametrize("package", house.KNOWS)
def test_a_package_is_known_where_it_is_needed_alone(package):
    assert house.strangers(package) == set()


def test_no_two_files_of_one_name_mean_different_things():
    assert set(house.namesakes()) <= MEAN_THE_SAME


def test_the_table_can_be_printed():
    assert "upward: 0; circles: 0" in [*house.table()][-1]
