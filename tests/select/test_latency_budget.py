"""A latency budget: by a table, and by a clock; here by ones that count, so that nothing depends on the machine."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_prune import ArgumentError, ChannelPruning, plan_pruning, shrink_
from lit_prune.cost import LatencyTable, profile_latency
from lit_prune.cost.profile import LayerTimes, widths_of
from lit_prune.cost.profile.torch_runtime import TorchRuntime
from lit_prune.errors import PruningError, RehearsalError, SelectionError
from lit_prune.select import Budgets, LatencyBudget, ParamsBudget
from lit_prune.select.clock_search import table_ms_for
from tests.toys import Classifier, fitted

IMAGES = torch.zeros(1, 3, 16, 16)


def chain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(48 * 144, 10)
    ).eval()


def table(dear=50.0, **conditions):
    """A millisecond for each thousand pairs of channels; the first layer is a dear one."""

    def times(inputs, outputs, factor):
        return LayerTimes(inputs, outputs, [[factor * i * o / 1000 for o in outputs] for i in inputs])

    wide = (8, 16, 24, 32)
    layers = {
        "0": times((3,), wide, dear),
        "2": times(wide, (8, 48), 1.0),
        "5": times((8 * 144, 48 * 144), (10,), 0.01),
    }
    return LatencyTable(layers, 0.5, conditions)


def left(net, selection, **options):
    return shrink_(copy.deepcopy(net), plan_pruning(net, IMAGES, selection=selection, **{"round_to": 4} | options))


def ms(network, made=None):
    return (made or table()).ms({name: widths_of(network.get_submodule(name)) for name in ("0", "2", "5")})


@pytest.mark.parametrize("spread", [None, "uniform", "global"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_limit_is_met_and_almost_used_up(spread, part):
    whole = table().dense_ms
    found = ms(left(chain(), LatencyBudget(table(), f"{part * whole} ms", spread)))
    assert 0.85 * part * whole < found <= part * whole


def test_a_ratio_is_that_of_the_profiled_network():
    net = left(chain(), LatencyBudget(table()), amount=0.4)
    assert 0.55 * table().dense_ms < ms(net) <= 0.6 * table().dense_ms


def test_channels_go_where_they_save_time():
    dear, cheap = (left(chain(), LatencyBudget(table(dear=each)), amount=0.3) for each in (500.0, 1.0))
    assert dear[0].out_channels < cheap[0].out_channels
    assert dear[2].out_channels > cheap[2].out_channels


def test_what_is_out_of_reach_says_what_can_be_reached():
    with pytest.raises(SelectionError, match=r"The wanted 0\.1 ms are out of reach: .* 1\.\d+ are left"):
        left(chain(), LatencyBudget(table(), "0.1 ms"))


def test_a_table_of_another_network_is_refused():
    with pytest.raises(SelectionError, match="has no layer '5'"):
        plan_pruning(nn.Sequential(*chain()[:3]), IMAGES, amount=0.5, selection=LatencyBudget(table()))


def test_it_stands_beside_other_budgets():
    both = Budgets([LatencyBudget(table(), "3 ms"), ParamsBudget(at_most="40 kparams")])
    net = left(chain(), both)
    assert ms(net) <= 3
    assert sum(parameter.numel() for parameter in net.parameters()) <= 40_000


def params(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_beside_other_budgets_its_table_says_which_layers_lose():
    limit = 0.6 * table(dear=500.0).dense_ms
    dear = LatencyBudget(table(dear=500.0), limit)
    alone = left(chain(), dear)
    beside = left(chain(), Budgets([dear, ParamsBudget(at_most=2 * params(alone))]))
    assert [widths_of(alone[i]) for i in (0, 2, 5)] == [widths_of(beside[i]) for i in (0, 2, 5)]

    most = 0.6 * params(alone)
    net = left(chain(), Budgets([ParamsBudget(at_most=most), dear]))
    assert 0.9 * most < params(net) <= most
    assert ms(net, table(dear=500.0)) <= limit


def test_layers_that_save_no_time_lose_where_another_budget_wants_it():
    free = LatencyTable({"0": LayerTimes((3,), (8, 16, 24, 32), [[1.0, 2.0, 3.0, 4.0]])})
    least = params(left(chain(), ParamsBudget(at_most=params(chain()) / 8)))
    net = left(chain(), Budgets([LatencyBudget(free, "3.9 ms"), ParamsBudget(at_most=least)]))
    assert params(net) <= least
    assert net[2].out_channels < 48


def test_beside_other_budgets_it_is_timed_and_corrected():
    whole = table().dense_ms
    timed = LatencyBudget(table(input=[1, 3, 16, 16]), 0.5 * whole, runtime=slow_clock)
    both = Budgets([timed, ParamsBudget(at_most="1 Mparams")])
    net = left(chain(), both)
    assert 0.85 * 0.5 * whole < 1.2 * ms(net) <= 0.5 * whole
    assert both.findings["clock_ms"] == pytest.approx(1.2 * both.findings["table_ms"])
    assert both.findings["allowed ms"] == 0.5 * whole >= both.findings["left ms"] == both.findings["clock_ms"]


def slow_clock(network, images):
    """A fifth slower than the table says."""
    assert images.shape == IMAGES.shape
    assert not network.training
    return 1.2 * ms(network)


def test_the_clock_is_believed_before_the_table():
    whole = table().dense_ms
    selection = LatencyBudget(table(input=[1, 3, 16, 16]), 0.5 * whole, runtime=slow_clock)
    net = left(chain(), selection)
    assert 0.85 * 0.5 * whole < 1.2 * ms(net) <= 0.5 * whole
    assert selection.findings["clock_ms"] == pytest.approx(1.2 * selection.findings["table_ms"])


@pytest.mark.parametrize("rest", [-0.3, 0.3])
def test_a_table_that_errs_the_more_the_less_is_left_is_put_right_at_once(rest):
    whole, asked = table().dense_ms, []

    def clock(network, images):
        asked.append(ms(network))
        return rest * whole + (1 - rest) * ms(network)

    selection = LatencyBudget(table(input=[1, 3, 16, 16]), 0.6 * whole, runtime=clock)
    net = left(chain(), selection, round_to=1)
    assert 0.97 * 0.6 * whole <= clock(net, IMAGES) <= 0.6 * whole
    # The first choice, the whole network, and the second choice; then the assertion itself.
    assert len(asked) == 4
    assert asked[1] == whole


@pytest.mark.parametrize("whole", [(5.0, 5.2), (5.0, 4.9), (4.0, 4.0), (6.0, 40.0)])
def test_noise_between_networks_that_are_alike_moves_a_choice_no_further_than_it_should(whole):
    table_ms = table_ms_for(3.0, whole, chosen=(4.9, 5.0))
    assert 0.49 * (4.9 * 3 / 5) < table_ms < 4.9


def test_another_unit_is_told_with_an_example():
    with pytest.raises(ArgumentError, match=r"must be in ms, such as '8 ms', or a number, but is '1 s'"):
        LatencyBudget(table(), "1 s")


def test_a_budget_that_the_clock_never_confirms_is_out_of_reach():
    with pytest.raises(SelectionError, match=r"The wanted 4\.\d+ ms are out of reach: .* the clock says 7 ms, and"):
        left(chain(), LatencyBudget(table(input=[1, 3, 16, 16]), runtime=lambda network, images: 7.0), amount=0.4)


@pytest.mark.parametrize(
    "clock",
    [
        lambda network, images: 3.5 * (ms(network) / 3.5) ** 0.6,
        lambda network, images: 2.0 + ms(network),
        lambda network, images: 5.0 * ms(network),
    ],
)
@pytest.mark.parametrize(("part", "spread"), [(0.05, None), (0.4, None), (0.2, "uniform")])
def test_what_the_clock_can_reach_is_reached(clock, part, spread):
    network = chain()
    least = clock(left(network, LatencyBudget(table(), "1.9 ms", spread), round_to=2), IMAGES)
    limit = least + part * (clock(network, IMAGES) - least)
    selection = LatencyBudget(table(input=[1, 3, 16, 16]), limit, spread, runtime=clock)
    found = clock(left(network, selection, round_to=2), IMAGES)
    assert found == pytest.approx(selection.findings["clock_ms"])
    assert least <= found <= limit


@pytest.mark.parametrize("said", [float("nan"), 0.0, -1.0, float("inf"), None])
def test_what_is_no_time_is_warned_of(said):
    selection = LatencyBudget(table(input=[1, 3, 16, 16]), runtime=lambda network, images: said)
    with pytest.warns(UserWarning, match="could not be timed, so its latency is that of the table"):
        left(chain(), selection, amount=0.4)
    assert "clock_ms" not in selection.findings


@pytest.mark.parametrize(("spread", "own"), [("global", None), (None, "global"), ("uniform", "uniform")])
def test_beside_other_budgets_its_clock_is_asked_whatever_shares_the_removal_out(spread, own):
    timed = LatencyBudget(table(input=[1, 3, 16, 16]), 0.5 * table().dense_ms, own, runtime=slow_clock)
    both = Budgets([ParamsBudget(at_most="1 Mparams"), timed], spread)
    assert 1.2 * ms(left(chain(), both)) == pytest.approx(both.findings["clock_ms"])
    assert both.findings["clock_ms"] <= 0.5 * table().dense_ms


def test_beside_other_budgets_what_the_clock_denies_is_an_error():
    timed = LatencyBudget(table(input=[1, 3, 16, 16]), "2.5 ms", runtime=lambda network, images: 3 * ms(network))
    with pytest.raises(SelectionError, match="the clock says"):
        left(chain(), Budgets([timed, ParamsBudget(at_most="1 Mparams")]))


def test_two_clocks_are_refused_and_two_tables_are_told_apart():
    timed = LatencyBudget(table(input=[1, 3, 16, 16]), "4 ms", runtime=slow_clock)
    with pytest.raises(ArgumentError, match="2 of its budgets have a runtime"):
        Budgets([timed, timed])
    three = Budgets([LatencyBudget(table(dear=dear), f"{dear / 12} ms") for dear in (50.0, 500.0, 600.0)])
    left(chain(), three)
    assert sum(name.startswith("allowed ms") for name in three.findings) == 3
    assert {"allowed ms", "allowed ms #2", "allowed ms #3"} <= three.findings.keys()


@pytest.mark.filterwarnings("ignore:The pruning at epoch 2 removed nothing")
def test_a_busy_machine_at_one_event_does_not_end_the_run_at_the_next():
    readings = []

    def busy(network, images):
        readings.append(1)
        return toy_ms(network) * (4 if len(readings) <= 2 else 1)

    whole = toy_table().dense_ms
    pruning = ChannelPruning(None, [1, 2], selection=LatencyBudget(toy_table(), 0.8 * whole, runtime=busy), **OPTIONS)
    module = fitted(pruning)
    assert toy_ms(module.net) <= 0.8 * whole


def test_a_clock_leaves_the_random_numbers_alone():
    net, selection = chain(), LatencyBudget(table(input=[1, 3, 16, 16]), runtime=slow_clock)
    torch.manual_seed(0)
    left(net, selection, amount=0.4)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after


def test_a_clock_that_fails_is_warned_of():
    def stopped(network, images):
        raise OSError("no board")

    with pytest.warns(UserWarning, match="could not be timed.*no board"):
        net = left(chain(), LatencyBudget(table(input=[1, 3, 16, 16]), runtime=stopped), amount=0.4)
    assert ms(net) <= 0.6 * table().dense_ms


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_clock_runs_as_the_table_was_made(precision, layout, monkeypatch):
    seen = []
    ready = TorchRuntime.ready

    def noted(self, network, inputs):
        seen.append((inputs.shape, inputs.dtype, inputs.is_contiguous(memory_format=layout)))
        return ready(self, network, inputs)

    monkeypatch.setattr(TorchRuntime, "ready", noted)
    told = {"precision": str(precision).removeprefix("torch."), "device_type": "cpu", "runtime": "torch"}
    told["layout"] = "channels_last" if layout is torch.channels_last else "contiguous"
    # What the clock says of so small a network is none of the table's business.
    selection = LatencyBudget(table(input=[2, 3, 16, 16], **told), "3 ms", runtime="torch")
    left(chain(), selection)
    assert selection.findings["clock_ms"] > 0
    assert set(seen) == {((2, 3, 16, 16), precision, True)}


def test_a_clock_of_another_device_is_not_looked_at():
    made = table(input=[1, 3, 16, 16], device="a phone", runtime="torch")
    with pytest.warns(UserWarning, match="could not be timed.*The table is of a phone, but this is"):
        net = left(chain(), LatencyBudget(made, runtime="torch"), amount=0.4)
    assert ms(net) <= 0.6 * table().dense_ms


def test_a_measured_table_serves():
    net = chain()
    made = profile_latency(net, IMAGES, lambda network, images: ms(network), networks=12)
    found = left(net, LatencyBudget(made), amount=0.5, round_to=8)
    assert made.ms({name: widths_of(found.get_submodule(name)) for name in made.layers}) <= 0.5 * made.dense_ms
    assert 0.3 < ms(found) / table().dense_ms < 0.55


def toy_table():
    """A millisecond for each thousand pairs of channels of the module that the toys train."""
    torch.manual_seed(0)

    def times(name):
        inputs, outputs = widths_of(Classifier().get_submodule(f"net.{name}"))
        given, made = (tuple(sorted({min(each, n) for n in (1, each)})) for each in (inputs, outputs))
        return LayerTimes(given, made, [[i * o / 1000 for o in made] for i in given])

    return LatencyTable({name: times(name) for name in ("0.0", "1.conv", "2.0", "3.2")}, 0.1, {"input": [1, 3, 8, 8]})


def toy_ms(network, images=None):
    made = toy_table()
    return made.ms({name: widths_of(network.get_submodule(name)) for name in made.layers})


OPTIONS = {"criterion": "magnitude", "round_to": 1, "verbose": False}


def test_events_go_a_part_of_the_way_each_and_tell_what_they_found():
    whole = toy_table().dense_ms
    selection = LatencyBudget(toy_table(), 0.5 * whole, runtime=lambda network, images: 1.1 * toy_ms(network))
    pruning = ChannelPruning(None, [1, 2], selection=selection, **OPTIONS)
    module = fitted(pruning)
    first, second = (event["findings"] for event in pruning.events)
    # Half of the way from what the clock says of the dense network.
    assert 0.7 * whole < first["clock_ms"] <= 0.8 * whole
    assert 0.4 * whole < second["clock_ms"] <= 0.5 * whole
    assert toy_ms(module.net) == pytest.approx(second["table_ms"])


def test_resumed_it_goes_on_with_what_the_clock_said(tmp_path):
    def pruning():
        asked.clear()
        return ChannelPruning(None, [1, 2], selection=LatencyBudget(toy_table(), 0.2, runtime=clock), **OPTIONS)

    def clock(network, images):
        asked.append(1)
        return 1.3 * toy_ms(network)

    asked = []
    straight = pruning()
    fitted(straight, ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}"))
    # The first event asks for the dense network; then the table is right at once.
    assert len(asked) == 3
    resumed = pruning()
    fitted(resumed, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert resumed.events == [resumed.events[0], {**straight.events[1], "seconds": resumed.events[1]["seconds"]}]
    assert len(asked) == 1


def test_a_limit_out_of_reach_is_told_on_the_first_batch():
    with pytest.raises(RehearsalError, match=r"0\.0001 ms are out of reach"):
        fitted(ChannelPruning(None, [1], selection=LatencyBudget(toy_table(), 1e-4), **OPTIONS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_most": "3 MB"}, "must be in ms"),
        ({"runtime": slow_clock}, "does not say of which input shape"),
        ({"threads": 0}, "threads"),
    ],
)
def test_wrong_arguments_are_told(options, message):
    with pytest.raises(ArgumentError, match=message):
        LatencyBudget(table(), **options)


@pytest.mark.parametrize("spread", [None, "uniform"])
@pytest.mark.parametrize("faster", [1 / 3, 3.0])
def test_an_amount_is_of_what_the_clock_says_of_the_dense_network(faster, spread):
    def selection():
        timed = LatencyBudget(toy_table(), spread=spread, runtime=clock)
        return timed if spread is None else Budgets([timed, ParamsBudget()])

    def clock(network, images):
        return faster * toy_ms(network)

    whole = faster * toy_table().dense_ms
    pruning = ChannelPruning(0.4, [1, 2], selection=selection(), **OPTIONS)
    module = fitted(pruning)
    for event, part in zip(pruning.events, (0.8, 0.6), strict=True):
        assert 0.7 * part * whole < event["findings"]["clock_ms"] <= part * whole
        assert event["findings"]["dense_ms"] == pytest.approx(whole)
    assert clock(module.net, None) == pytest.approx(pruning.events[-1]["findings"]["clock_ms"])


@pytest.mark.parametrize("beside", [(), (ParamsBudget(at_most="1 Mparams"),)])
def test_what_only_the_clock_can_reach_is_not_refused_before(beside):
    limit = 0.05 * toy_table().dense_ms

    def pruning(factor):
        timed = LatencyBudget(toy_table(), limit, runtime=lambda network, images: factor * toy_ms(network))
        return ChannelPruning(None, [1], selection=Budgets([timed, *beside]) if beside else timed, **OPTIONS)

    assert 0.7 * limit < 0.2 * toy_ms(fitted(pruning(0.2)).net) <= limit
    with pytest.raises(PruningError, match=r"out of reach: .* the clock says"):
        fitted(pruning(1.0))


def test_where_a_clock_fails_the_table_says_what_is_out_of_reach():
    def fails(network, images):
        raise RuntimeError("no such device")

    with (
        pytest.warns(UserWarning, match="no such device"),
        pytest.raises(SelectionError, match=r"The wanted 0\.1 ms are out of reach: .* 1\.\d+ are left"),
    ):
        left(chain(), LatencyBudget(table(input=[1, 3, 16, 16]), "0.1 ms", runtime=fails))


def test_a_table_of_another_runtime_is_refused():
    with pytest.raises(ArgumentError, match="is not of runtime='onnxruntime'"):
        LatencyBudget(table(runtime="openvino", input=[1, 3, 16, 16]), runtime="onnxruntime")


def test_it_is_read_from_a_file(tmp_path):
    table().save(tmp_path / "device.json")
    assert LatencyBudget(tmp_path / "device.json").table.dense_ms == pytest.approx(table().dense_ms)
