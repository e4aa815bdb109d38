"""Tables that are measured: here by clocks that count, so that what comes out can be told."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lit_prune.cost import profile_latency
from lit_prune.cost.profile import export_profile, read_profile, timing, widths_of
from lit_prune.cost.profile.drawn import Drawn, Work, shapes_of
from lit_prune.cost.profile.exporting import owners, scope_of, to_onnx
from lit_prune.cost.profile.fitting import fit_table
from lit_prune.errors import ArgumentError, ArgumentTypeError

IMAGES = torch.rand(2, 3, 16, 16)


def small(**named):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 48, 3), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5)).eval()


def macs(network, images):
    """A microsecond for each thousand multiply-adds, and one for the call."""
    counted = [1e-3]

    def count(module, given, output):
        _, outputs = widths_of(module)
        counted[0] += 1e-6 * output.numel() * module.weight.numel() / outputs

    handles = [each.register_forward_hook(count) for each in network.modules() if hasattr(each, "kernel_size")]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return counted[0]


def test_a_table_tells_the_time_of_widths_that_were_not_measured():
    net = small()
    table = profile_latency(net, IMAGES, macs, networks=12)
    others = Drawn(net, IMAGES, 9, seed=7)
    for cut in others:
        assert table.ms(shapes_of(cut, table.layers)) == pytest.approx(macs(cut, IMAGES), rel=1e-3)
    assert table.conditions["input"] == [2, 3, 16, 16]
    assert table.conditions["error"] < 1e-3


def test_the_network_stays_as_it_is():
    net = small().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    profile_latency(net, IMAGES, macs, networks=8)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("round_to", [4, 8, 16])
def test_drawn_widths_are_multiples_and_many(round_to):
    drawn = Drawn(small(), IMAGES, 24, round_to)
    widths = [(net[0][0].out_channels, net[0][3].out_channels) for net in drawn]
    assert widths[0] == (32, 48)
    assert all(width % round_to == 0 for pair in widths for width in pair)
    assert len(set(widths)) >= min(12, (32 // round_to) * (48 // round_to) / 2)


@pytest.mark.parametrize("round_to", [8, 16, 32])
@pytest.mark.parametrize("width", [20, 36, 72, 100])
def test_the_whole_network_is_among_them_whatever_its_widths(width, round_to):
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 24, 1), nn.ReLU(), nn.Conv2d(24, 5, 1))
    table = profile_latency(net, IMAGES, macs, networks=8, round_to=round_to)
    assert table.ms_of(net) == pytest.approx(macs(net, IMAGES), rel=0.01)


def test_layers_of_ragged_widths_are_told_apart():
    """A device that takes twice as long where a width is no multiple of 16."""
    rng = np.random.default_rng(0)
    shapes = [{"a": (8 * int(i), 8 * int(o))} for i, o in [(8, 8), *rng.integers(1, 9, (39, 2))]]
    times = [
        {"a": inputs * outputs * (2.0 if outputs % 16 else 1.0)} for each in shapes for inputs, outputs in [each["a"]]
    ]
    table = fit_table(shapes, [each["a"] for each in times], times, {"a": Work(0.0, 0.0)}, {})
    assert table.ms({"a": (32, 32)}) == pytest.approx(1024, rel=0.01)
    assert table.ms({"a": (32, 40)}) == pytest.approx(2560, rel=0.01)


@pytest.mark.parametrize("power", [1.0, 1.2, 1.5])
def test_layers_that_get_dearer_the_wider_they_are(power):
    """A device on which the weights of wide layers don't fit into caches."""
    net = small()
    work = Drawn(net, IMAGES, 1).work
    drawn, others = (
        [shapes_of(cut, work) for cut in Drawn(net, IMAGES, number, round_to=4, seed=seed)]
        for number, seed in ((24, 0), (12, 1))
    )

    def layers(shapes):
        return {name: 1e-4 * (inputs * outputs) ** power for name, (inputs, outputs) in shapes.items()}

    timed = [layers(each) for each in drawn]
    table = fit_table(drawn, [sum(each.values()) for each in timed], timed, work, {})
    for each in (drawn[0], *others):
        assert table.ms(each) == pytest.approx(sum(layers(each).values()), rel=0.05)


def test_what_a_runtime_fuses_belongs_to_the_layer():
    file = to_onnx(small(), IMAGES)
    mine = owners(file, {"0.0", "0.3", "3"})
    assert set(mine.values()) == {"0.0", "0.3", "3"}
    assert {"0.0"} == {layer for node, layer in mine.items() if "Sigmoid" in node}
    assert scope_of("/0/0.3/Conv") == "0.3"


def test_files_hold_no_weights():
    wide = nn.Sequential(nn.Conv2d(3, 256, 3), nn.Conv2d(256, 256, 3)).eval()
    assert len(to_onnx(wide, IMAGES)) < 10_000


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_runtimes_tell_of_all_layers(runtime):
    table = profile_latency(small(), IMAGES, runtime, networks=8)
    assert set(table.layers) == {"0.0", "0.3", "3"}
    assert table.dense_ms > 0
    assert table.conditions["runtime"] == runtime
    assert table.conditions["device"]


def test_a_script_measures_elsewhere_without_torch(tmp_path):
    net = small()
    export_profile(net, IMAGES, tmp_path / "measure.py", networks=8)
    hidden = "import sys; sys.modules['torch'] = sys.modules['lit_prune'] = None; sys.argv = {}; import runpy; "
    argv = ["measure.py", "--out", str(tmp_path / "found.json"), "--seconds", "0.01"]
    script = f"{hidden.format(argv)}runpy.run_path({str(tmp_path / 'measure.py')!r}, run_name='__main__')"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=300)
    table = read_profile(net, IMAGES, tmp_path / "found.json")
    assert set(table.layers) == {"0.0", "0.3", "3"}
    assert table.conditions["runtime"] == "onnxruntime"
    assert "made_of" not in table.conditions
    for other, images, round_to in (
        (small(), IMAGES[:, :, :12, :12], 8),
        (small(), IMAGES, 4),
        (small()[0], IMAGES, 8),
    ):
        with pytest.raises(ArgumentError, match="was measured with another network, input or round_to"):
            read_profile(other, images, tmp_path / "found.json", round_to)


def test_a_clock_that_runs_as_it_likes_is_warned_of():
    wild = np.random.default_rng(0)
    with pytest.warns(UserWarning, match=r"differ from their table by \d\d% on average.* Was the device busy"):
        profile_latency(small(), IMAGES, lambda network, images: wild.uniform(1, 9))


def test_the_first_network_tells_how_fast_the_machine_is(monkeypatch):
    """The machine is three times as slow for the second half: nothing of it is seen in the times."""
    slow = [1.0]

    def opened(network, threads, by_node):
        slow[0] = 3.0 if int(network) > 6 else 1.0
        call = SimpleNamespace(ms=float(network))
        return call, lambda: {"node": [call.ms * slow[0]] * 4}

    monkeypatch.setitem(timing.OPENERS, "onnxruntime", opened)
    monkeypatch.setattr(timing, "repeat", lambda call, seconds: [call.ms * slow[0]] * 4)
    found = timing.time_networks({str(n): b"%d" % n for n in range(1, 13)}, "onnxruntime")["networks"]
    ratios = {n: found[str(n)]["ms"] / found["2"]["ms"] * 2 / n for n in range(1, 13)}
    # The one at which it begins was measured half before.
    assert all(ratio == pytest.approx(1.0) for n, ratio in ratios.items() if n not in (1, 7))
    assert found["9"]["nodes"]["node"] == pytest.approx(found["9"]["ms"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"runtime": "tflite"}, ArgumentError, "runtime must be one of"),
        ({"runtime": 3}, ArgumentTypeError, "a function of a network"),
        ({"networks": 3}, ArgumentError, "networks"),
        ({"threads": 0}, ArgumentError, "threads"),
        ({"round_to": 0}, ArgumentError, "round_to"),
    ],
)
def test_wrong_arguments_are_told(arguments, error, message):
    with pytest.raises(error, match=message):
        profile_latency(small(), IMAGES, **arguments)


def test_a_network_without_free_channels_is_told():
    with pytest.raises(ArgumentError, match="can have fewer channels"):
        profile_latency(nn.Conv2d(3, 8, 3), IMAGES, macs)


def test_what_is_no_measurement_is_refused(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps({"networks": {"0": 1}}))
    with pytest.raises(ArgumentError, match="--script"):
        read_profile(small(), IMAGES, tmp_path / "found.json")
    with pytest.raises(ArgumentError, match="onnxruntime or openvino"):
        export_profile(small(), IMAGES, tmp_path / "script.py", "torch")
