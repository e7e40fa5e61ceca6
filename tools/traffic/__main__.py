"""Counts again: runs the kernels on the host, rewrites the counts and docs/traffic_model.md."""

import argparse
from pathlib import Path

from bench import traffic


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tools.traffic", description=__doc__)
    parser.add_argument("--json", type=Path, help="write here, and leave the documentation")
    options = parser.parse_args(arguments)
    from tools.traffic import host_counts, tables  # needs a C++ compiler

    traffic.write(host_counts.measure(), options.json or traffic.COUNTS)
    if options.json is None:
        tables.write()


if __name__ == "__main__":
    main()
