"""``python -m fused_optim`` reports which backends this installation will run, and why."""

import argparse

from fused_optim import info
from fused_optim._version import __version__
from fused_optim.backends import dispatch


def main() -> None:
    """Print the report, or exit with status 2 if the arguments or the environment are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_optim",
        description="Print versions, devices, which backend each optimizer will use, and why not "
        f"a faster one. {dispatch.ENVIRONMENT_VARIABLE} may name the backend.",
    )
    parser.add_argument("--version", action="version", version=f"fused_optim {__version__}")
    parser.parse_args()
    try:
        dispatch.resolve("auto")
    except ValueError as error:
        parser.error(str(error))
    print(info())


if __name__ == "__main__":
    main()
