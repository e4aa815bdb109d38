"""Deploy every network of the zoo after pruning where the dense one can be: writes `deployment.json`.

    python -m benchmarks.deployment [NAME ...] [--out FILE]

Names are those of ``testing/zoo.py``; without them it takes the zoo and those networks of timm that merge branches.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

from testing.deployment import MERGING, measure
from testing.zoo import names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    chosen = options.names or [*names("ultralytics"), *names("timm"), *(f"timm/{name}" for name in MERGING)]
    warnings.simplefilter("ignore")
    results = {}
    for name in chosen:
        try:
            results[name] = measure(name)
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
        if results[name]:
            print(name, results[name], flush=True)
    options.out.write_text(json.dumps({name: found for name, found in results.items() if found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
