"""Fourier transforms and complex numbers: channels pass beside what is transformed."""

from __future__ import annotations

from lit_prune.graph.rules.elementwise import run_over
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer


@register_rule("fft_r2c", "fft_c2r", "fft_c2c")
def _transform(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    over = {dim % source.dim() for dim in op["dim"]}
    trace.assign_blocks(op.output, run_over(trace, trace.blocks(source), over, "is transformed into frequencies"))


@register_rule("view_as_real")
def _real(trace: Tracer, op: Operation) -> None:
    trace.assign_blocks(op.output, trace.blocks(op["self"]))


@register_rule("view_as_complex")
def _complex(trace: Tracer, op: Operation) -> None:
    source = op["self"]
    pair = {source.dim() - 1}
    trace.assign_blocks(op.output, run_over(trace, trace.blocks(source), pair, "is a real and an imaginary part"))
