"""What torch's allocator hands out while a network runs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def measured_peak(network: nn.Module, *inputs: Any) -> int:
    """The most bytes that one forward on the CPU has taken at once, with its inputs, by torch's own profiler."""
    network.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        # The first forward may leave caches behind.
        network(*inputs)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            network(*inputs)
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    taken = peak = sum(each.numel() * each.element_size() for each in inputs if isinstance(each, Tensor))
    for event in sorted((each for each in events if each.get("name") == "[memory]"), key=lambda each: each["ts"]):
        taken += event["args"]["Bytes"]
        peak = max(peak, taken)
    return int(peak)
