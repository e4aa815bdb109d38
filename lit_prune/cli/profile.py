"""The command that measures how long a network's layers take on a device."""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_prune.cli.given import check_file, make_folder
from lit_prune.common.arguments import check_choice, check_whole
from lit_prune.cost.profile import LatencyTable, timing
from lit_prune.errors import ArgumentError, LitPruneError
from lit_prune.report.tables import ratio_bar

_SLOWEST = 12
_COUNTS = (
    *("model", "image_size", "batch", "threads", "runtime", "round_to", "networks"),
    *("device", "precision", "channels_last"),
)
_TORCH = ("torch", "cudagraphs")
_PRECISIONS = ("float32", "float16", "bfloat16")


def run_profile(options: argparse.Namespace) -> None:
    """Measure a latency table, write a script that measures one elsewhere, or read what such a script measured."""
    if options.script is not None and options.measured is not None:
        raise ArgumentError("--script writes what measures on a device, --measured reads what it found: give one.")
    _check_place(options)
    check_whole("--batch", options.batch)
    if options.image_size is not None:
        check_whole("--image-size", options.image_size)
    console = Console()
    if options.script is None and options.measured is None and (known := _known(options)) is not None:
        _say(console, f"{options.out} has been measured under the same conditions; --again measures anew.")
        console.print(slowest_layers(known))
        return
    # Only now, since they take torch.
    from lit_prune.cli.networks import load_network
    from lit_prune.cost.profile import export_profile, profile_latency, read_profile

    network, images = load_network(options.model, options.image_size)
    images = images.expand(options.batch, *images.shape[1:]).contiguous()
    # A measurement takes minutes.
    written = options.out if options.script is None else options.script
    make_folder(written.parent)
    check_file(written)
    if options.script is not None:
        export_profile(network, images, options.script, options.runtime, options.round_to, options.networks)
        _say(console, f"Written: {options.script}. On the device: python {options.script.name} --out measured.json")
        _say(console, f"Then here: lit-prune profile {options.model} ... --measured measured.json --out {options.out}")
        return
    if options.measured is not None:
        table = read_profile(network, images, options.measured, options.round_to)
    else:
        with console.status(f"timing {options.networks} networks in {options.runtime}"):
            table = profile_latency(
                network, _placed(images, options), options.runtime, options.threads, options.round_to, options.networks
            )
        table = replace(table, conditions={**table.conditions, "asked": _asked(options)})
    table.save(options.out)
    console.print(slowest_layers(table))
    _say(console, f"Written: {options.out}")


def _check_place(options: argparse.Namespace) -> None:
    """See whether torch is to run on a device, and in a way, that there is."""
    options.device = options.device or ("cuda" if options.runtime == "cudagraphs" else "cpu")
    check_choice("--precision", options.precision, _PRECISIONS)
    usual = (options.device, options.precision, options.channels_last) == ("cpu", "float32", False)
    if options.runtime not in _TORCH and not usual:
        raise ArgumentError(
            f"--device, --precision and --channels-last are for --runtime torch and cudagraphs; {options.runtime} runs "
            "on the CPU, in the precision of the exported network."
        )
    if options.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ArgumentError(f"--runtime {options.runtime} is to run on a GPU here, but torch sees none.")


def _placed(images: Any, options: argparse.Namespace) -> Any:
    if options.runtime not in _TORCH:
        return images
    from lit_prune.cost.profile.torch_runtime import placed

    layout = "channels_last" if options.channels_last else "contiguous"
    return placed(images, options.device, options.precision, layout)


def slowest_layers(table: LatencyTable) -> Table:
    """The layers of a table that take longest when they are whole, and what they take of all."""
    told = table.conditions
    shown = Table(
        title=f"{table.dense_ms:.4g} ms on {told.get('device')}, {told.get('runtime')} {told.get('version')}, "
        f"{told.get('threads')} thread{'s' * (told.get('threads') != 1)}",
        title_style="bold",
        caption=f"The networks that were timed differ from the table by {told.get('error', 0):.1%} on average.",
        caption_justify="left",
        header_style="bold",
    )
    shown.add_column("layer", no_wrap=True)
    for heading in ("inputs", "outputs", "ms"):
        shown.add_column(heading, justify="right")
    shown.add_column("of all", no_wrap=True)
    layers = sorted(table.layers.items(), key=lambda item: -float(item[1].ms[-1, -1]))
    for name, layer in layers[:_SLOWEST]:
        ms = float(layer.ms[-1, -1])
        shown.add_row(name, str(layer.inputs[-1]), str(layer.outputs[-1]), f"{ms:.3g}", ratio_bar(ms, table.dense_ms))
    return shown


def _asked(options: argparse.Namespace) -> dict[str, Any] | None:
    """What is asked for, and of which device; ``None`` where the runtime is not installed."""
    file = Path(options.model)
    known = file.stat() if file.is_file() else None
    try:
        release = version("torch" if options.runtime in _TORCH else options.runtime)
    except PackageNotFoundError:
        return None
    return {
        **{name: getattr(options, name) for name in _COUNTS},
        "file": None if known is None else [known.st_size, known.st_mtime_ns],
        "on": _device_of(options),
        "version": release,
    }


def _device_of(options: argparse.Namespace) -> str:
    if not options.device.startswith("cuda"):
        return timing.device()
    import torch

    from lit_prune.cost.latency import device_name

    return device_name(torch.device(options.device))


def _known(options: argparse.Namespace) -> LatencyTable | None:
    """The table that is there already, if the same was asked for when it was measured, on this device."""
    if options.again or not options.out.exists():
        return None
    try:
        table = LatencyTable.load(options.out)
    except LitPruneError:
        return None
    return table if table.conditions.get("asked", {}) == _asked(options) else None


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
