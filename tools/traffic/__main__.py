"""Counts again: runs the kernels on the host, rewrites the counts and docs/traffic_model.md."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from bench import pages, traffic
from tools.traffic import host_counts, tables, walks


def measure() -> dict[str, Any]:
    """Return everything that the file of counts holds; it takes a C++ compiler."""
    torch.manual_seed(0)
    limit = host_counts.visit_limit()
    if limit >= math.prod(host_counts.LARGE):
        raise RuntimeError(
            f"tensors of up to {limit} elements are visited once: host_counts.LARGE = "
            f"{host_counts.LARGE} must have more"
        )
    return {
        "passes": list(host_counts.PASSES.values()),
        "clip": host_counts.clip_counts(),
        "visit_limit": limit,
        "tiles": walks.measure(),
        "rows": [traffic.row_of(kind, host_counts.count(kind)) for kind in host_counts.kinds()],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tools.traffic", description=__doc__)
    parser.add_argument("--json", type=Path, help="write here, and leave the documentation")
    options = parser.parse_args(arguments)
    traffic.write(measure(), options.json or traffic.COUNTS)
    if options.json is None:
        pages.rewrite(tables.PAGE, tables.TABLES)


if __name__ == "__main__":
    main()
