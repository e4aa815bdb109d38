"""Take out one guard of the graph at a time: tests that are quick must fail each time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from lit_prune.graph import agreement, outputs, probe, trace, tracer
from lit_prune.graph.composites import Composites
from lit_prune.graph.origins import Origins
from lit_prune.training import first_look
from tests.graph import test_fuzz_widths, test_numbers, test_outputs, test_probe
from tests.training import test_fuzz_steps, test_step

Check = Callable[[], None]


def number(name: str, reads: bool = False) -> Check:
    return partial(test_numbers.test_channels_stay_where_a_number_follows_their_width, name, reads)


def output(name: str) -> Check:
    return partial(test_outputs.test_channels_of_outputs_stay, name)


def left(name: str) -> Check:
    return partial(test_outputs.test_what_is_left_in_an_attribute_stays, test_outputs.KEEPS[name])


def layer(name: str, warm: bool = False) -> Check:
    return partial(test_fuzz_widths.test_each_layer, name, warm)


def step(name: str) -> Check:
    return partial(test_step.test_what_a_step_does_is_seen, name)


def nothing(*_: Any, **__: Any) -> None:
    return None


def only_tensors_and_lists(module: Any, output: Any) -> list[Any]:
    return [value for value in ([output] if not isinstance(output, (list, tuple)) else output) if hasattr(value, "dim")]


numbers = Origins.numbers

# What is taken out: the object, its name there, and what takes its place; and tests that must see it.
MUTATIONS: dict[str, tuple[Any, str, Any, list[Check]]] = {
    "numbers are compared": (
        agreement,
        "_compare_constants",
        nothing,
        [number("a quotient"), number("a tensor"), number("a loop"), number("a kernel", reads=True)],
    ),
    "small tensors have values": (
        Origins,
        "numbers",
        lambda *arguments: ((), numbers(*arguments)[1]),
        [number("a tensor"), number("a range"), number("a shape in a tensor")],
    ),
    "other tensors have origins": (
        Origins,
        "numbers",
        lambda *arguments: (numbers(*arguments)[0], ()),
        [number("a grid"), number("a wide tensor"), number("a large grid", reads=True)],
    ),
    "new tensors are known": (tracer, "values_made", nothing, [number("a range")]),
    "numbers become tensors": (
        Composites,
        "_copied",
        lambda self, func, args, kwargs, made: made,
        [number("a tensor"), number("a shape in a tensor")],
    ),
    "places of pieces are compared": (
        agreement,
        "_compare_pieces",
        nothing,
        [partial(test_fuzz_widths.test_each_function, "half doubled")],
    ),
    "sizes of pieces are compared": (
        agreement,
        "_compare_views",
        nothing,
        [test_numbers.test_vectors_of_a_fixed_length_go_whole],
    ),
    "groups are probed": (
        probe,
        "_failing",
        lambda *_: [],
        [test_probe.test_a_remembered_width_freezes_its_group_and_no_other, number("a quotient")],
    ),
    "outputs are walked": (
        trace,
        "used_outputs",
        only_tensors_and_lists,
        [output("a dataclass"), output("slots"), output("a generator beside a tensor")],
    ),
    "attributes are looked at": (
        trace,
        "left_in_attributes",
        lambda network: [],
        [left("tensor"), left("object"), test_outputs.test_what_a_hook_notes_down_stays],
    ),
    "notes of hooks are looked at": (
        outputs,
        "_noted",
        lambda module: [],
        [test_outputs.test_what_a_hook_notes_down_stays],
    ),
    "experts are followed": (probe, "follow_alternatives", nothing, [layer("Experts")]),
    "hooks are traced in place": (
        probe,
        "_has_hooks",
        lambda model: False,
        [layer("HookReplaces"), layer("HookBefore")],
    ),
    "the step is seen": (first_look, "step_of", nothing, [step("distilled")]),
    "state between steps is held": (
        trace,
        "_hold_state",
        nothing,
        [partial(test_fuzz_steps.test_state_that_no_step_has_left_yet_stays, name) for name in ("state", "notes")],
    ),
}


def fails(test: Check) -> bool:
    """Whether a test finds something wrong, or shapes that don't fit; any other error is one of this file."""
    try:
        test()
    except (TypeError, AttributeError, NameError, Warning):
        raise
    except Exception:
        return True
    return False


@pytest.mark.parametrize("guard", MUTATIONS)
def test_no_guard_can_be_taken_out_unseen(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, instead, tests = MUTATIONS[guard]
    for test in tests:
        test()
    monkeypatch.setattr(owner, name, instead)
    assert [fails(test) for test in tests] == [True] * len(tests)
