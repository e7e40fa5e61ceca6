"""``python -m fused_optim`` reports what was built, which backends will run, and why."""

import argparse
import json

from fused_optim import _OPTIMIZERS, info
from fused_optim._version import __version__
from fused_optim.backends import diagnostics, dispatch


def main() -> None:
    """Print the report, or exit with status 2 if the arguments or the environment are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_optim",
        description="Print versions, devices, what installing built and what it left out, "
        "which backend each optimizer will use, and why not a faster one. "
        f"{dispatch.ENVIRONMENT_VARIABLE} may name the backend.",
    )
    parser.add_argument("--version", action="version", version=f"fused_optim {__version__}")
    parser.add_argument("--json", action="store_true", help="print it as JSON, for a bug report")
    as_json = parser.parse_args().json
    try:
        dispatch.resolve("auto")
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(diagnostics.facts(_OPTIMIZERS), indent=2) if as_json else info())


if __name__ == "__main__":
    main()
