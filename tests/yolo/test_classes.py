import pytest

from lit_prune.yolo import build_detector
from lit_prune.yolo.classes import match_classes

_ANIMALS = {0: "cat", 1: "dog", 2: "cow"}


@pytest.fixture(scope="module")
def _network():
    return build_detector("yolov8n.yaml", num_classes=3)


@pytest.fixture
def network(_network):
    _network.names = dict(_ANIMALS)
    return _network


@pytest.mark.parametrize("form", ["{}", "class{}"])
@pytest.mark.parametrize("training", [True, False])
def test_classes_without_names_get_those_of_the_data(network, form, training):
    network.names = {number: form.format(number) for number in range(3)}
    match_classes(network, _ANIMALS, "data.yaml", training=training)
    assert network.names == _ANIMALS


def test_training_renames_and_says_so(network, caplog):
    with caplog.at_level("INFO"):
        match_classes(network, {0: "car", 1: "bus", 2: "van"}, "data.yaml", training=True)
    assert network.names == {0: "car", 1: "bus", 2: "van"}
    assert "(cat, dog, cow) are now named as those of data.yaml (car, bus, van)" in caplog.text


def test_measuring_keeps_the_names_and_warns(network):
    with pytest.warns(UserWarning, match=r"\(cat, dog, cow\) are named otherwise than those of data.yaml"):
        match_classes(network, {0: "dog", 1: "cat", 2: "cow"}, "data.yaml", training=False)
    assert network.names == _ANIMALS


def test_more_classes_than_the_data_has_are_told(network):
    with pytest.warns(UserWarning, match=r"has 3 classes \(cat, dog, cow\), but data.yaml has 2 .* num_classes=2"):
        match_classes(network, {0: "cat", 1: "dog"}, "data.yaml", training=False)
    assert network.names == _ANIMALS


@pytest.mark.parametrize(("training", "advice"), [(True, "num_classes=4"), (False, "the data that it was trained on")])
def test_fewer_classes_than_the_data_has_are_refused(network, training, advice):
    with pytest.raises(ValueError, match=f"data.yaml has 4 classes, but the network has 3: .*{advice}"):
        match_classes(network, {**_ANIMALS, 3: "pig"}, "data.yaml", training=training)
