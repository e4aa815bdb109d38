"""What is measured: a trained network, its data and its measure, one row of each kind in a module."""

from __future__ import annotations

from importlib import import_module
from typing import Any

KINDS = {
    "cells": "benchmarks.accuracy.rows.cells:Cells",
    "digits": "benchmarks.accuracy.rows.digits:Digits",
    "fashion": "benchmarks.accuracy.rows.fashion:Fashion",
    "photos": "benchmarks.accuracy.rows.photos:Photos",
    "trees": "benchmarks.accuracy.rows.trees:Trees",
    "words": "benchmarks.accuracy.rows.words:Words",
}


def row(kind: str, **options: Any) -> Any:
    """One row; what it needs is imported with it alone."""
    module, name = KINDS[kind].split(":")
    return getattr(import_module(module), name)(**options)
